"""What the commands that train share: their common options, and the bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from streamfix.cli.common import err

Data = Annotated[Path, typer.Option(help="Folder of aligned faces: 512x512, 640x640 or 400x400 with margin.")]
Run = Annotated[Path, typer.Option(help="Folder of the run; an existing run goes on where it stands.")]
Lpips = Annotated[Path, typer.Option(help="LPIPS weights (.pth).")]
Steps = Annotated[int | None, typer.Option(help="Length of the run in steps.", min=1)]
Minutes = Annotated[float | None, typer.Option(help="Length of the run in minutes of training.", min=0)]
Batch = Annotated[int, typer.Option(help="Faces per step.", min=1)]
Rate = Annotated[float, typer.Option(help="Highest learning rate.", min=0)]
Seed = Annotated[int, typer.Option(help="One seed, one result.", min=0)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]
Workers = Annotated[int, typer.Option(help="Processes that prepare data; 0: this one.", min=0)]
SetSeed = Annotated[int | None, typer.Option(help="One seed, one result; default: the configuration's.", min=0)]
SetDevice = Annotated[str | None, typer.Option(help="auto, cpu, cuda ...; default: the configuration's.")]
SetWorkers = Annotated[
    int | None, typer.Option(help="Processes that prepare data; default: the configuration's.", min=0)
]
Threads = Annotated[int | None, typer.Option(help="CPU threads for torch.", min=1)]


@contextmanager
def training_bar() -> Iterator[Callable[[int, float, dict[str, float]], None]]:
    """A bar that follows a training; what it gives is the training's report."""
    with Progress(
        TextColumn("step {task.fields[step]}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f} %  {task.fields[losses]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    ) as bar:
        task = bar.add_task("", total=1.0, step=0, losses="")

        def show(step: int, done: float, losses: dict[str, float]) -> None:
            words = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            bar.update(task, completed=done, step=step, losses=words)

        yield show
