"""The tools that look at a restorer and at a training: they read what they say and write whole pictures."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import degraded
from PIL import Image

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_contact_sheet_shows_photos_and_clips(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip: Callable[..., Path],
    face_picture: np.ndarray,
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(face_picture).save(tmp_path / "in/portrait.png")
    Image.fromarray(np.zeros_like(face_picture)).save(tmp_path / "in/nobody.png")
    (tmp_path / "in/notes.txt").write_text("not a picture")
    clip("in/talk.mkv", [face_picture] * 12)
    arguments = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--model", "passthrough", "--every", "5"]
    monkeypatch.setattr(sys, "argv", ["sheets.py", *arguments, "--side", "128"])
    load("sheets").main()
    said = capsys.readouterr().out
    assert "no face in nobody.png" in said
    assert "left out notes.txt" in said
    photo = np.asarray(Image.open(tmp_path / "out/photos-1.png")).astype(int)
    assert np.abs(photo[:128, :128] - photo[:128, 128:256]).max() <= 1  # passthrough: both sides are the input
    assert photo[:128, :128].std() > 20
    talk = np.asarray(Image.open(tmp_path / "out/talk-1.png"))
    assert (talk[:128, 2 * (2 * 128 + 6) : 2 * (2 * 128 + 6) + 128].std()) > 20  # frames 0, 5 and 10


def test_what_becomes_of_a_hand_is_measured_in_its_rectangle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip: Callable[..., Path],
    face_picture: np.ndarray,
) -> None:
    soft = degraded(face_picture, seed=0)
    film = clip("talk.mkv", [soft] * 12)
    face, corner = "6:140,60,200,140", "6:0,0,20,20"
    monkeypatch.setattr(sys, "argv", ["check_cover.py", str(film), face, "--out", str(tmp_path / "out")])
    load("check_cover").main()
    monkeypatch.setattr(sys, "argv", ["check_cover.py", str(film), corner])
    load("check_cover").main()
    means = [float(line.split("mean ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()]
    assert min(means[:2]) > 0.5  # the face was restored, with the guard and without
    assert means[2:] == [0.0, 0.0]  # the corner of the frame was not
    before, after = np.split(np.asarray(Image.open(tmp_path / "out/talk-6.png")).astype(int), 2, axis=1)
    assert np.abs(after - before)[60:140, 140:200].mean() == pytest.approx(means[0], abs=0.01)


def test_training_curves_join_the_parts_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (first / "log-until-40.csv").write_text("step,seconds,rate,total\n20,1,1e-4,0.9\n40,2,2e-4,0.8\n60,3,2e-4,9\n")
    (first / "log.csv").write_text("step,seconds,rate,total,id\n60,4,2e-4,0.7,\n80,5,1e-4,0.6,0.3\n")
    (second / "log.csv").write_text("step,seconds,rate,total\n20,1,1e-4,0.5\n")
    tool = load("plot_training")
    curve = tool.read(first)
    assert curve["total"] == [(20, 0.9), (40, 0.8), (60, 0.7), (80, 0.6)]
    assert curve["id"] == [(80, 0.3)]
    monkeypatch.setattr(sys, "argv", ["plot_training.py", str(first), str(second), "--out", str(tmp_path / "c.png")])
    tool.main()
    assert Image.open(tmp_path / "c.png").size[0] > 500
    with pytest.raises(SystemExit, match="streamfix train"):
        tool.read(tmp_path / "nowhere")
