"""The options of InterLCM on the command line, and `streamfix compare-params`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from streamfix.cli.common import err, out, told
from streamfix.errors import UsageError

if TYPE_CHECKING:
    from streamfix.pipeline import Pipeline

_PANEL = "InterLCM"
Steps = Annotated[int | None, typer.Option(help="Network steps, 1 to 4.", rich_help_panel=_PANEL)]
StartStep = Annotated[
    int | None, typer.Option(help="First step that the network computes; published: 2.", rich_help_panel=_PANEL)
]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; published: 8.", rich_help_panel=_PANEL)]
ColorFix = Annotated[str | None, typer.Option(help="wavelet, adain or none.", rich_help_panel=_PANEL)]
Noise = Annotated[
    str | None,
    typer.Option(help="shared by all faces and frames, or fresh each time as published.", rich_help_panel=_PANEL),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the noise.", rich_help_panel=_PANEL)]
Vae = Annotated[str | None, typer.Option(help="full, or tiny (TAESD).", rich_help_panel=_PANEL)]
Visual = Annotated[
    bool | None, typer.Option("--visual/--no-visual", help="The visual encoder.", rich_help_panel=_PANEL)
]
Spatial = Annotated[
    bool | None, typer.Option("--spatial/--no-spatial", help="The spatial encoder.", rich_help_panel=_PANEL)
]
Prompt = Annotated[str | None, typer.Option(help="A text in place of the visual encoder.", rich_help_panel=_PANEL)]
Grey = Annotated[
    str | None, typer.Option(help="What keeps grey inputs grey: published, smooth or off.", rich_help_panel=_PANEL)
]
Carry = Annotated[
    float | None,
    typer.Option(help="Share of detail that faces of a video take from the frame before.", rich_help_panel=_PANEL),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=_PANEL)]
Compile = Annotated[bool | None, typer.Option("--compile", help="Use torch.compile.", rich_help_panel=_PANEL)]

_WHOLE = "Whole pictures and aligned faces"
Aligned = Annotated[
    bool, typer.Option("--aligned", help="Inputs are aligned faces; 512x512 come out.", rich_help_panel=_WHOLE)
]
Mask = Annotated[
    Path | None,
    typer.Option(help="What interlcm-inpaint fills: a picture, or a folder by name.", rich_help_panel=_WHOLE),
]
Upscale = Annotated[float, typer.Option(help="Enlarge the whole picture.", min=1, max=8, rich_help_panel=_WHOLE)]
Background = Annotated[
    str,
    typer.Option(
        help="What enlarges it: lanczos or realesrgan (minutes a frame without a Vulkan GPU).", rich_help_panel=_WHOLE
    ),
]


def spec(model: str, **options: Any) -> str:
    """The model with those options that were given, as load_restorer takes it."""
    from streamfix.restore.interlcm.options import MODELS, split_spec

    given = {key: value for key, value in options.items() if value is not None}
    if not given:
        return model
    if model.partition(":")[0] not in MODELS:
        flags = ", ".join("--" + key.replace("_", "-") for key in given)
        raise UsageError(
            f"{flags} belongs to the InterLCM models; choose --model {', '.join(MODELS[:-1])} or {MODELS[-1]}"
        )
    words = {True: "on", False: "off"}
    text = ",".join(f"{k}={words[v] if isinstance(v, bool) else v}" for k, v in given.items())
    whole = f"{model},{text}" if ":" in model else f"{model}:{text}"
    split_spec(whole)
    return whole


def check_alone(given: Mapping[str, bool]) -> None:
    """UsageError for options about the faces of a whole picture, by whether they were given, beside --aligned."""
    flags = [flag for flag, is_given in given.items() if is_given]
    if flags:
        raise UsageError(f"{', '.join(flags)}: of no use with --aligned, where the picture is the face; leave one out")


def shaped(pipeline: Pipeline, *, aligned: bool, mask: Path | None, upscale: float, background: str) -> Pipeline:
    """The pipeline for aligned faces or larger pictures, where that was asked for."""
    if mask is not None and not (aligned and pipeline.restorer.name == "interlcm-inpaint"):
        raise UsageError("--mask is for aligned faces and the model that fills: --aligned --model interlcm-inpaint")
    if background != "lanczos" and upscale == 1:
        raise UsageError("--background enlarges: say how much with --upscale 2")
    colours = pipeline.restorer.name == "interlcm-colorize"
    if aligned:
        from streamfix.aligned import AlignedPipeline

        if upscale != 1:
            raise UsageError("--upscale is for whole pictures; aligned faces come out as 512x512")
        whole = AlignedPipeline(restorer=pipeline.restorer, strength=pipeline.strength, batch_size=pipeline.batch_size)
        whole.told = dict(pipeline.told)
        return whole
    if colours or pipeline.restorer.name == "interlcm-inpaint":
        pipeline.protect = False  # what covers a face is what is to go; colours differ as much as a hand does
    if upscale == 1 and not colours:
        return pipeline
    from streamfix.enlarge import EnlargingPipeline, load_background

    return EnlargingPipeline(pipeline, factor=upscale, background=load_background(background), in_colour=colours)


def paint(pipeline: Pipeline, mask: Path | None, source: Path) -> None:
    """Give an aligned pipeline the mask of its next input; of a folder the one of the same name."""
    if mask is None:
        return
    from streamfix.aligned import AlignedPipeline, read_mask
    from streamfix.media.images import images_in

    assert isinstance(pipeline, AlignedPipeline)
    if mask.is_dir():
        found = [f for f in images_in(sorted(mask.iterdir())) if f.stem == source.stem]
        if not found:
            raise UsageError(f"the folder {mask} has no mask called {source.stem}; name masks as their pictures")
        mask = found[0]
    pipeline.mask = read_mask(mask)
    pipeline.told["mask"] = str(mask)


@told
def compare_params(
    image: Annotated[Path, typer.Argument(help="An aligned face, or a picture with one.", metavar="IMAGE")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The sheet, a PNG.", metavar="PATH")],
    model: Annotated[str, typer.Option(help="An InterLCM model, with options if wanted.")] = "interlcm",
    steps: Annotated[str, typer.Option(help="Steps to compare.")] = "2,3,4",
    guidance: Annotated[str, typer.Option(help="Guidance scales to compare.")] = "6,8,12",
    aligned: Annotated[bool, typer.Option("--aligned", help="The picture is an aligned face.")] = False,
    detector: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    size: Annotated[int, typer.Option(help="Side of each face on the sheet, in pixels.", min=64, max=512)] = 320,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing sheet.")] = False,
) -> None:
    """Restore one face with several steps and guidance scales, and lay the results out as a labelled sheet."""
    from streamfix.inspection import check_sheet
    from streamfix.media.part import prepare
    from streamfix.parameters import compare_parameters, face_of, save_sheet

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    wanted = numbers(steps, int), numbers(guidance, float)
    check_sheet(output, source=image, what="the sheet")
    prepare(output, source=image, overwrite=overwrite, touch=False)
    face = face_of(image, aligned=aligned, detector=detector)
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("settings", total=len(wanted[0]) * len(wanted[1]))
        sheet = compare_parameters(
            face,
            model=model,
            steps=wanted[0],
            guidance=wanted[1],
            device=device,
            size=size,
            progress=lambda: bar.advance(task),
        )
    save_sheet(sheet, output, source=image, overwrite=overwrite)
    out.print(f"{output}: steps {steps} x guidance {guidance}", highlight=False, markup=False, soft_wrap=True)


def numbers(text: str, kind: type[Any]) -> list[Any]:
    """A list such as 2,3,4."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers such as 2,3,4") from error
