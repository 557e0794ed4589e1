"""The options of every command that measures, written once: which metrics, and the files that they need."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from streamfix.cli.common import err, out, plain

if TYPE_CHECKING:
    from streamfix.evaluate.tables import Table as Sheet

C = TypeVar("C", bound=Callable[..., Any])

_PANEL = "Metrics"


def _options(
    lpips: Annotated[
        list[Path] | None, typer.Option(help="LPIPS weight file (.pth); may be given twice.", rich_help_panel=_PANEL)
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(help="ONNX face embedding, input (1, 3, 112, 112) RGB.", rich_help_panel=_PANEL)
    ] = None,
    identity_norm: Annotated[
        str, typer.Option(help="Input scaling of the embedding: arcface or imagenet.", rich_help_panel=_PANEL)
    ] = "arcface",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            help="Metric whose network no loss has seen: dlib, efficientnet; may be repeated.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> Any:
    from streamfix.evaluate.metrics import Metrics

    return Metrics.load(lpips=lpips or (), identity=identity, norm=identity_norm, judges=judge or ())


def with_options(parameter: str, load: Callable[..., Any]) -> Callable[[C], C]:
    """A decorator: the command's `parameter` is made by `load`, whose parameters become options of the command."""

    def decorate(command: C) -> C:
        hints = get_type_hints(load, include_extras=True)
        added = [
            p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY)
            for p in inspect.signature(load).parameters.values()
        ]
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != parameter]

        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = {p.name: kwargs.pop(p.name) for p in added}
            return command(*args, **{parameter: load(**given)}, **kwargs)

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own] + added
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper  # type: ignore[return-value]  # of the same use, with other options

    return decorate


with_metrics = with_options("metrics", _options)
"""Gives a command --lpips, --identity, --identity-norm and --judge, and hands it the `Metrics` that they name."""

Strip = Annotated[Path | None, typer.Option(help="Write a picture strip, a PNG: input, restored, truth.")]


def check_outputs(strip: Path | None, markdown: Path | None, *, sources: Sequence[Path], overwrite: bool) -> None:
    """Before the work: UsageError or OutputError where a strip or Markdown could not be written after it."""
    from streamfix.inspection import check_sheet
    from streamfix.media.part import part_of, prepare, release

    if strip is not None:
        check_sheet(strip, source=sources[0], what="the strip")
    for path in (p for p in (strip, markdown) if p is not None):
        for source in sources:
            prepare(path, source=source, overwrite=overwrite, touch=False)
        prepare(path, source=sources[0], overwrite=overwrite)
        part_of(path).unlink()  # it was to see whether one can be written
        release(path)


def show(table: Sheet) -> None:
    """Print a table."""
    shown = Table(title=plain(table.title))
    for name in table.columns:
        shown.add_column(plain(name), overflow="fold")  # a figure that is cut short would be another figure
    for row in table.rows:
        shown.add_row(*map(plain, row))
    out.print(shown)


def bar() -> Progress:
    """A progress bar that counts, on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def left_out(missing: list[str]) -> None:
    """Name the metrics that could not be measured, each with what brings it."""
    for name in missing:
        err.print(f"left out: {name}", highlight=False, markup=False, soft_wrap=True)
