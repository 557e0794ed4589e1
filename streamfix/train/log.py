"""The figures of a run: config.json, log.csv, and TensorBoard events where TensorBoard is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol


class Configuration(Protocol):
    """A dataclass that decides a run."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def run(self) -> Path:
        """Folder of the run."""


class Log:
    """Appends to the log of a run that stands at `step`; `terms` are the loss columns, in order.

    A term that a step did not have (identity on windows, the adversary before its start) is an empty cell. A log.csv
    with other columns, from before the run was given other losses, is kept as log-until-STEP.csv.
    """

    def __init__(self, config: Configuration, step: int, terms: Sequence[str]) -> None:
        config.run.mkdir(parents=True, exist_ok=True)
        (config.run / "config.json").write_text(json.dumps(asdict(config), default=str, indent=1))
        self._terms = tuple(terms)
        header = ",".join(("step", "seconds", "rate", *self._terms))
        path = config.run / "log.csv"
        if path.is_file() and _first_line(path) not in ("", header):
            path.rename(config.run / f"log-until-{step}.csv")
        self._file = path.open("a")
        if self._file.tell() == 0:
            self._file.write(header + "\n")
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(config.run), purge_step=step)
        except ImportError:
            pass  # an extra: log.csv holds the same figures

    def write(self, step: int, seconds: float, rate: float, losses: dict[str, float]) -> None:
        """One line; losses by term."""
        cells = (f"{losses[t]:.5f}" if t in losses else "" for t in self._terms)
        self._file.write(",".join((str(step), f"{seconds:.0f}", f"{rate:.3e}", *cells)) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in losses.items():
                self._board.add_scalar(f"loss/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _first_line(path: Path) -> str:
    with path.open() as file:
        return file.readline().rstrip("\n")
