"""Real media for the tests, made from scikit-image's public-domain astronaut or from noise."""

import os

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    # each worker its share of the cores: threads that wait for a core spin, and take it from the others. Before torch is loaded
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from skimage import data


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """uint8 (512, 512, 3) RGB; the face is about 100 px wide around (225, 120)."""
    return data.astronaut()


@pytest.fixture(scope="session")
def face_picture(astronaut: np.ndarray) -> np.ndarray:
    """uint8 (240, 320, 3) RGB: head and shoulders."""
    return np.ascontiguousarray(cv2.resize(astronaut[0:240, 60:380], (320, 240), interpolation=cv2.INTER_AREA))


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def planes(picture: av.VideoFrame) -> list[np.ndarray]:
    """The visible samples of every plane of a planar 8-bit picture."""
    return [
        np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width].copy()
        for p in picture.planes
    ]


def write_clip(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    codec: str = "ffv1",
    pixel_format: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    sound: bool = False,
) -> Path:
    """A video of RGB images, lossless by default, with one AAC track of noise on request."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base
        stream.time_base = time_base
        audio = container.add_stream("aac", rate=48000, layout="mono") if sound else None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
                format=pixel_format
            )
            frame.pts = number if pts is None else pts[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            samples = (rng.standard_normal((1, 1024 * 2 * len(images))) * 0.05).astype(np.float32)
            for start in range(0, samples.shape[1], 1024):
                chunk = av.AudioFrame.from_ndarray(samples[:, start : start + 1024], format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts = 48000, start
                container.mux(audio.encode(chunk))
            container.mux(audio.encode(None))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, images: Sequence[np.ndarray], **options: object) -> Path:
        return write_clip(tmp_path / name, images, **options)  # type: ignore[arg-type]

    return make


def moved(picture: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The picture shifted by a fraction of a pixel, reflected at the border."""
    height, width = picture.shape[:2]
    matrix = np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def degraded(picture: np.ndarray, seed: int) -> np.ndarray:
    """Half the size, blurred, noisy, and back: what a bad camera gives."""
    height, width = picture.shape[:2]
    small = cv2.resize(cv2.GaussianBlur(picture, (0, 0), 1.5), (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    noisy = small + np.random.default_rng(seed).normal(0, 6, small.shape)
    return cv2.resize(np.clip(noisy, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.fixture
def stretch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many frames a stretch has."""

    def patch(frames: int) -> None:
        for module in ("media.segments", "media.video_sink", "jobs"):
            monkeypatch.setattr(f"streamfix.{module}.SEGMENT", frames)

    return patch
