"""The loop that all trainings share: steps, the clock, figures and checkpoints, until the length of the run is reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from streamfix.train.log import Log
from streamfix.train.ranks import Ranks

Report = Callable[[int, float, dict[str, float]], None]
"""Called with (step, share of the run that is done, mean losses since the last call)."""


class Settings(Protocol):
    """What the loop reads of a configuration."""

    @property
    def log_every(self) -> int:
        """Steps between two lines of figures."""

    @property
    def save_every(self) -> float:
        """Seconds between two checkpoints."""


class Learner(Protocol):
    """What the loop drives. seconds: of training, over all resumptions."""

    step: int
    seconds: float
    ranks: Ranks

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One update; the unweighted terms and their weighted sum as `total`."""

    def progress(self) -> float:
        """Share of the run that is done, 0..1."""

    def rate(self) -> float:
        """Learning rate of the current step."""

    def save(self) -> None:
        """Write the checkpoint; a kill in between leaves the old one whole."""


def learn(
    learner: Learner, settings: Settings, batches: Iterable[dict[str, Tensor]], log: Log | None, report: Report | None
) -> None:
    """Train until the run is done; the last state is saved, and so is what Ctrl-C leaves."""
    sums: dict[str, tuple[float, int]] = {}  # by term: not every step has every one
    saved = started = time.monotonic()
    try:
        for batch in batches:
            losses = learner.train_step(batch)
            now = time.monotonic()
            # the clock of a run in minutes decides the rate, so all processes go by one
            learner.seconds += learner.ranks.mean_values({"seconds": now - started})["seconds"]
            started = now
            for name, value in losses.items():
                before, count = sums.get(name, (0.0, 0))
                sums[name] = before + value, count + 1
            done = learner.progress()
            if learner.step % settings.log_every == 0 or done >= 1:
                means = {name: total / count for name, (total, count) in sums.items()}
                if log is not None:
                    log.write(learner.step, learner.seconds, learner.rate(), means)
                if report and learner.ranks.first:
                    report(learner.step, done, means)
                sums = {}
            if done >= 1:
                break
            if now - saved > settings.save_every:
                learner.save()
                saved = time.monotonic()
    except (KeyboardInterrupt, SystemExit):  # SIGTERM unwinds as the latter
        learner.save()  # the step in hand is lost at most, and done again on resumption
        raise
    learner.save()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What every run is decided by.

    data: folder of aligned faces. run: folder of the run. steps, or minutes of wall time spent in training (over all
    resumptions). rate falls along a cosine to last_rate after `warmup` steps. batch: faces per step, of all processes.
    """

    data: Path
    run: Path
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    rate: float = 1e-3
    last_rate: float = 2e-5
    warmup: int = 100
    decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    batch: int = 8
    device: str = "auto"
    workers: int = 0
    threads: int | None = None
    save_every: float = 120.0
    log_every: int = 20
