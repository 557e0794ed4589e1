"""Jobs that are broken off, and what they are made with: a detector and a restorer that are cheap and tell what they did."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from streamfix import Pipeline, Report
from streamfix.faces.align import template
from streamfix.media import open_sink, open_source
from streamfix.media.segments import Segments
from streamfix.types import Face, Image


class Counting:
    """A face in the middle, which jitters as the picture's light does, with an embedding every other time; counts its calls."""

    name = "counting"

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, image: Image) -> list[Face]:
        self.calls += 1
        height, width = image.shape[:2]
        side, at = height / 2, image.mean() % 1
        box = np.array([width / 2 - side / 2, side / 2, width / 2 + side / 2, 3 * side / 2], np.float32)
        points = template(round(side)) + box[:2] + at
        vector = np.full(4, 0.5, np.float32) if int(image[0, 0, 0]) % 2 else None
        return [Face(box=box, landmarks=points.astype(np.float32), score=0.9 + at / 20, embedding=vector)]


class Sharper:
    """Detail made stronger, by the picture's light so much that the guard takes it for sharp or not, and by its last answer."""

    name, sha256, device, dtype, recurrent = "sharper", "0" * 64, torch.device("cpu"), torch.float32, True

    def __init__(self) -> None:
        self.crops = 0

    def restore(self, crops: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        self.crops += len(crops)
        gain = 0.3 + 1.2 * (300 * crops.mean((1, 2, 3), keepdim=True)).remainder(1)
        return (crops + gain * (crops - crops.roll(1, -1))).clamp(-1, 1)

    def restore_next(
        self, crops: torch.Tensor, states: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        restored = self.restore(crops)
        for face, state in zip(restored, states, strict=True):
            if state is not None:
                face.lerp_(state, 0.7)
        return restored, list(restored)


def pipeline(*, recurrent: bool = False) -> Pipeline:
    return Pipeline(restorer=Sharper(), detector=Counting(), recurrent=recurrent)  # type: ignore[arg-type]


def broken_off(at: int) -> Callable[[Report], None]:
    def stop(report: Report) -> None:
        if report.frames == at:
            raise KeyboardInterrupt

    return stop


def kept(output: Path) -> list[str]:
    return sorted(p.name for p in output.parent.glob(f".{output.name}.job/*"))


def copied(source: Path, output: Path, *, stop: int | None = None, **options: object) -> Path:
    folder = output.with_name(f".{output.name}.job")
    parts = Segments(folder, {})
    with (
        open_source(source) as frames,
        open_sink(output, like=frames, overwrite=True, segments=parts, **options) as sink,
    ):
        for frame in frames:
            if frame.index == stop:
                raise KeyboardInterrupt
            sink.write(frame)
    parts.remove()
    return output
