"""The sample in samples/ is what its README says, and tools/make_sample.py still makes it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest
from conftest import planes

from streamfix.faces.detect import load_detector

ROOT = Path(__file__).resolve().parents[1]
CLEAN, WEBCAM = ROOT / "samples/webcam_clean.mp4", ROOT / "samples/webcam.mp4"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "tools/make_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_sample"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> tuple[list[int], list[np.ndarray]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    images = [f.reformat(format="rgb24", src_colorspace=1, src_color_range=1).to_ndarray() for f in frames]
    return [f.pts for f in frames], images


@pytest.fixture(scope="module")
def clean() -> tuple[list[int], list[np.ndarray]]:
    return read(CLEAN)


@pytest.fixture(scope="module")
def webcam() -> tuple[list[int], list[np.ndarray]]:
    return read(WEBCAM)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_same_frames_at_the_same_times(clean: tuple, webcam: tuple) -> None:
    assert len(clean[0]) == len(webcam[0]) == 175
    assert clean[0] == webcam[0]
    assert {i.shape for i in clean[1] + webcam[1]} == {(360, 640, 3)}


def test_small_enough_for_git() -> None:
    assert CLEAN.stat().st_size + WEBCAM.stat().st_size < 2_500_000


@pytest.mark.parametrize("path", [CLEAN, WEBCAM], ids=["clean", "webcam"])
def test_streams(path: Path) -> None:
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        context = video.codec_context
        assert (video.codec.name, context.pix_fmt, video.average_rate) == ("h264", "yuv420p", 25)
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert (audio.codec.name, audio.rate, audio.layout.name) == ("aac", 48_000, "mono")
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio)])
    assert abs(len(samples) / 48_000 - 7) < 0.1
    assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.5
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")  # plays while it still downloads


def test_face_is_found_moves_and_is_worse_in_the_webcam(clean: tuple, webcam: tuple) -> None:
    detector = load_detector("retinaface")
    found, centres = [], []
    for truth, seen in zip(clean[1], webcam[1], strict=True):
        faces = [f for f in detector.detect(seen) if f.score >= 0.7]
        assert len(faces) <= 1
        if faces:
            x1, y1, x2, y2 = faces[0].box.astype(int)
            assert 110 < y2 - y1 < 200
            centres.append(faces[0].landmarks.mean(axis=0))
            found.append(psnr(truth[y1:y2, x1:x2], seen[y1:y2, x1:x2]))
    assert len(found) >= 0.95 * len(clean[1])
    assert 15 < np.mean(found) < 27, "the webcam must look bad, yet be the same scene"
    assert np.ptp(centres, axis=0).max() > 10


def test_the_tool_makes_these_frames(tool: ModuleType, clean: tuple) -> None:
    source, poses = tool.portrait(), tool.motion(7)
    for i in (0, 70, 174):
        frame = tool.render(source, poses[i], tool.light(i, 7))
        assert np.array_equal(frame, tool.render(tool.portrait(), tool.motion(7)[i], tool.light(i, 7)))
        assert psnr(frame, clean[1][i]) > 34
    sensor = tool.webcam_sensor(frame, 3, 7)
    assert np.array_equal(sensor, tool.webcam_sensor(frame, 3, 7))
    assert not np.array_equal(sensor, tool.webcam_sensor(frame, 4, 7)), "noise must be new in each frame"
    assert tool.motion(8) != poses
    assert np.array_equal(tool.sound(7), tool.sound(7))


def test_colours_are_tagged_as_they_are_coded(tool: ModuleType) -> None:
    """Means by the arithmetic of limited-range BT.709: swscale's own rounding is off by more than a wrong matrix."""
    with av.open(str(CLEAN)) as container:
        picture = next(container.decode(video=0))
    luma, blue, red = (float(p.mean()) for p in planes(picture))
    y, u, v = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    r, b = y + 2 * (1 - 0.2126) * v, y + 2 * (1 - 0.0722) * u
    g = (y - 0.2126 * r - 0.0722 * b) / 0.7152
    frame = tool.render(tool.portrait(), tool.motion(7)[0], tool.light(0, 7))
    assert np.abs(frame.mean(axis=(0, 1)) - 255 * np.array([r, g, b])).max() < 0.5


def test_blinks_cover_the_eyes(tool: ModuleType) -> None:
    """With lids down the dark irises give way to skin, and nothing but the eyes has changed."""
    source, edge = tool.portrait(), 64
    x, y = np.meshgrid(np.arange(640, dtype=np.float32), np.arange(576, dtype=np.float32))
    rows, _ = tool.move_lids(x - edge, y - edge, 1.0)
    shut = cv2.remap(source, x, rows + edge, cv2.INTER_LINEAR)
    changed = np.argwhere(np.any(shut != source, axis=2)) - edge
    assert np.all(changed.min(axis=0) >= [85, 190])
    assert np.all(changed.max(axis=0) <= [109, 262])
    for row, column in ((100, 203), (102, 247)):  # the irises
        spot = slice(row + edge - 1, row + edge + 2), slice(column + edge - 2, column + edge + 3)
        assert shut[spot].mean() > source[spot].mean() + 30
    shut_frames = sum(pose.lids > 0.95 for pose in tool.motion(7))
    assert 5 <= shut_frames <= 20
