"""The wheel: weights travel in it, and the main job runs from anywhere. And what a program around the package relies on."""

import gc
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from streamfix.prefetch import prefetch

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


def test_the_names_of_the_package_are_there_before_they_are_loaded() -> None:
    names = "import sys, streamfix; print(*dir(streamfix)); assert 'torch' not in sys.modules; from streamfix import *; enhance"
    said = subprocess.run([sys.executable, "-c", names], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert {"enhance", "load_pipeline", "load_restorer", "Pipeline", "Report"} <= set(said.stdout.split())


def test_stages_that_nobody_closed_may_be_collected_in_a_thread_of_their_own() -> None:
    forgotten = threading.Event()
    before = set(threading.enumerate())

    def collecting() -> Iterator[int]:
        for number in range(1000):
            time.sleep(0.02)
            if forgotten.is_set():
                gc.collect()
            yield number

    class Job:  # a cycle, as a traceback or a callback makes one
        def __init__(self) -> None:
            first = prefetch(collecting(), 4)
            self.frames, self.me = prefetch((number for number in first), 2), self

    gc.disable()
    try:
        job = Job()
        next(job.frames)
        del job
        forgotten.set()
        patience = time.monotonic() + 5
        while set(threading.enumerate()) - before and time.monotonic() < patience:
            time.sleep(0.02)
    finally:
        gc.enable()
    assert not set(threading.enumerate()) - before
