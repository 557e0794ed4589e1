"""`streamfix train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from streamfix.cli.common import out, told
from streamfix.cli.training import Data, Device, Minutes, Rate, Run, Seed, Steps, Workers, training_bar

train_app = typer.Typer(help="Train the networks on your own faces.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:  # with a callback a lone command keeps its name
    pass


@train_app.command("lite")
@told
def train_lite(
    data: Data,
    run: Run = Path("runs/lite"),
    steps: Steps = None,
    minutes: Minutes = None,
    lpips_alex: Annotated[Path | None, typer.Option(help="LPIPS weights with AlexNet features (.pth).")] = None,
    lpips_vgg: Annotated[Path | None, typer.Option(help="LPIPS weights with VGG16 features (.pth).")] = None,
    l1: Annotated[float, typer.Option(help="Weight of the L1 loss.", min=0)] = 1.0,
    alex: Annotated[float, typer.Option(help="Weight of LPIPS over AlexNet.", min=0)] = 0.5,
    vgg: Annotated[float, typer.Option(help="Weight of LPIPS over VGG16.", min=0)] = 0.5,
    grid: Annotated[float, typer.Option(help="Weight against 2- and 4-pixel patterns.", min=0)] = 0.1,
    id_: Annotated[float, typer.Option("--id", help="Weight of the identity loss (whole crops only).", min=0)] = 0.0,
    identity: Annotated[
        Path | None, typer.Option(help="ONNX face embedding for --id, input (1, 3, 112, 112) RGB.")
    ] = None,
    identity_norm: Annotated[
        str, typer.Option(help="Input scaling of the embedding: arcface or imagenet.")
    ] = "arcface",
    recurrent: Annotated[float, typer.Option(help="Share of steps on short clips.", min=0, max=1)] = 0.5,
    flicker: Annotated[float, typer.Option(help="Weight of flicker against the truth in clips.", min=0)] = 0.5,
    memory_only: Annotated[
        bool, typer.Option("--memory-only", help="Train what looks at the frame before, and nothing else.")
    ] = False,
    gan: Annotated[float, typer.Option(help="Weight of the adversarial loss, e.g. 0.1.", min=0)] = 0.0,
    gan_start: Annotated[float, typer.Option(help="Share of the run after which it sets in.", min=0, max=1)] = 0.6,
    rate: Rate = 4e-4,
    batch: Annotated[
        int | None, typer.Option(help="Faces per step in every stage (2 to 8 on a CPU, 32 on a GPU).", min=1)
    ] = None,
    seed: Seed = 0,
    start: Annotated[Path | None, typer.Option(help="Begin from these weights (.safetensors).")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Learn the answers of this restorer: interlcm, with options if wanted.")
    ] = None,
    device: Device = "auto",
    workers: Workers = 1,
) -> None:
    """Train the embedded restorer, or go on training it."""
    from streamfix.train.config import STAGES, TrainConfig
    from streamfix.train.lite import train

    stages = STAGES if teacher is None else STAGES[-1:]  # a teacher restores whole crops

    config = TrainConfig(
        data=data,
        run=run,
        stages=tuple(replace(stage, batch=batch or stage.batch) for stage in stages),
        steps=steps,
        minutes=minutes,
        lpips_alex=lpips_alex,
        lpips_vgg=lpips_vgg,
        l1=l1,
        alex=alex,
        vgg=vgg,
        grid=grid,
        id=id_,
        identity=identity,
        identity_norm=identity_norm,
        recurrent=recurrent,
        flicker=flicker,
        memory_only=memory_only,
        gan=gan,
        gan_start=gan_start,
        rate=rate,
        seed=seed,
        start=start,
        teacher=teacher,
        device=device,
        workers=workers,
    )
    with training_bar() as show:
        weights = train(config, report=show)
    out.print(f"averaged weights: {weights}", highlight=False, markup=False, soft_wrap=True)
