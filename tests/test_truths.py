"""What must always be true of an output, whatever the input (CONTRIBUTING.md)."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import decode, degraded, moved, planes

from streamfix import enhance, load_pipeline
from streamfix.compose import face_mask
from streamfix.errors import ModelError, StreamfixError
from streamfix.pipeline import Pipeline
from streamfix.types import Frame

LOSSLESS = {"codec": "ffv1"}


@pytest.fixture(scope="module")
def lite() -> Pipeline:
    return load_pipeline(model="lite", detector="retinaface")


def test_freeze(clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline) -> None:
    still = degraded(face_picture, 0)
    source = clip("still.mkv", [still] * 30)
    report = enhance(source, tmp_path / "out.mkv", pipeline=lite, **LOSSLESS)
    assert report.faces == 30
    frames = [b"".join(p.tobytes() for p in planes(f)) for f in decode(tmp_path / "out.mkv")]
    assert frames[0] != b"".join(p.tobytes() for p in planes(decode(source)[0]))
    assert len(set(frames)) == 1


def test_batch(face_picture: np.ndarray, tmp_path: Path, lite: Pipeline, clip: Callable[..., Path]) -> None:
    """A face restored alone or among others is the same face, however the batches fall."""
    images = [degraded(moved(face_picture, n, 0), n) for n in range(10)]
    source = clip("in.mkv", images)
    results = []
    for size in (1, 3, 8):
        pipeline = Pipeline(restorer=lite.restorer, detector=lite.detector, batch_size=size)
        enhance(source, tmp_path / f"{size}.mkv", pipeline=pipeline, **LOSSLESS)
        results.append(np.stack([planes(f)[0].astype(int) for f in decode(tmp_path / f"{size}.mkv")]))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert np.abs(results[0] - results[2]).max() <= 1


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv444p"])
def test_elsewhere(
    pixel_format: str, clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline
) -> None:
    """Samples outside the mask are the input's, frames without a face wholly so."""
    rng = np.random.default_rng(0)
    empty = rng.integers(0, 255, face_picture.shape, dtype=np.uint8)
    wide = [np.concatenate([degraded(face_picture, n), empty], axis=1) for n in range(8)]
    source = clip("in.mkv", [*wide, *[np.concatenate([empty, empty], axis=1)] * 8], pixel_format=pixel_format)
    enhance(source, tmp_path / "out.mkv", pipeline=lite, **LOSSLESS)
    before, after = decode(source), decode(tmp_path / "out.mkv")
    assert [f.format.name for f in after] == [f.format.name for f in before]
    changed = 0
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        for a, b in zip(planes(old), planes(new), strict=True):
            half = a.shape[1] // 2
            assert np.array_equal(a[:, half:], b[:, half:])
            assert number < 8 or np.array_equal(a, b)
            changed += int((a != b).sum())
    assert changed > 10_000


def test_time(clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline) -> None:
    """Uneven time stamps survive to the tick, sound packet for packet."""
    steps = np.random.default_rng(1).integers(100, 2000, 24).cumsum().tolist()
    images = [degraded(moved(face_picture, 0.5 * n, 0), n) for n in range(24)]
    source = clip(
        "in.mp4", images, codec="libx264", pts=[p - steps[0] for p in steps], time_base=Fraction(1, 30000), sound=True
    )
    for name in ("out.mp4", "out.mov"):
        enhance(source, tmp_path / name, pipeline=lite)
        before, after = decode(source), decode(tmp_path / name)
        assert [f.pts * f.time_base for f in after] == [f.pts * f.time_base for f in before]
        assert sound_packets(tmp_path / name) == sound_packets(source)


def sound_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]


def test_memory_is_bounded(face_picture: np.ndarray, lite: Pipeline) -> None:
    """However long the stream, only a window of frames is alive."""
    alive: set[int] = set()
    most = 0

    def endless() -> Iterator[Frame]:
        nonlocal most
        for index in range(400):
            picture = av.VideoFrame.from_ndarray(face_picture[:96, :128].copy(), format="rgb24")
            frame = Frame(picture=picture, index=index, pts=index, time_base=Fraction(1, 25))
            alive.add(index)
            weakref.finalize(picture, alive.discard, index)
            most = max(most, len(alive))
            yield frame

    pipeline = Pipeline(restorer=lite.restorer, detector=lite.detector, lookahead=12, batch_size=4)
    count = sum(1 for _ in pipeline.run(endless()))
    gc.collect()
    assert count == 400
    assert most <= 12 + 4 + 4 + 2 + 2 * 4 + 8


class Broken:
    name, sha256, device, dtype = "broken", None, torch.device("cpu"), torch.float32

    def __init__(self, how: str) -> None:
        self.how = how

    def restore(self, crops: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        if self.how == "raise":
            raise ModelError("the restorer ran out of memory; use a smaller --batch-size")
        return torch.full_like(crops, float("nan"))


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_no_silence(
    how: str, clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline
) -> None:
    """A failing model ends the job with its reason; nothing lies at the output, no thread stays behind."""
    source = clip("in.mkv", [face_picture] * 20)
    pipeline = Pipeline(restorer=Broken(how), detector=lite.detector)
    before = threading.active_count()
    with pytest.raises(StreamfixError):
        enhance(source, tmp_path / "out.mkv", pipeline=pipeline)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv"]
    assert threading.active_count() == before


def test_it_helps(clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline) -> None:
    """Restored faces are closer to the truth than the degraded input, inside the mask."""
    big = np.ascontiguousarray(np.kron(face_picture, np.ones((2, 2, 1), np.uint8)))
    source = clip("in.mkv", [degraded(big, n) for n in range(6)])
    enhance(source, tmp_path / "out.mkv", pipeline=lite, **LOSSLESS)
    truth = av.VideoFrame.from_ndarray(big, format="rgb24").reformat(format="yuv420p")
    want = planes(truth)[0].astype(float)
    before, after = (np.stack([planes(f)[0].astype(float) for f in decode(p)]) for p in (source, tmp_path / "out.mkv"))
    assert float(face_mask().mean()) > 0.3
    assert ((after - want) ** 2).mean() < ((before - want) ** 2).mean()
