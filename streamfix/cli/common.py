"""What commands share: consoles, errors in one sentence, options of the restorer, times, progress."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from streamfix.errors import StreamfixError, UsageError

if TYPE_CHECKING:
    from streamfix.pipeline import Report

C = TypeVar("C", bound=Callable[..., Any])

Model = Annotated[
    str,
    typer.Option(
        help="Restorer: auto, lite, interlcm, interlcm-1step, interlcm-colorize, interlcm-inpaint, or a weight file."
    ),
]
Detector = Annotated[
    str, typer.Option(help="auto, retinaface, insightface, insightface:PACK or insightface:DIRECTORY.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Parsing = Annotated[
    Path | None,
    typer.Option(help="ONNX face parsing network (BiSeNet, 19 classes): hair, hats and collars stay.", metavar="FILE"),
]
Strength = Annotated[float, typer.Option(help="0 is the input, 1 the restored face.", min=0, max=1)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]

out = Console(emoji=False)  # ":m:" in a file name is no emoji
err = Console(stderr=True, emoji=False)


def told(command: C) -> C:
    """Tell a StreamfixError in one sentence and leave with its exit code.

    So too an answer of the system that nobody foresaw (a disk that is gone). Everything else is a bug and shows its trace.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except StreamfixError as error:
            err.print(f"[red]error:[/] {plain(error)}", highlight=False, soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error
        except BrokenPipeError:  # the reader of a pipe has left: click ends quietly
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            err.print(f"[red]error:[/] {plain(where)}{plain(error.strerror or error)}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error

    return wrapper  # type: ignore[return-value]  # functools.wraps keeps the signature that typer reads


def plain(text: object) -> str:
    """Text for rich without its markup being read."""
    return escape(str(text))


class Warnings(logging.Handler):
    """Shows the library's warnings as the command line shows everything, above a running progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        err.print(f"[yellow]warning:[/] {plain(record.getMessage())}", highlight=False, soft_wrap=True)


def show_warnings() -> None:
    """Have the library's warnings shown, and not Pillow's about metadata, as it goes on; harmless when called again."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")
    logger = logging.getLogger("streamfix")
    if not any(isinstance(handler, Warnings) for handler in logger.handlers):
        logger.addHandler(Warnings(logging.WARNING))


def seconds(text: str | None) -> float | None:
    """A time such as 12.5, 1:02.5 or 01:02:03 in seconds."""
    if text is None:
        return None
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text):
        raise UsageError(f"{text!r} is not a time; write seconds (12.5) or hours:minutes:seconds (0:01:02.5)")
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total


@contextmanager
def job_progress(source: str | Path) -> Iterator[Callable[[Report], None]]:
    """A progress bar on a terminal; elsewhere silence, the summary says it all."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames · {task.fields[faces]} faces · {task.fields[fps]:.1f} fps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task(plain(Path(source).name), total=None, faces=0, fps=0.0)
        yield lambda report: bar.update(
            task, total=report.total, completed=report.frames, faces=report.faces, fps=report.fps
        )
