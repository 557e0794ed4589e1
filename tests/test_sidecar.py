"""The file beside an output that says where its faces come from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_jobs import broken_off, pipeline
from conftest import degraded
from media_files import make_video

from streamfix import enhance
from streamfix.errors import OutputError


def test_a_sidecar_says_where_the_faces_come_from(
    stretch: Callable[[int], None], clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path
) -> None:
    stretch(32)
    small = np.ascontiguousarray(face_picture[::2, ::2])
    source = clip("in.mkv", [degraded(small, n) for n in range(50)])
    output, beside = tmp_path / "out.mkv", tmp_path / "out.mkv.json"
    options = {"resume": True, "sidecar": True, "codec": "ffv1"}
    with pytest.raises(KeyboardInterrupt):
        enhance(source, output, pipeline=pipeline(), progress=broken_off(40), **options)
    assert not beside.exists()
    enhance(source, output, pipeline=pipeline(), **options)
    facts = json.loads(beside.read_text())
    for key, path in (("input", source), ("output", output)):
        whole = path.read_bytes()
        assert facts[key] == {"name": path.name, "bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    assert facts["model"] == {"name": "sharper", "sha256": "0" * 64, "device": "cpu", "dtype": "float32"}
    assert "not evidence" in facts["notice"]
    assert facts["settings"]["codec"] == "ffv1"
    assert (facts["frames"], facts["frames_with_faces"], facts["faces"]) == (50, 50, 50)
    (track,) = facts["tracks"]
    assert (track["frames"], track["first_s"], track["last_s"]) == (50, 0.0, 1.96)
    assert track["face_px"] == pytest.approx(36, rel=0.1)  # of a crop of 60
    assert 0.05 < track["used_mean"] < track["used_most"] <= 1
    # a face that is sharp already is left, and the file says so
    enhance(source, output, model="passthrough", sidecar=True, overwrite=True, codec="ffv1")
    (track,) = json.loads(beside.read_text())["tracks"]
    assert (track["used_mean"], track["used_most"]) == (0, 0)


def test_a_sidecar_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3)
    (tmp_path / "out.mp4.json").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.mp4\.json exists already"):
        enhance(source, tmp_path / "out.mp4", model="passthrough", sidecar=True)
    assert not (tmp_path / "out.mp4").exists()
    enhance(source, tmp_path / "out.mp4", model="passthrough", sidecar=True, overwrite=True)
    assert json.loads((tmp_path / "out.mp4.json").read_text())["tracks"] == []


def test_a_sidecar_with_too_long_a_name_is_told_before_any_work(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3)
    output = tmp_path / f"{'n' * 243}.mp4"
    with pytest.raises(OutputError, match="is too long for this disk; choose a shorter one"):
        enhance(source, output, model="passthrough", sidecar=True)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]
    assert enhance(source, output, model="passthrough").frames == 3
