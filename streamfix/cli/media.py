"""`streamfix enhance` and `streamfix inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamfix.cli.common import err, job_progress, out, plain, seconds, told
from streamfix.errors import StreamfixError, UsageError

if TYPE_CHECKING:
    from streamfix.pipeline import Report


@told
def enhance(
    inputs: Annotated[list[str], typer.Argument(help="Videos, images, folders, or globs in quotes.", metavar="INPUT")],
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
    codec: Annotated[
        str, typer.Option(help="h264, hevc, av1, ffv1, or an FFmpeg encoder such as h264_nvenc.")
    ] = "h264",
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
            err.print(f"[red]error:[/] {plain(source)}: {plain(error)}", highlight=False, soft_wrap=True)
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
    folder = (
        len(files) > 1 or output.is_dir() or str(output).endswith(("/", "\\")) or any(Path(t).is_dir() for t in inputs)
    )
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
            f"[yellow]warning:[/] {report.damaged} corrupt packets or frames in the input were passed over",
            highlight=False,
        )


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
