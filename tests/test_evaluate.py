"""Metrics and the two evaluations, without any weights but the embedded ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import degraded, moved
from PIL import Image
from typer.testing import CliRunner

from streamfix import load_restorer
from streamfix.cli import app
from streamfix.errors import InputError, ModelError, UsageError
from streamfix.evaluate.faces import DEGRADATIONS, degraded_face, evaluate_faces, read_groups
from streamfix.evaluate.metrics import Metrics, psnr, ssim
from streamfix.evaluate.video import evaluate_video
from streamfix.faces.detect import load_detector
from streamfix.faces.embedding import FaceEmbedding


@pytest.fixture
def faces(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """Two aligned-looking crops, 512x512."""
    folder = tmp_path / "faces"
    folder.mkdir()
    face = Image.fromarray(astronaut[20:220, 125:325]).resize((512, 512), Image.Resampling.LANCZOS)
    face.save(folder / "a.png")
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.png")
    return folder


def test_psnr_and_ssim_have_their_textbook_values() -> None:
    a = np.full((64, 64, 3), 0.5, np.float32)
    assert psnr(a, a + np.float32(0.1)) == pytest.approx(20.0, abs=1e-4)
    assert psnr(a, a) == float("inf")
    flat = torch.full((1, 3, 64, 64), 0.5)
    # two constants: structure cancels, luminance alone is left
    assert ssim(flat, flat + 0.1) == pytest.approx((2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4), abs=1e-4)


def test_metrics_without_weights_are_left_out_by_name(faces: Path) -> None:
    scores = evaluate_faces(faces, load_restorer("passthrough"), Metrics.load())
    assert [row[0] for row in scores.table()] == ["PSNR", "SSIM"]
    assert [m.split()[0] for m in scores.missing] == ["LPIPS", "identity"]
    for before, after in zip(scores.before, scores.after, strict=True):
        assert before == pytest.approx(after, abs=1e-4)


def test_one_seed_one_result_whoever_else_is_there(faces: Path) -> None:
    restorer = load_restorer("lite")
    both = evaluate_faces(faces, restorer, Metrics.load(), seed=3)
    (faces / ("a.png" if both.names[0] == "b.png" else "b.png")).unlink()
    alone = evaluate_faces(faces, restorer, Metrics.load(), seed=3)
    assert alone.before[0] == both.before[0]
    assert alone.after[0] == both.after[0]
    other = evaluate_faces(faces, restorer, Metrics.load(), seed=4)
    assert other.before[0] != alone.before[0]


def test_wrong_names_are_refused(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="paper, heavy"):
        evaluate_faces(faces, load_restorer("passthrough"), Metrics.load(), degradation="awful")
    with pytest.raises(InputError):
        evaluate_faces(tmp_path / "nowhere", load_restorer("passthrough"), Metrics.load())
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"x\.onnx"):
        FaceEmbedding(tmp_path / "x.onnx")


def test_a_face_is_degraded_by_its_name_and_the_seed_alone(faces: Path, tmp_path: Path) -> None:
    file = sorted(faces.iterdir())[0]
    (tmp_path / file.name).write_bytes(file.read_bytes())
    losses = {}
    for name in DEGRADATIONS:
        degraded, truth = degraded_face(file, name, 3)
        assert degraded.shape == truth.shape == (512, 512, 3)
        assert degraded.dtype == np.float32
        assert 0 <= degraded.min() <= degraded.max() <= 1
        assert np.array_equal(degraded, degraded_face(tmp_path / file.name, name, 3)[0])
        losses[name] = float(
            np.mean([np.abs(np.subtract(*degraded_face(file, name, seed))).mean() for seed in range(6)])
        )
    assert 0 < losses["mild"] < losses["paper"] < losses["heavy"]
    assert losses["mild"] < losses["footage"]


def test_groups_are_words_or_thirds(tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    index.write_text("file,source,ita\n" + "".join(f"val/{n}.jpg,s{n % 2},{n}\n" for n in range(9)))
    assert read_groups(index, "source")["3.jpg"] == "s1"
    thirds = read_groups(index, "ita")
    assert sorted(list(thirds.values()).count(label) for label in set(thirds.values())) == [3, 3, 3]
    with pytest.raises(InputError, match="colour"):
        read_groups(index, "colour")
    index.write_bytes("file,source\nval/1.jpg,Zürich\n".encode("latin-1"))
    with pytest.raises(InputError, match="no CSV file in UTF-8"):
        read_groups(index, "source")
    index.write_text("file,source\nval/1.jpg,Zürich\n", "utf-8-sig")  # as spreadsheets save it
    assert read_groups(index, "source") == {"1.jpg": "Zürich"}


def test_a_video_against_itself_and_against_a_flickering_one(
    clip: Callable[..., Path], face_picture: np.ndarray
) -> None:
    truth = [moved(face_picture, 0.5 * n, 0) for n in range(10)]
    clean = clip("clean.mkv", truth)
    steady = clip("steady.mkv", [moved(degraded(face_picture, 0), 0.5 * n, 0) for n in range(10)])
    noisy = clip("noisy.mkv", [degraded(image, n) for n, image in enumerate(truth)])
    scores = evaluate_video(clean, noisy, clean, detector=load_detector("retinaface"), metrics=Metrics.load())
    assert (scores.frames, scores.faces) == (10, 10)
    assert scores.restored["flicker"] == 0.0
    assert scores.restored["sharpness"] == pytest.approx(1.0)
    assert scores.restored["PSNR"] == float("inf")
    assert scores.degraded["flicker"] > 0.5
    assert scores.degraded["warping"] > scores.restored["warping"]
    second = evaluate_video(clean, noisy, steady, detector=load_detector("retinaface"), metrics=Metrics.load())
    assert second.restored["flicker"] < 0.6 * second.degraded["flicker"]


def test_videos_that_do_not_match_are_refused(clip: Callable[..., Path], face_picture: np.ndarray) -> None:
    a, b = clip("a.mkv", [face_picture] * 4), clip("b.mkv", [face_picture] * 3)
    small = clip("small.mkv", [face_picture[:200]] * 4)
    options = {"detector": load_detector("retinaface"), "metrics": Metrics.load()}
    with pytest.raises(InputError, match="numbers of frames"):
        evaluate_video(a, a, b, **options)
    with pytest.raises(InputError, match="size"):
        evaluate_video(a, a, small, **options)
    nobody = clip("nobody.mkv", [np.zeros_like(face_picture)] * 4)
    with pytest.raises(InputError, match="no face"):
        evaluate_video(nobody, nobody, nobody, **options)


def test_the_command_prints_a_table_and_a_strip(faces: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["evaluate", "faces", str(faces), "--model", "lite", "--strip", str(tmp_path / "strip.png")]
    )
    assert result.exit_code == 0, result.output
    assert "PSNR" in result.output
    assert "left out: LPIPS" in result.output
    assert Image.open(tmp_path / "strip.png").size == (3 * 256, 2 * 256)


def test_strip_and_markdown_replace_nothing_unasked(faces: Path, tmp_path: Path) -> None:
    strip, markdown = tmp_path / "strip.png", tmp_path / "tables.md"
    call = ["evaluate", "faces", str(faces), "--model", "passthrough", "--limit", "1"]
    call += ["--strip", str(strip), "--markdown", str(markdown)]
    strip.write_bytes(b"mine")
    markdown.write_text("mine")
    assert CliRunner().invoke(app, call).exit_code == 1
    strip.unlink()
    result = CliRunner().invoke(app, call)
    assert (result.exit_code, "--overwrite" in result.output) == (1, True)
    assert markdown.read_text() == "mine"
    result = CliRunner().invoke(app, [*call, "--overwrite"])
    assert result.exit_code == 0, result.output
    assert "PSNR" in markdown.read_text()
    assert Image.open(strip).size == (3 * 256, 256)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces", "strip.png", "tables.md"]


@pytest.mark.parametrize(
    ("call", "code", "told"),
    [
        ("faces . --strip strip.txt", 2, "call it .png"),
        ("faces . --strip nowhere/strip.png", 1, "does not exist; create it first"),
        ("faces . --markdown nowhere/tables.md", 1, "does not exist; create it first"),
        ("video clean.mkv in.mkv out.mkv --strip strip.txt", 2, "call it .png"),
        ("video clean.mkv in.mkv out.mkv --strip nowhere/strip.png", 1, "does not exist; create it first"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    call: str, code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is nothing to measure: that would be told next
    result = CliRunner().invoke(app, ["evaluate", *call.split()])
    assert result.exit_code == code, result.output
    assert told in result.output


def test_calls_of_evaluate_that_cannot_be_meant(faces: Path) -> None:
    for call, told in (
        (["faces", str(faces), "--seed", "-1"], "greater than"),
        (["clips", str(faces), "--seed", "-1"], "greater than"),
        (["paper", "--set", "lfw", "--data", str(faces), "--degradation-seed", "-1"], "'--degradation-seed'"),
        (["faces", str(faces), "--by", "source"], "give that file with --groups"),
    ):
        result = CliRunner().invoke(app, ["evaluate", *call])
        assert (result.exit_code, told in result.output) == (2, True), (call, result.output)


def test_a_path_that_leads_nowhere_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        evaluate_faces(tmp_path / "nowhere", load_restorer("passthrough"), Metrics.load())
    for files in ({"lpips": [tmp_path / "none"]}, {"identity": tmp_path / "none"}):
        with pytest.raises(ModelError, match=r"there is no file .*none"):
            Metrics.load(**files)  # type: ignore[arg-type]


def test_a_face_that_comes_late_is_in_the_strip(clip: Callable[..., Path], face_picture: np.ndarray) -> None:
    late = clip("late.mkv", [np.zeros_like(face_picture)] * 2 + [face_picture] * 3)
    scores = evaluate_video(late, late, late, detector=load_detector("retinaface"), metrics=Metrics.load())
    assert scores.faces < scores.frames
    assert len(scores.strip) == 1
