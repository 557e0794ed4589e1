"""Photos and videos become aligned faces for training: what is kept and why, where it lies, and that a run that broke off goes on."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import degraded, moved
from hypothesis import given
from hypothesis import strategies as st
from media_files import make_video
from PIL import Image
from test_cli import call, one_sentence
from test_faces_embedding import save_embedding

from streamfix.errors import UsageError
from streamfix.faces.align import TEMPLATE, apply, fit_similarity
from streamfix.faces.detect import EmbeddedDetector
from streamfix.media.color import cut_out
from streamfix.train import prepare
from streamfix.train.data import read_face, template_crop
from streamfix.train.prepare import Options, prepare_faces
from streamfix.train.prepare.choose import duplicates, nearest, people, split, tied
from streamfix.train.prepare.cut import best_side, cut_face, enlargement, inside
from streamfix.train.prepare.measure import hash_distance, picture_hash, sharpness
from streamfix.train.prepare.scan import scan
from streamfix.types import Frame

SMALL = Options(min_size=60, min_sharpness=12)
"""For the astronaut, whose face is small."""


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def frame_of(image: np.ndarray) -> Frame:
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return Frame(picture=picture, index=0, pts=0, time_base=Fraction(1, 25))


@pytest.fixture(scope="module")
def landmarks(astronaut: np.ndarray) -> np.ndarray:
    return EmbeddedDetector().detect(astronaut)[0].landmarks


@pytest.fixture(scope="module")
def crop(astronaut: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    return cut_face(frame_of(astronaut), landmarks, 512)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, face_picture: np.ndarray) -> Path:
    """A good face, a copy of it, a blurred one, a tiny one, one cut off, a wall, and a file that is none; in folders."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper" / "still").mkdir(parents=True)
    Image.fromarray(face_picture).save(folder / "good.png")
    Image.fromarray(face_picture).save(folder / "deeper" / "copy.jpg", quality=60)
    Image.fromarray(cv2.GaussianBlur(face_picture, (0, 0), 3)).save(folder / "deeper" / "still" / "soft.png")
    Image.fromarray(cv2.resize(face_picture, (160, 120), interpolation=cv2.INTER_AREA)).save(folder / "tiny.png")
    Image.fromarray(face_picture[85:]).save(folder / "cut.png")
    Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(folder / "wall.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def prepared(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "faces"
    prepare_faces([photos], out, SMALL)
    return out


def test_every_face_is_kept_or_dropped_with_its_reason(prepared: Path, photos: Path) -> None:
    found = {Path(row["source"]).name: row for row in rows(prepared)}
    assert {name: row["reason"].split(":")[0] for name, row in found.items()} == {
        "good.png": "",
        "copy.jpg": "duplicate",
        "soft.png": "soft",
        "tiny.png": "small",
        "cut.png": "cut off",
        "broken.jpg": "unreadable",
    }
    good = found["good.png"]
    assert (prepared / good["file"]).is_file()
    assert Path(good["file"]).stem == found["copy.jpg"]["duplicate_of"] == good["identity"]
    x1, y1, x2, y2 = map(float, good["box"].split())
    assert float(good["size"]) == pytest.approx(((x2 - x1) * (y2 - y1)) ** 0.5, abs=0.5)
    assert float(good["sharpness"]) > 12 > float(found["soft.png"]["sharpness"])
    kept, dropped = (cv2.imread(str(prepared / f"{n}.png")) for n in ("kept", "dropped"))
    assert kept.shape == dropped.shape  # a row of ten holds either
    assert np.count_nonzero(kept.max(axis=(0, 2)) > 100) < np.count_nonzero(dropped.max(axis=(0, 2)) > 100)


def test_what_is_kept_is_what_training_reads(prepared: Path) -> None:
    (row,) = (row for row in rows(prepared) if row["file"])
    picture = read_face(prepared / row["file"])
    assert picture.shape[0] == int(row["layout"]) == 400  # an 80 px face fills no more
    face = np.rint(template_crop(picture) * 255).astype(np.uint8)
    (seen,) = EmbeddedDetector().detect(face)
    assert np.abs(seen.landmarks - TEMPLATE).max() < 12  # this face is not the template's
    assert np.abs(apply(fit_similarity(seen.landmarks), seen.landmarks) - seen.landmarks).max() < 4


def test_a_further_run_does_nothing_again_and_changes_nothing(
    prepared: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(prepared)
    monkeypatch.setattr(prepare, "scan", lambda *_: pytest.fail("a source was looked at again"))
    summary = prepare_faces([photos], prepared, SMALL)
    assert (summary.known, summary.sources, summary.kept) == (7, 7, 1)
    assert tree(prepared) == before


def test_a_run_that_was_killed_goes_on_to_the_same_result(
    prepared: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def some(path: Path, *rest: object) -> object:
        looked.append(path.name)
        if len(looked) == 4:
            raise KeyboardInterrupt
        return scan(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "scan", some)
    with pytest.raises(KeyboardInterrupt):
        prepare_faces([photos], tmp_path / "out", SMALL)
    assert not list((tmp_path / "out").rglob("*.part*"))
    prepare_faces([photos], tmp_path / "out", SMALL)
    assert len(looked) == 4 + 4
    assert tree(tmp_path / "out") == tree(prepared)


def test_new_changed_and_deleted(prepared: Path, photos: Path, face_picture: np.ndarray, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(photos / "good.png", source / "a.png")
    Image.fromarray(cv2.flip(face_picture, 1)).save(source / "b.png")
    first = prepare_faces([source], out, SMALL)
    assert (first.kept, first.train, first.val) == (2, 1, 1)
    # a picture deleted by hand stays away; one that has changed is looked at again, and its old face goes
    (gone,) = out.glob("*/b-*.png")
    gone.unlink()
    shutil.copy(photos / "tiny.png", source / "a.png")
    shutil.copy(photos / "deeper" / "copy.jpg", source / "c.jpg")
    second = prepare_faces([source], out, SMALL)
    assert second.known == 1
    assert {Path(r["source"]).name: r["reason"] for r in rows(out)} == {
        "a.png": "small",
        "b.png": "removed by hand",
        "c.jpg": "",
    }
    assert sorted(p.name[:2] for p in out.glob("*/*.png")) == ["c-"]


def test_other_settings_and_other_folders_are_refused(prepared: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"min-size was 60, is 61"):
        prepare_faces([photos], prepared, Options(min_size=61, min_sharpness=12))
    with pytest.raises(UsageError, match="where the input"):
        prepare_faces([photos / "deeper"], photos, SMALL)
    with pytest.raises(UsageError, match="holds other files"):
        prepare_faces([photos / "good.png"], photos / "deeper", SMALL)
    code, said = call("prepare-faces", tmp_path / "none", "-o", tmp_path / "out")
    assert code == 1
    assert "there is no file or folder" in one_sentence(said)
    (tmp_path / "empty").mkdir()
    code, said = call("prepare-faces", tmp_path / "empty", "-o", tmp_path / "out")
    assert code == 1
    assert "no photo and no video" in one_sentence(said)
    code, said = call("prepare-faces", photos / "tiny.png", "-o", tmp_path / "out")
    assert code == 1
    assert "none of 1 faces is kept (1 small)" in one_sentence(said)
    code, said = call("prepare-faces", photos, "-o", tmp_path / "other", "--every", 0)
    assert code == 2
    assert "above 0" in one_sentence(said)
    assert not (tmp_path / "other").exists()


def test_the_command_counts_and_says_how_it_splits(photos: Path, tmp_path: Path) -> None:
    asked = ("--min-size", 60, "--min-sharpness", 12)
    code, said = call("prepare-faces", photos / "good.png", photos / "tiny.png", "-o", tmp_path / "out", *asked)
    assert code == 0, said
    assert "2 files, 2 frames: 2 faces, 1 kept" in said
    assert "dropped: 1 small" in said
    assert "split by source file" in said


def test_videos_are_sampled_and_frames_that_look_alike_are_left_out(
    clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path
) -> None:
    # two seconds of a still, then one of another picture
    other = cv2.flip(degraded(face_picture, 1), 1)
    path = clip("in.mp4", [face_picture] * 50 + [other] * 25, codec="libx264", pixel_format="yuv444p")
    summary = prepare_faces([path], tmp_path / "out", Options(min_size=60, min_sharpness=5, every=0.5))
    assert (summary.frames, summary.equal) == (2, 4)
    assert [float(row["time"]) for row in rows(tmp_path / "out")] == [0, 2]
    assert (summary.train, summary.val) == (2, 0)  # one file is on one side


def test_a_video_that_lies_on_its_side_gives_upright_faces(face_picture: np.ndarray, tmp_path: Path) -> None:
    for name, image, turned in (("upright", face_picture, 0), ("lying", np.rot90(face_picture), 90)):

        def scene(_: int, image: np.ndarray = image, **_form: object) -> av.VideoFrame:
            return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="yuv444p")

        size, options = (image.shape[1], image.shape[0]), {"qp": "0"}
        make_video(
            tmp_path / f"{name}.mp4",
            frames=1,
            scene=scene,
            size=size,
            pix_fmt="yuv444p",
            rotation=turned,
            options=options,
        )
    prepare_faces([tmp_path], tmp_path / "out", SMALL)
    found = rows(tmp_path / "out")
    assert sorted(row["reason"] for row in found) == ["", "duplicate"]
    boxes = {Path(row["source"]).stem: [float(v) for v in row["box"].split()] for row in found}
    x1, y1, x2, y2 = boxes["upright"]
    assert boxes["lying"] == pytest.approx([y1, 319 - x2, y2, 319 - x1], abs=3)  # where it is stored


def test_the_cut_is_that_of_inference(astronaut: np.ndarray, landmarks: np.ndarray) -> None:
    frame = frame_of(astronaut)
    whole = cut_face(frame, landmarks, 512)
    there = cut_out(frame, fit_similarity(landmarks))
    # the astronaut's crop lies wholly inside her picture
    assert inside(landmarks, 512, 512, 512) == 1.0
    np.testing.assert_array_equal(whole, there)
    wide = cut_face(frame, landmarks, 640)
    np.testing.assert_allclose(wide[64:576, 64:576], whole, atol=2e-3)
    small = template_crop(np.rint(cut_face(frame, landmarks, 400) * 255).astype(np.uint8))
    assert np.abs(small - whole)[100:400, 100:400].mean() < 0.01


def test_what_lies_outside_the_picture_is_mirrored(astronaut: np.ndarray, landmarks: np.ndarray) -> None:
    top = int(landmarks[:, 1].min()) - 20
    part, points = astronaut[top:], landmarks - (0, top)
    share = inside(points, 512, part.shape[1], part.shape[0])
    assert 0.5 < share < 0.95
    face, whole = cut_face(frame_of(part), points, 512), cut_face(frame_of(astronaut), landmarks, 512)
    edge = round((1 - share) * 512) + 40
    np.testing.assert_allclose(face[edge:], whole[edge:], atol=5e-3)  # the chroma's blur ends at the edge
    assert np.abs(cut_out(frame_of(part), fit_similarity(points))[2] - (135 / 255, 133 / 255, 132 / 255)).max() < 0.02
    mirrored = face[: edge - 80].std(axis=1).mean()
    assert mirrored > 0.1  # hair and background, no flat grey


@pytest.mark.parametrize(
    ("scale", "wide", "side"), [(0.5, 400, 400), (1.0, 560, 512), (1.0, 800, 640), (2.0, 1400, 640), (2.0, 1100, 512)]
)
def test_the_layout_is_the_largest_that_the_source_fills(scale: float, wide: int, side: int) -> None:
    points = (TEMPLATE - 256) * scale + wide / 2
    assert enlargement(points) == pytest.approx(1 / scale, rel=0.02)
    assert best_side(points, wide, wide) == side


def test_sharpness_falls_with_blur_and_not_with_contrast_or_noise(crop: np.ndarray) -> None:
    sharp = sharpness(crop)
    soft = [sharpness(cv2.GaussianBlur(crop, (0, 0), sigma)) for sigma in (1, 2, 4)]
    assert sharp > soft[0] > soft[1] > soft[2]
    assert sharpness(crop * np.float32(0.5) + np.float32(0.2)) == pytest.approx(sharp, rel=0.01)
    blurred = cv2.GaussianBlur(crop, (0, 0), 2)
    noise = np.random.default_rng(0).normal(0, 8 / 255, crop.shape).astype(np.float32)
    assert sharpness(np.clip(blurred + noise, 0, 1)) < soft[1] * 1.2


def test_a_copy_has_the_same_hash_and_another_picture_has_not(crop: np.ndarray) -> None:
    one = picture_hash(crop)
    stored = cv2.imencode(".jpg", np.rint(crop * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    copy = cv2.imdecode(stored, cv2.IMREAD_COLOR).astype(np.float32) / 255
    shifted, other = moved(crop, 3, 0), crop[:, ::-1].copy()
    near, close, far = hash_distance(np.stack([picture_hash(p) for p in (copy, shifted, other)]), one)
    assert near < 0.03
    assert close < 0.1
    assert far > 0.25


def test_embeddings_decide_whether_alike_is_the_same() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, 256).astype(bool)
    flipped = [bits.copy() for _ in range(3)]
    flipped[1][:10] ^= True  # 4 %: a copy
    flipped[2][:38] ^= True  # 15 %: alike
    hashes = np.packbits(flipped, axis=1)
    assert duplicates(hashes, None, 0.45) == [None, 0, None]
    same, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert duplicates(hashes, np.stack([same, same, same]), 0.45) == [None, 0, 0]
    assert duplicates(hashes, np.stack([same, other, other]), 0.45) == [None, None, 1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_people_are_found_whatever_the_order(seed: int, count: int, each: int) -> None:
    rng = np.random.default_rng(seed)
    faces = np.repeat(np.eye(16)[:count], each, axis=0) + rng.normal(0, 0.05, (count * each, 16))
    who = np.repeat(np.arange(count), each)
    order = rng.permutation(count * each)
    faces = (faces / np.linalg.norm(faces, axis=1, keepdims=True))[order].astype(np.float32)
    labels = people(faces, 0.45)
    assert len(set(zip(labels, who[order].tolist(), strict=True))) == count == len(set(labels))


groups_of_faces = st.lists(st.integers(1, 5), min_size=1, max_size=30).map(
    lambda sizes: [[f"{g}-{n}" for n in range(size)] for g, size in enumerate(sizes)]
)


@given(groups_of_faces, st.floats(0.01, 0.5), st.randoms(use_true_random=False))
def test_nobody_is_on_both_sides_and_nobody_moves_out_of_train(groups, share, random) -> None:  # type: ignore[no-untyped-def]
    first = split(groups, {}, share)
    assert first.keys() == {name for group in groups for name in group}
    assert all(len({first[name] for name in group}) == 1 for group in groups)
    val = sum(place == "val" for place in first.values())
    assert (val > 0) == (len(groups) > 1)
    assert val <= share * len(first) + max(map(len, groups))
    # more data, and people who turn out to be one
    more = [*groups, ["new-0", "new-1"]]
    if len(more) > 2:
        one = more.pop(random.randrange(len(more)))
        more[0] = more[0] + one
    second = split(more, first, share)
    assert all(second[name] == "train" for name, place in first.items() if place == "train")
    assert all(len({second[name] for name in group}) == 1 for group in more)


def test_sets_that_share_a_key_are_tied() -> None:
    assert tied([{1, "a"}, {2, "b"}, {3, "a"}, {3, "b"}, {4}]) == [0, 0, 0, 0, 4]
    assert nearest(np.eye(3, dtype=np.float32), ["train", "train", "val"]) == 0
    assert nearest(np.eye(2, dtype=np.float32), ["train", "train"]) is None


def test_people_are_told_apart_by_an_embedding(photos: Path, face_picture: np.ndarray, tmp_path: Path) -> None:
    grid, source = save_embedding(tmp_path / "grid.onnx"), tmp_path / "in"
    source.mkdir()
    for number in range(2):  # the same again, darker, and mirrored, which this embedding takes for somebody else
        darker = moved(face_picture, 0.3 * number, 0) * (1.0 - 0.3 * number)
        Image.fromarray(np.rint(darker).astype(np.uint8)).save(source / f"a{number}.png")
    Image.fromarray(np.ascontiguousarray(face_picture[:, ::-1])).save(source / "c.png")
    summary = prepare_faces([source], tmp_path / "out", Options(min_size=60, min_sharpness=5, embedding=grid, same=0.9))
    assert summary.by_embedding
    assert summary.nearest is not None
    assert summary.nearest < 0.9
    found = {Path(row["source"]).stem: row for row in rows(tmp_path / "out")}
    assert found["a0"]["identity"] != found["c"]["identity"]
    assert {found["a0"]["reason"], found["a1"]["reason"]} == {"", "duplicate"}
