"""Curves of every track: what is in them, and the picture of them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import degraded
from face_scenes import face, placed, scene
from typer.testing import CliRunner

from streamfix.cli import app
from streamfix.curves import COLUMNS, Curves, check_plotting
from streamfix.errors import DependencyError, OutputError, UsageError
from streamfix.inspection import inspect
from streamfix.restraint import Restraint


@pytest.fixture
def video(clip: Callable[..., Path], face_picture: np.ndarray) -> Path:
    """A bad camera that hardly moves, then an empty wall."""
    wall = np.full_like(face_picture, 128)
    return clip("in.mkv", [degraded(face_picture, i) for i in range(6)] + [wall] * 2)


def noted(people: list[list], **options: object) -> Curves:
    curves = Curves()
    frames = scene(people)
    for entry, placements in zip(frames, placed(frames, **options), strict=True):
        curves.add(entry.frame, placements)
    return curves


def test_columns_say_what_was_seen_and_done() -> None:
    curves = noted([[face(200, 200, 80, score=0.9)] if i != 5 else [] for i in range(12)])
    (track,) = curves.tracks
    frame = scene([[]] * 12)[11].frame
    weight = np.full((512, 512), 0.4, np.float32)
    curves.judged(frame, 0, Restraint(0.5, weight))
    facts = track.facts
    assert facts["frame"] == list(range(12))
    assert {len(facts[name]) for name in COLUMNS} == {12}
    assert facts["time_s"][10] == pytest.approx(0.4)
    assert facts["score"][4:7] == [0.9, None, 0.9]
    assert facts["yaw_deg"][5] is None
    assert facts["size_px"][5] == pytest.approx(80, rel=0.01)
    assert facts["strength"][5] == 1
    assert facts["sharpness"][10:] == [None, 0.5]
    assert facts["cover"][11] == pytest.approx(0.2, abs=1e-4)
    assert track.restored()[11] == pytest.approx(0.4, abs=1e-6)
    assert np.isnan(track.restored()[:11]).all()
    with pytest.raises(ValueError, match="not in frame"):
        curves.judged(scene([[]] * 30)[29].frame, 0, Restraint(1.0, weight))


def test_the_picture_has_a_row_for_each_of_the_longest_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamfix.curves.MOST_TRACKS", 2)
    heights = []
    for number in (0, 1, 2, 3):
        people = [[face(60 + 90 * k, 200, 60) for k in range(number)]] * 4
        curves = noted(people)
        assert len(curves.tracks) == number
        out = tmp_path / f"{number}.png"
        curves.save(out, title="in.mp4", faces={0: np.full((128, 128, 3), 200, np.uint8)})
        image = cv2.imread(str(out))
        assert image.shape[1] == 1900
        heights.append(image.shape[0])
    assert heights[0] == heights[1] < heights[2] == heights[3]
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(OutputError, match="does not exist"):
        curves.save(tmp_path / "nowhere" / "c.png", title="", faces={})


def test_inspect_restores_and_draws(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "curves.png"
    call = ["inspect", str(video), "--detector", "retinaface"]
    result = CliRunner().invoke(app, [*call, "--curves", str(out), "--model", "lite", "--json"])
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    (curves,) = facts["curves"]
    assert len(facts["tracks"]) == 1
    seen = [i for i, score in enumerate(curves["score"]) if score is not None]
    assert [curves["frame"][i] for i in seen] == list(range(6))
    # what was restored has been judged, and only that: a noisy face lacks detail, and nothing covers it
    for strength, sharpness, cover in zip(curves["strength"], curves["sharpness"], curves["cover"], strict=True):
        assert (strength > 0) == (sharpness is not None)
        assert bool(sharpness) == (cover is not None)
    assert curves["sharpness"][3] > 0.9
    assert curves["cover"][3] < 0.1
    picture = cv2.imread(str(out))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000  # axes, lines and a face
    plain = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    assert "curves" not in plain
    assert plain["tracks"] == facts["tracks"]


def test_pictures_that_stand_alone_have_curves_too(face_picture: np.ndarray, tmp_path: Path) -> None:
    photo, out = tmp_path / "a.png", tmp_path / "c.png"
    cv2.imwrite(str(photo), face_picture[..., ::-1])
    found = inspect(photo, detector="retinaface", curves=True, model="passthrough")
    (track,) = found.facts["curves"]
    assert (track["sharpness"], track["cover"]) == ([0.0], [None])  # nothing was changed
    assert found.curves.tracks[0].restored().tolist() == [0.0]
    found.save_curves(out)
    assert out.stat().st_size > 10_000
    with pytest.raises(UsageError, match="no curves"):
        inspect(photo, detector="retinaface").save_curves(out)


def test_wrong_calls_are_told_before_the_work(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*options: str) -> str:
        result = CliRunner().invoke(app, ["inspect", str(video), *options])
        assert result.exit_code in (1, 2)
        return " ".join(result.stderr.split())

    assert "picture of the curves is a PNG" in told("--curves", "c.svg")
    both = str(tmp_path / "x.png")
    assert "both name" in told("--curves", both, "--sheet", both)
    assert "does not exist" in told("--curves", str(tmp_path / "no" / "c.png"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"pip install 'streamfix\[plot\]'"):
        check_plotting()
    assert "streamfix[plot]" in told("--curves", both)
