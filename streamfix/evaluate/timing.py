"""How long a restorer takes: after a warm-up, waiting for the device, one face at a time and in batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamfix.errors import UsageError
from streamfix.restore.base import BATCH_SIZES, Restorer

_FEWEST, _MOST = 3, 30


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds a face by batch size. stopped: why larger batches were not tried, None where all were."""

    seconds: dict[int, float] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def single(self) -> float:
        """Seconds of one face alone."""
        return self.seconds[1]

    @property
    def best(self) -> tuple[int, float]:
        """The batch size with the shortest time a face, and that time."""
        size = min(self.seconds, key=lambda b: self.seconds[b])
        return size, self.seconds[size]


def time_restorer(
    restorer: Restorer,
    faces: Tensor,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budget: float = 10.0,
    longest: float = 120.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `restorer.restore` on faces that lie on its device already: no decoding, no copies, no metrics.

    faces: (N, 3, 512, 512) in [-1, 1], repeated as batches need. batch_sizes: ascending, beginning with 1. Each size is
    called twice unseen (compilation, choice of kernels, clocks), then at least 3 and at most 30 times until `budget`
    seconds are gone; the median counts. A batch that is expected to take longer than `longest` seconds a call is left out, and so is
    one that does not fit into the GPU's memory.
    """
    if not batch_sizes or batch_sizes[0] != 1 or list(batch_sizes) != sorted(set(batch_sizes)):
        raise UsageError(f"batch sizes begin with 1 and ascend, unlike {list(batch_sizes)}")
    seconds: dict[int, float] = {}
    for size in batch_sizes:
        if size > 1 and size * seconds[max(seconds)] > longest:
            return Timing(seconds, f"a batch of {size} would take more than {longest:g} s")
        batch = faces[torch.arange(size) % len(faces)].to(restorer.device)
        try:
            seconds[size] = _median(restorer, batch, budget, clock) / size
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            if size == 1:
                raise
            return Timing(seconds, f"a batch of {size} does not fit into the memory of {restorer.device}")
    return Timing(seconds)


def _median(restorer: Restorer, batch: Tensor, budget: float, clock: Callable[[], float]) -> float:
    def once() -> float:
        _wait(restorer.device)
        began = clock()
        restorer.restore(batch)
        _wait(restorer.device)
        return clock() - began

    for _ in range(2):
        once()
    taken: list[float] = []
    while len(taken) < _FEWEST or (len(taken) < _MOST and sum(taken) < budget):
        taken.append(once())
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given: kernels are only queued by a call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
