"""The command line: every command parses its options, calls the library, and tells errors in one sentence.

Exit codes: 0 done, 1 the job failed, 2 the call was wrong, 130 interrupted. Heavy modules are imported inside the commands, so that
`--help` answers at once.
"""

from __future__ import annotations

import functools
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from streamfix import __version__
from streamfix.errors import InputError, StreamfixError, UsageError

if TYPE_CHECKING:
    from streamfix.pipeline import Report

C = TypeVar("C", bound=Callable[..., Any])

app = typer.Typer(
    name="streamfix",
    help="Faces in video and live streams, restored without flicker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Weights: list, pull, verify.", no_args_is_help=True)
train_app = typer.Typer(help="Train the networks on your own faces.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(train_app, name="train")

out = Console()
err = Console(stderr=True)


def told(command: C) -> C:
    """Tell a StreamfixError in one sentence and leave with its exit code; everything else is a bug and shows its trace."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except StreamfixError as error:
            err.print(f"[red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error

    return wrapper  # type: ignore[return-value]  # functools.wraps keeps the signature that typer reads


def _plain(text: object) -> str:
    """Text for rich without its markup being read."""
    return str(text).replace("[", r"\[")


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


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Faces in video and live streams, restored without flicker."""
    if version:
        out.print(f"streamfix {__version__}", highlight=False)
        raise typer.Exit


@app.command()
@told
def enhance(
    inputs: Annotated[list[str], typer.Argument(help="Videos, images, folders, or globs in quotes.", metavar="INPUT...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A file; a folder for several inputs.")],
    model: Annotated[str, typer.Option(help="Restorer: auto, lite, passthrough, or a weight file.")] = "auto",
    detector: Annotated[
        str, typer.Option(help="auto, retinaface, insightface, insightface:PACK or insightface:DIRECTORY.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    faces: Annotated[str, typer.Option(help="all, largest, center, or a reference photo.")] = "all",
    min_size: Annotated[float, typer.Option(help="Leave faces smaller than this many source pixels.", min=0)] = 0.0,
    strength: Annotated[float, typer.Option(help="0 is the input, 1 the restored face.", min=0, max=1)] = 1.0,
    start: Annotated[str | None, typer.Option(help="Begin here: seconds or h:m:s.")] = None,
    end: Annotated[str | None, typer.Option(help="End before this time: seconds or h:m:s.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Write input and output side by side.")] = False,
    codec: Annotated[str, typer.Option(help="h264, hevc, av1, ffv1, or an FFmpeg encoder such as h264_nvenc.")] = "h264",
    crf: Annotated[int | None, typer.Option(help="Quality of the encoder: lower is better.", min=0, max=63)] = None,
    preset: Annotated[str | None, typer.Option(help="Preset of the encoder, as FFmpeg names them.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Leave out audio, subtitles, data, attachments, or a stream by number.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
) -> None:
    """Restore the faces of videos and images."""
    from streamfix.pipeline import enhance as run
    from streamfix.pipeline import load_pipeline

    jobs = plan(inputs, output)
    begin, stop = seconds(start), seconds(end)
    pipeline = load_pipeline(
        model=model, detector=detector, device=device, faces=faces, min_size=min_size, strength=strength
    )
    failures: list[tuple[Path, StreamfixError]] = []
    for source, target in jobs:
        try:
            with job_progress(source, begin, stop) as show:
                report = run(
                    source,
                    target,
                    pipeline=pipeline,
                    start=begin,
                    end=stop,
                    compare=compare,
                    codec=codec,
                    crf=crf,
                    preset=preset,
                    drop=drop or (),
                    overwrite=overwrite,
                    progress=show,
                )
        except StreamfixError as error:
            if len(jobs) == 1:
                raise
            failures.append((source, error))
            err.print(f"[red]error:[/] {_plain(source)}: {_plain(error)}", highlight=False, soft_wrap=True)
            continue
        summarise(target, report, pipeline.restorer.name)
    if failures:
        raise StreamfixError(f"{len(failures)} of {len(jobs)} inputs failed, as told above; the others are done")


def plan(inputs: list[str], output: Path) -> list[tuple[Path, Path]]:
    """Every input file with its output: one file to one file, or many into a folder, under their own names.

    Raises InputError where an input is missing or a folder or glob holds no media, UsageError where names would collide.
    """
    from streamfix.media.source import find_media

    files = [file for text in inputs for file in find_media(text)]
    folder = len(files) > 1 or output.is_dir() or str(output).endswith(("/", "\\")) or any(Path(t).is_dir() for t in inputs)
    if not folder:
        return [(files[0], output)]
    if output.is_file():
        raise UsageError(f"{output} is a file; name a folder for several inputs")
    jobs = [(file, output / file.name) for file in files]
    names = [target.name for _, target in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"several inputs are called {twice[0]}; restore them into different folders")
    output.mkdir(parents=True, exist_ok=True)
    return jobs


@contextmanager
def job_progress(source: Path, start: float | None, end: float | None) -> Iterator[Callable[[Report], None]]:
    """A progress bar on a terminal; elsewhere silence, the summary says it all."""
    from streamfix.media.source import open_source

    with open_source(source, start=start, end=end) as opened:
        total = opened.frames
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
        task = bar.add_task(_plain(source.name), total=total, faces=0, fps=0.0)
        yield lambda report: bar.update(task, completed=report.frames, faces=report.faces, fps=report.fps)


def summarise(target: Path, report: Report, model: str) -> None:
    """One line about a finished job, and one more for each thing a user must know."""
    people = f"{report.faces} faces of {len(report.tracks)} people" if report.faces else "no face found"
    out.print(
        f"{target}: {report.frames} frames, {people}, {report.seconds:.1f} s ({report.fps:.1f} fps), model {model}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if report.damaged:
        err.print(
            f"[yellow]warning:[/] {report.damaged} corrupt packets or frames in the input were passed over", highlight=False
        )


@app.command()
@told
def inspect(
    source: Annotated[Path, typer.Argument(help="A video or image.", metavar="INPUT")],
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the tracks as PNG.")] = None,
    detector: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    start: Annotated[str | None, typer.Option(help="Begin here.")] = None,
    end: Annotated[str | None, typer.Option(help="End before this time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Show the streams of a file, the people in it, and a contact sheet of their faces."""
    from streamfix.inspection import inspect as run

    begin, stop = seconds(start), seconds(end)
    with job_progress(source, begin, stop) as show:
        result = run(source, detector=detector, start=begin, end=stop, progress=show)
    if sheet is not None:
        result.save_sheet(sheet)
    if as_json:
        out.print_json(data=result.facts)
        return
    result.print(out)
    if sheet is not None:
        out.print(f"contact sheet: {sheet}", highlight=False, markup=False, soft_wrap=True)


@models_app.command("list")
@told
def models_list() -> None:
    """List every model with its size, licence, and place."""
    from streamfix.models import catalogue

    table = Table("name", "kind", "size", "licence", "where")
    for model in catalogue():
        size = f"{model.size / 1e6:.1f} MB" if model.present else "-"
        where = str(model.path) if model.present else f"not here; streamfix models pull {model.name}"
        table.add_row(model.name, model.kind, size, model.licence, _plain(where))
    out.print(table)


@models_app.command("pull")
@told
def models_pull(name: Annotated[str, typer.Argument(help="A name from `streamfix models list`.")]) -> None:
    """Download a model; an interrupted download goes on where it broke off."""
    from streamfix.models import find, pull

    model = find(name)
    err.print(f"licence of {model.name}: {model.licence}", highlight=False)
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=err, transient=True) as bar:
        task = bar.add_task(model.name, total=None)
        pull(model, lambda done, total: bar.update(task, completed=done, total=total or None))
    out.print(f"{model.name} is in {model.path}", highlight=False, markup=False, soft_wrap=True)


@models_app.command("verify")
@told
def models_verify() -> None:
    """Compare every model on this machine with its sha256."""
    from streamfix.errors import ModelError
    from streamfix.models import catalogue, verify

    broken = []
    for model in catalogue():
        if not model.present:
            continue
        result = verify(model)
        word = {True: "[green]ok[/]", False: "[red]differs[/]", None: "[yellow]no sha256 recorded[/]"}[result]
        out.print(f"{model.name}: {word}", highlight=False)
        if result is False:
            broken.append(model.name)
    if broken:
        raise ModelError(f"{', '.join(broken)} differ from what was shipped; pull them again or install streamfix again")


@app.command()
@told
def doctor() -> None:
    """Say what runs where on this machine, with a remedy for each problem."""
    from streamfix.doctor import examine

    checks = examine()
    table = Table("", "what", "state", "remedy")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    for check in checks:
        table.add_row(marks[check.level], check.what, _plain(check.state), _plain(check.remedy))
    out.print(table)
    if any(check.level == "bad" for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Entry point. SIGTERM unwinds like Ctrl-C, so that no half file stays behind."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    app()
