"""What must always be true of an output, whatever the input (CONTRIBUTING.md)."""

import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import decode, degraded, moved, planes

from streamfix import enhance, load_pipeline
from streamfix.compose import face_mask
from streamfix.errors import ModelError, StreamfixError, UsageError
from streamfix.media.source import open_source
from streamfix.pipeline import Pipeline
from streamfix.restore.base import RecurrentRestorer, load_restorer
from streamfix.types import Frame, Placement

LOSSLESS = {"codec": "ffv1"}


@pytest.fixture(scope="module")
def lite() -> Pipeline:
    return load_pipeline(model="lite", detector="retinaface")


def test_a_pipeline_is_described_once(lite: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="load_pipeline's where a pipeline is given"):
        enhance("nowhere.mp4", tmp_path / "out.mkv", pipeline=lite, strength=0.5)


def test_a_batch_of_nobody_and_a_look_back_are_refused(lite: Pipeline) -> None:
    for wrong in ({"batch_size": 0}, {"lookahead": -1}):
        with pytest.raises(UsageError, match="at least 1 face"):
            Pipeline(restorer=lite.restorer, detector=lite.detector, **wrong)


def test_freeze(clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline) -> None:
    still = degraded(face_picture, 0)
    source = clip("still.mkv", [still] * 16)
    report = enhance(source, tmp_path / "out.mkv", pipeline=lite, **LOSSLESS)
    assert report.faces == 16
    frames = [b"".join(p.tobytes() for p in planes(f)) for f in decode(tmp_path / "out.mkv")]
    assert frames[0] != b"".join(p.tobytes() for p in planes(decode(source)[0]))
    assert len(set(frames)) == 1


def test_batch(face_picture: np.ndarray, tmp_path: Path, lite: Pipeline, clip: Callable[..., Path]) -> None:
    """A face restored alone or among others is the same face, however the batches fall."""
    # neighbours that differ in light; five, so that no batch comes out even
    images = [degraded(moved(face_picture, n, 0), n) // (1 + n % 3) for n in range(5)]
    source = clip("in.mkv", images)
    results = []
    for size in (1, 3, 8):
        pipeline = Pipeline(restorer=lite.restorer, detector=lite.detector, batch_size=size)
        enhance(source, tmp_path / f"{size}.mkv", pipeline=pipeline, **LOSSLESS)
        results.append(np.stack([planes(f)[0].astype(int) for f in decode(tmp_path / f"{size}.mkv")]))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert np.abs(results[0] - results[2]).max() <= 1


class Counting:
    """The restorer of a pipeline, with a count of the crops that it was given."""

    def __init__(self, inner: RecurrentRestorer) -> None:
        self.inner, self.crops = inner, 0
        self.name, self.sha256, self.device, self.dtype = inner.name, inner.sha256, inner.device, inner.dtype
        self.recurrent = inner.recurrent

    def restore(self, crops: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        self.crops += len(crops)
        return self.inner.restore(crops, noise)

    def restore_next(
        self, crops: torch.Tensor, states: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.crops += len(crops)
        return self.inner.restore_next(crops, states)


@pytest.mark.parametrize("recurrent", [True, False])
def test_a_picture_that_repeats_is_restored_once(
    recurrent: bool, face_picture: np.ndarray, tmp_path: Path, lite: Pipeline, clip: Callable[..., Path]
) -> None:
    """A slow camera in a fast file: three frames a picture."""
    images = [degraded(moved(face_picture, 2 * n, 0), n) for n in range(5) for _ in range(3)]
    source = clip("in.mkv", images)
    counting = Counting(lite.restorer)  # type: ignore[arg-type]
    pipeline = Pipeline(restorer=counting, detector=lite.detector, batch_size=1, recurrent=recurrent)
    report = enhance(source, tmp_path / "out.mkv", pipeline=pipeline, **LOSSLESS)
    assert report.faces == 15
    assert counting.crops <= 5 + 4  # warming up for the next window restores some of them twice
    frames = [b"".join(p.tobytes() for p in planes(f)) for f in decode(tmp_path / "out.mkv")]
    assert all(len(set(frames[n : n + 3])) == 1 for n in range(0, 15, 3))
    assert len(set(frames)) == 5


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv444p"])
def test_elsewhere(
    pixel_format: str, clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline
) -> None:
    """Samples outside the mask are the input's, frames without a face wholly so."""
    rng = np.random.default_rng(0)
    empty = rng.integers(0, 255, face_picture.shape, dtype=np.uint8)
    wide = [np.concatenate([degraded(face_picture, n), empty], axis=1) for n in range(4)]
    codec = "libx264" if pixel_format == "yuvj420p" else "ffv1"
    empties = [np.concatenate([empty, empty], axis=1)] * 4
    source = clip("in.mkv", [*wide, *empties], pixel_format=pixel_format, codec=codec)
    enhance(source, tmp_path / "out.mkv", pipeline=lite, **LOSSLESS)
    before, after = decode(source), decode(tmp_path / "out.mkv")
    assert [f.format.name.replace("j", "") for f in after] == [f.format.name.replace("j", "") for f in before]
    assert [f.color_range for f in after] == [f.color_range for f in before]
    with open_source(source) as frames:
        masks = [outside(placements, frame) for frame, placements in lite.place(lite.detect(frames))]
    changed = 0
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        for a, b in zip(planes(old), planes(new), strict=True):
            step = old.height // a.shape[0], old.width // a.shape[1]
            keep = masks[number][:: step[0], :: step[1]]
            assert keep.mean() > 0.5
            assert np.array_equal(a[keep], b[keep])
            assert number < 4 or np.array_equal(a, b)
            changed += int((a != b).sum())
    assert changed > 5_000


def outside(placements: list[Placement], frame: Frame) -> np.ndarray:
    """bool (H, W): where no mask reaches, with three pixels to spare for chroma and interpolation."""
    reached = np.zeros((frame.height, frame.width), np.float32)
    for placement in placements:
        size = (frame.width, frame.height)
        reached += cv2.warpAffine(np.asarray(face_mask()), placement.matrix, size, flags=cv2.WARP_INVERSE_MAP)
    return cv2.dilate(reached, np.ones((7, 7))) == 0


def test_time(clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, lite: Pipeline) -> None:
    """Uneven time stamps survive to the tick, sound packet for packet, whatever restores."""
    pipeline = Pipeline(restorer=load_restorer("passthrough"), detector=lite.detector)
    steps = np.random.default_rng(1).integers(100, 2000, 24).cumsum().tolist()
    images = [degraded(moved(face_picture, 0.5 * n, 0), n) for n in range(24)]
    source = clip(
        "in.mp4", images, codec="libx264", pts=[p - steps[0] for p in steps], time_base=Fraction(1, 30000), sound=True
    )
    for name in ("out.mp4", "out.mov"):
        enhance(source, tmp_path / name, pipeline=pipeline)
        before, after = decode(source), decode(tmp_path / name)
        assert [f.pts * f.time_base for f in after] == [f.pts * f.time_base for f in before]
        assert sound_packets(tmp_path / name) == sound_packets(source)


def sound_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]


def test_memory_is_bounded(face_picture: np.ndarray, lite: Pipeline) -> None:
    """However long the stream, only a window of frames has been read beyond what has been written."""
    read, most = 0, 0

    def long() -> Iterator[Frame]:
        nonlocal read
        for read in range(1, 401):
            picture = av.VideoFrame.from_ndarray(face_picture[:96, :128].copy(), format="rgb24")
            yield Frame(picture=picture, index=read - 1, pts=read - 1, time_base=Fraction(1, 25))

    pipeline = Pipeline(restorer=lite.restorer, detector=lite.detector, lookahead=12, batch_size=4)
    written = 0
    for frame in pipeline.run(long()):
        assert frame.index == written
        written += 1
        most = max(most, read - written)
    assert written == 400
    assert most <= 12 + 2 * 4 + (4 + 4 + 2) + 6  # lookahead, batch, queues, one in the hands of each stage


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


def gradients(luma: np.ndarray) -> float:
    return float((np.diff(luma, axis=0) ** 2).mean() + (np.diff(luma, axis=1) ** 2).mean())


def test_it_helps(tmp_path: Path, lite: Pipeline) -> None:
    """On the sample the restored face is about as near to the truth in PSNR and much nearer in sharpness."""
    samples = Path(__file__).parent.parent / "samples"
    enhance(samples / "webcam.mp4", tmp_path / "out.mkv", pipeline=lite, end=0.32, **LOSSLESS)
    eyes_to_mouth = (slice(100, 240), slice(230, 350))
    files = (samples / "webcam_clean.mp4", samples / "webcam.mp4", tmp_path / "out.mkv")
    truth, before, after = (
        np.stack([planes(f)[0][eyes_to_mouth].astype(float) for f in decode(file)[:8]]) for file in files
    )
    psnr_before, psnr_after = (-10 * np.log10(((x - truth) ** 2).mean() / 255**2) for x in (before, after))
    assert psnr_after > psnr_before - 0.3
    sharp = [np.mean([gradients(f) for f in x]) / np.mean([gradients(f) for f in truth]) for x in (before, after)]
    assert abs(np.log(sharp[1])) < 0.8 * abs(np.log(sharp[0]))
