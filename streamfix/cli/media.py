"""`streamfix enhance` and `streamfix inspect`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamfix.cli import interlcm, people
from streamfix.cli.common import (
    Detector,
    Device,
    Model,
    Overwrite,
    Parsing,
    Strength,
    err,
    job_progress,
    out,
    plain,
    seconds,
    told,
)
from streamfix.errors import OutputError, StreamfixError, UsageError

if TYPE_CHECKING:
    from streamfix.pipeline import Report


@told
def enhance(
    inputs: Annotated[list[str], typer.Argument(help="Videos, images, folders, or globs in quotes.", metavar="INPUT")],
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", help="A file; a folder, for several inputs or without a suffix.", metavar="PATH"
        ),
    ],
    model: Model = "auto",
    detector: Detector = "auto",
    device: Device = "auto",
    faces: people.Faces = "all",
    min_size: people.MinSize = 0.0,
    ignore_background: people.IgnoreBackground = False,
    embedding: people.Embedding = None,
    embedding_norm: people.EmbeddingNorm = "arcface",
    strength: Strength = 1.0,
    recurrent: Annotated[
        bool | None,
        typer.Option(
            "--recurrent/--no-recurrent",
            help="Guide each face by the frame before: steadier, a little softer, slower (default: off for lite).",
        ),
    ] = None,
    protect: Annotated[
        bool, typer.Option(help="Leave sharp faces, and hands and the like before a face, as they are.")
    ] = True,
    parsing: Parsing = None,
    start: Annotated[str | None, typer.Option(help="Begin here: seconds or hours:minutes:seconds.")] = None,
    end: Annotated[str | None, typer.Option(help="End before this time, written likewise.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Write input and output side by side.")] = False,
    codec: Annotated[
        str,
        typer.Option(
            help="h264, hevc, av1, ffv1, or an FFmpeg encoder such as h264_nvenc; auto is h264, or what keeps 10 bits and alpha."
        ),
    ] = "auto",
    crf: Annotated[int | None, typer.Option(help="Quality of the encoder: lower is better.", min=0, max=63)] = None,
    preset: Annotated[str | None, typer.Option(help="Preset of the encoder, as FFmpeg names them.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Leave out audio, subtitles, data, attachments, or a stream by number.")
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep what is done beside the output, and go on from it when called again; outputs that are there are left.",
        ),
    ] = False,
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar",
            help="Write OUTPUT.json too: model, settings, SHA-256 of input and output, how much of which face is restored when.",
        ),
    ] = False,
    aligned: interlcm.Aligned = False,
    mask: interlcm.Mask = None,
    upscale: interlcm.Upscale = 1.0,
    background: interlcm.Background = "lanczos",
    steps: interlcm.Steps = None,
    start_step: interlcm.StartStep = None,
    guidance: interlcm.Guidance = None,
    color_fix: interlcm.ColorFix = None,
    noise: interlcm.Noise = None,
    seed: interlcm.Seed = None,
    vae: interlcm.Vae = None,
    visual: interlcm.Visual = None,
    spatial: interlcm.Spatial = None,
    grey: interlcm.Grey = None,
    carry: interlcm.Carry = None,
    dtype: interlcm.Dtype = None,
    compile_: interlcm.Compile = None,
    prompt: interlcm.Prompt = None,
) -> None:
    """Restore the faces of videos and images."""
    from streamfix.jobs import enhance as run
    from streamfix.media.part import prepare
    from streamfix.pipeline import load_pipeline
    from streamfix.sidecar import sidecar_of

    model = interlcm.spec(
        model,
        steps=steps,
        start_step=start_step,
        guidance=guidance,
        color_fix=color_fix,
        noise=noise,
        seed=seed,
        vae=vae,
        visual=visual,
        spatial=spatial,
        grey=grey,
        carry=carry,
        dtype=dtype,
        compile=compile_,
        prompt=prompt,
    )
    if aligned:
        interlcm.check_alone(
            {
                "--detector": detector != "auto",
                "--faces": faces != "all",
                "--min-size": min_size > 0,
                "--ignore-background": ignore_background,
                "--embedding": embedding is not None,
                "--parsing": parsing is not None,
                "--recurrent": bool(recurrent),
            }
        )
    jobs, folder = plan(inputs, output)
    begin, stop = seconds(start), seconds(end)
    if resume and not overwrite:
        for _, target in (job for job in jobs if job[1].is_file()):
            words = "there already, left as it is"
            if sidecar and not sidecar_of(target).is_file():  # broken off between the two, or never asked for
                words += ", without a sidecar; --overwrite writes both anew"
            out.print(f"{target}: {words}", highlight=False, markup=False, soft_wrap=True)
        jobs = [job for job in jobs if not job[1].is_file()]
        if not jobs:
            return
    if len(jobs) == 1:  # loading a model may take long: what is wrong with the name is told before
        prepare(jobs[0][1], source=jobs[0][0], overwrite=overwrite, touch=False)
    pipeline = load_pipeline(
        model=model,
        detector=detector,
        device=device,
        faces=faces,
        min_size=min_size,
        ignore_background=ignore_background,
        embedding=embedding,
        embedding_norm=embedding_norm,
        strength=strength,
        recurrent=recurrent,
        protect=protect,
        parsing=parsing,
    )
    pipeline = interlcm.shaped(pipeline, aligned=aligned, mask=mask, upscale=upscale, background=background)
    failures: list[tuple[Path, StreamfixError]] = []
    with made(folder):
        for source, target in jobs:
            try:
                interlcm.paint(pipeline, mask, source)
                with job_progress(source) as show:
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
                        resume=resume,
                        sidecar=sidecar,
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
        others = "" if len(failures) == len(jobs) else "; the others are done"
        raise StreamfixError(f"{len(failures)} of {len(jobs)} inputs failed, as told above{others}")


def plan(inputs: list[str], output: str) -> tuple[list[tuple[Path, Path]], Path | None]:
    """Every input file with its output, and the folder of these, None where one file goes to one file.

    An output without suffix is a folder, and so is one that exists as a folder or ends in a slash. Raises InputError where
    an input is missing or a folder or glob holds no media, UsageError where names would collide.
    """
    from streamfix.media.images import IMAGE_SUFFIXES
    from streamfix.media.source import VIDEO_SUFFIXES, find_media

    if not output:
        raise UsageError("the name of the output is empty; name a file or a folder")
    files = [file for text in inputs for file in find_media(text)]
    target = Path(output)
    is_folder = os.path.isdir(target) or output.endswith(("/", os.sep)) or not target.suffix
    several = len(files) > 1 or any(os.path.isdir(text) for text in inputs)
    if not is_folder and not several:
        return [(files[0], target)], None
    if target.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not is_folder:
        raise UsageError(f"{output} is the name of one file; name a folder for several inputs")
    if os.path.exists(target) and not os.path.isdir(target):
        raise UsageError(f"{output} is a file and not a folder; name a folder, or a file with a suffix such as .mp4")
    jobs = [(file, target / file.name) for file in files]
    names = [file.name for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"several inputs are called {twice[0]}; restore them into different folders")
    return jobs, target


@contextmanager
def made(folder: Path | None) -> Iterator[None]:
    """A folder that exists inside, and goes away again if it was not there before and nothing was put into it.

    None for no folder. Raises OutputError where it cannot be made.
    """
    from streamfix.media.part import explain

    if folder is None:
        yield
        return
    new = [f for f in (folder, *folder.parents) if not os.path.exists(f)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(explain(error, folder)) from error
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for empty in new:
                empty.rmdir()


def summarise(target: Path, report: Report, model: str) -> None:
    """One line about a finished job, and one more for each thing a user must know."""
    faces = "no face restored"
    if report.faces:
        faces = f"{_count(report.faces, 'face', 'faces')} of {_count(len(report.tracks), 'person', 'people')}"
    frames = _count(report.frames, "frame", "frames")
    if report.resumed:
        frames += f" ({report.resumed} of them before)"
    out.print(
        f"{target}: {frames}, {faces}, {report.seconds:.1f} s ({report.fps:.1f} fps), model {model}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if report.damaged:
        err.print(
            f"[yellow]warning:[/] {report.damaged} corrupt packets or frames in the input were passed over",
            highlight=False,
        )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


@told
def inspect(
    source: Annotated[str, typer.Argument(help="A video, an image, or a folder of images.", metavar="INPUT")],
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the tracks as PNG.")] = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            help="Restore the faces too, and draw as PNG why each is restored as far as it is; takes as long as enhance."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Restorer for --curves, as for enhance.")] = "auto",
    device: Annotated[str, typer.Option(help="Where it runs, as for enhance.")] = "auto",
    detector: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    start: Annotated[str | None, typer.Option(help="Begin here.")] = None,
    end: Annotated[str | None, typer.Option(help="End before this time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Show the streams of a file, the people in it, and a contact sheet of their faces."""
    from streamfix.inspection import check_sheet
    from streamfix.inspection import inspect as run
    from streamfix.media.part import prepare

    begin, stop = seconds(start), seconds(end)
    if sheet is not None:
        check_sheet(sheet, source=source)
    if curves is not None:
        check_sheet(curves, source=source, what="the picture of the curves")
        if sheet is not None and os.path.abspath(curves) == os.path.abspath(sheet):
            raise UsageError(f"--sheet and --curves both name {sheet}; give two names")
    for picture in (p for p in (sheet, curves) if p is not None):
        prepare(picture, source=Path(source), overwrite=overwrite, touch=False)
    wanted = curves is not None
    with job_progress(source) as show:
        result = run(
            source,
            detector=detector,
            start=begin,
            end=stop,
            curves=wanted,
            model=model,
            device=device,
            progress=show,
        )
    if sheet is not None:
        result.save_sheet(sheet)
    if curves is not None:
        result.save_curves(curves)
    if as_json:
        out.print_json(data=result.facts, ensure_ascii=True)  # whatever the encoding of the pipe
        return
    result.print(out)
    if sheet is not None:
        out.print(f"contact sheet: {sheet}", highlight=False, markup=False, soft_wrap=True)
    if curves is not None:
        out.print(f"curves: {curves}", highlight=False, markup=False, soft_wrap=True)
