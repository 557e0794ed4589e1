"""The wheel: weights travel in it, and the main job runs from anywhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_carries_its_weights_and_runs_elsewhere(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        timeout=200,
    )
    (wheel,) = tmp_path.glob("streamfix-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    assert "streamfix/weights/lite.safetensors" in names
    assert not [n for n in names if n.startswith(("tests", "samples", "weights", "tools"))]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "streamfix",
            "enhance",
            str(ROOT / "samples/webcam.mp4"),
            "-o",
            "out.mp4",
            "--end",
            "0.4",
        ],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert "10 frames, 10 faces" in said.stdout
    assert (elsewhere / "out.mp4").stat().st_size > 1000
    where = [sys.executable, "-c", "import streamfix.models as m; print(m.weights_dir())"]
    place = subprocess.run(
        where, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert Path(place.stdout.strip()) == site / "streamfix" / "weights"
