"""The four jobs of InterLCM from the command line, with a small release in place: the right files, sizes, colours and steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import decode, degraded
from interlcm_small import install
from PIL import Image
from typer.testing import CliRunner

from streamfix.aligned import AlignedPipeline, read_mask
from streamfix.cli import app
from streamfix.enlarge import EnlargingPipeline, Lanczos, load_background
from streamfix.errors import DependencyError, InputError
from streamfix.pipeline import Pipeline
from streamfix.restore.passthrough import Passthrough
from streamfix.types import Frame

SAMPLE = Path(__file__).parent.parent / "samples" / "webcam.mp4"
ONE = "interlcm-1step"
runner = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMFIX_HOME", str(home))
        install(home)
        yield home


def call(*arguments: object) -> tuple[int, str]:
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def face(astronaut: np.ndarray) -> np.ndarray:
    """Aligned well enough: uint8 (512, 512, 3)."""
    return cv2.resize(astronaut[40:200, 150:310], (512, 512), interpolation=cv2.INTER_LINEAR)


def test_the_sample_clip_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    code, said = call("enhance", SAMPLE, "-o", out, "--model", "interlcm", "--end", "0.06", "--device", "cpu")
    assert code == 0, said
    assert "model interlcm" in said
    before, after = decode(SAMPLE), decode(out)
    assert len(after) in (1, 2)
    assert (after[0].width, after[0].height) == (before[0].width, before[0].height)
    change = np.abs(after[0].to_ndarray(format="gray").astype(int) - before[0].to_ndarray(format="gray"))
    assert change.max() > 20


def test_aligned_faces_and_the_options_on_the_line(face: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    Image.fromarray(face).save(folder / "a.png")
    Image.fromarray(cv2.resize(face, (256, 256))).save(folder / "b.jpg")
    code, said = call(
        "enhance", folder, "-o", tmp_path / "out", "--aligned", "--model", ONE, "--device", "cpu",
        "--seed", 3, "--guidance", 6, "--color-fix", "adain",
    )  # fmt: skip
    assert code == 0, said
    assert [pixels(tmp_path / "out" / n).shape for n in ("a.png", "b.jpg")] == [(512, 512, 3)] * 2
    assert (pixels(tmp_path / "out" / "a.png") != face).mean() > 0.9, "the whole face, not a feathered part"
    code, said = call("enhance", folder / "a.png", "-o", tmp_path / "x.png", "--aligned", "--upscale", 2)
    assert code == 2
    assert "--upscale" in said
    code, said = call(
        "enhance", folder / "a.png", "-o", tmp_path / "x.png", "--aligned", "--faces", "largest", "--recurrent"
    )
    assert code == 2
    assert "--faces, --recurrent: of no use with --aligned" in said
    wide = tmp_path / "wide.png"
    Image.fromarray(face[:300]).save(wide)
    code, said = call("enhance", wide, "-o", tmp_path / "x.png", "--aligned", "--model", "passthrough")
    assert code == 1
    assert "square" in said
    assert not (tmp_path / "x.png").exists()


def test_options_of_interlcm_do_not_vanish_with_another_model(face: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(face).save(tmp_path / "a.png")
    for flags in (("--steps", 2), ("--noise", "fresh"), ("--no-visual",)):
        code, said = call("enhance", tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", "lite", *flags)
        assert code == 2
        assert flags[0].replace("--no-", "--") in said
    code, said = call("enhance", tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", "interlcm", "--steps", 9)
    assert (code, "1 to 4 steps" in said) == (2, True)


def test_a_grey_face_gets_colours_aligned_and_in_a_whole_picture(
    face: np.ndarray, face_picture: np.ndarray, tmp_path: Path
) -> None:
    for name, picture, flags in (("face", face, ["--aligned"]), ("whole", degraded(face_picture, 0), [])):
        Image.fromarray(picture).convert("L").save(tmp_path / f"{name}.png")
        out = tmp_path / f"{name}-out.png"
        model = ("--model", "interlcm-colorize", "--device", "cpu")
        code, said = call("enhance", tmp_path / f"{name}.png", "-o", out, *model, *flags)
        assert code == 0, said
        assert "1 face of" in said
        after = pixels(out).astype(int)
        assert after.ndim == 3
        assert (after.max(axis=2) - after.min(axis=2)).max() > 20, name
    assert np.array_equal(after[-5:, :, 0], pixels(tmp_path / "whole.png")[-5:]), "elsewhere stays as it was"


def test_inpainting_with_a_mask_and_with_white_paint(face: np.ndarray, tmp_path: Path) -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[50:100, 80:160] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    hole = read_mask(tmp_path / "mask.png")
    assert hole[100:200, 160:320].all()
    assert hole.sum() == 100 * 160
    Image.fromarray(face).save(tmp_path / "face.png")
    Image.fromarray(np.where(hole[..., None], 255, face).astype(np.uint8)).save(tmp_path / "painted.png")
    model = ("--aligned", "--model", "interlcm-inpaint", "--device", "cpu")
    for source, flags in (("face.png", ("--mask", tmp_path / "mask.png")), ("painted.png", ())):
        code, said = call("enhance", tmp_path / source, "-o", tmp_path / f"out-{source}", *model, *flags)
        assert code == 0, said
    filled, painted = (pixels(tmp_path / f"out-{n}.png") for n in ("face", "painted"))
    assert np.array_equal(filled, painted)
    changed = (filled != face).any(axis=2)
    assert changed[hole].mean() > 0.9
    near_white = (face >= 254).all(axis=2)  # which the model may fill too
    assert not (changed & ~hole & ~near_white).any()
    code, said = call("enhance", tmp_path / "face.png", "-o", tmp_path / "x.png", "--mask", tmp_path / "mask.png")
    assert (code, "--model interlcm-inpaint" in said) == (2, True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "empty.png")
    with pytest.raises(InputError, match="marks nothing"):
        read_mask(tmp_path / "empty.png")


def test_whole_pictures_larger(face_picture: np.ndarray, tmp_path: Path) -> None:
    source = degraded(face_picture, 0)
    Image.fromarray(source).save(tmp_path / "in.png")
    model = ("--model", ONE, "--device", "cpu", "--no-protect")
    code, said = call("enhance", tmp_path / "in.png", "-o", tmp_path / "out.png", "--upscale", 2, *model)
    assert code == 0, said
    assert "1 face of" in said
    after = pixels(tmp_path / "out.png").astype(int)
    height, width = source.shape[:2]
    assert after.shape == (2 * height, 2 * width, 3)
    plain = cv2.resize(source, (2 * width, 2 * height), interpolation=cv2.INTER_LANCZOS4).astype(int)
    assert np.abs(after[-20:] - plain[-20:]).mean() < 3, "the background is the input, enlarged in place"
    face = (slice(160, 280), slice(260, 360))
    assert np.abs(after[face] - plain[face]).mean() > 5


def test_where_a_face_lies_does_not_move_when_the_picture_grows(face_picture: np.ndarray, tmp_path: Path) -> None:
    """With a restorer that changes nothing, the face is laid exactly onto the enlarged one."""
    from streamfix import enhance, load_pipeline

    Image.fromarray(face_picture).save(tmp_path / "in.png")
    small = load_pipeline(model="passthrough", detector="retinaface")
    assert isinstance(small, Pipeline)
    large = EnlargingPipeline(small, factor=1.5)
    enhance(tmp_path / "in.png", tmp_path / "out.png", pipeline=large)
    after = pixels(tmp_path / "out.png").astype(int)
    height, width = face_picture.shape[:2]
    assert after.shape == (1.5 * height, 1.5 * width, 3)
    plain = cv2.resize(face_picture, (int(1.5 * width), int(1.5 * height)), interpolation=cv2.INTER_CUBIC).astype(int)
    assert np.abs(after - plain).mean() < 2
    shifted = np.roll(plain, 1, axis=1)
    assert np.abs(after - shifted).mean() > 1.5 * np.abs(after - plain).mean(), "the test can tell half a pixel"


def test_a_clip_can_grow_too(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    code, said = call("enhance", SAMPLE, "-o", out, "--model", "passthrough", "--upscale", 1.5, "--end", "0.1")
    assert code == 0, said
    before, after = decode(SAMPLE)[0], decode(out)[0]
    assert (after.width, after.height) == (before.width * 3 // 2, before.height * 3 // 2)
    assert after.colorspace == before.colorspace


def test_backgrounds_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load_background("lanczos"), Lanczos)
    monkeypatch.setitem(sys.modules, "ncnn", None)  # as where it is not installed
    with pytest.raises(DependencyError, match=r"pip install 'streamfix\[background\]'"):
        load_background("realesrgan")
    code, said = call("enhance", SAMPLE, "-o", "x.mp4", "--background", "realesrgan")
    assert (code, "--upscale 2" in said) == (2, True)


def test_a_sheet_of_settings(face: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(face).save(tmp_path / "a.png")
    code, said = call(
        "compare-params", tmp_path / "a.png", "-o", tmp_path / "sheet.png", "--aligned", "--model", ONE,
        "--steps", "1,2", "--guidance", "6,8", "--size", 96, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, said
    sheet = pixels(tmp_path / "sheet.png")
    assert sheet.shape == (2 * (96 + 24), 3 * 96, 3)
    tiles = [sheet[y + 24 : y + 120, x : x + 96] for y in (0, 120) for x in (0, 96, 192)]
    assert np.array_equal(tiles[0], tiles[3]), "the input, at the left of each row"
    different = [t for n, t in enumerate(tiles) if n != 3]
    assert all(not np.array_equal(a, b) for n, a in enumerate(different) for b in different[:n])
    assert (sheet[:24] < 128).any(), "labels"
    for wrong in (("--steps", "2,9"), ("--guidance", "a"), ("--model", "lite")):
        code, _ = call("compare-params", tmp_path / "a.png", "-o", tmp_path / "b.png", "--aligned", *wrong)
        assert code == 2, wrong


def test_an_aligned_pipeline_changes_nothing_by_itself(face: np.ndarray, tmp_path: Path) -> None:
    from streamfix import enhance

    Image.fromarray(face).save(tmp_path / "a.png")
    report = enhance(tmp_path / "a.png", tmp_path / "b.png", pipeline=AlignedPipeline(restorer=Passthrough()))
    assert report.faces == 1
    assert np.array_equal(pixels(tmp_path / "b.png"), face)


@pytest.mark.parametrize("compare", [False, True])
def test_an_aligned_pipeline_takes_frames_made_by_hand(face: np.ndarray, compare: bool) -> None:
    made = av.VideoFrame.from_ndarray(face, format="rgb24")  # as the caller has it: no time stamps of its own
    frame = Frame(picture=made, index=0, pts=7, time_base=Fraction(1, 25))
    (out,) = AlignedPipeline(restorer=Passthrough()).run([frame], compare=compare)
    assert (out.picture.pts, out.picture.time_base) == (out.pts, out.time_base) == (7, Fraction(1, 25))
    assert np.array_equal(out.picture.to_ndarray(format="rgb24")[:, : face.shape[1]], face)
