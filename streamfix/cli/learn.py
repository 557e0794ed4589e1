"""`streamfix train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from streamfix.cli.common import out, told
from streamfix.cli.training import Data, Minutes, Run, SetDevice, SetSeed, SetWorkers, Steps, training_bar

train_app = typer.Typer(help="Train the networks on your own faces.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:  # with a callback a lone command keeps its name
    pass


@train_app.command("lite")
@told
def train_lite(
    data: Data,
    run: Run = Path("runs/lite"),
    config: Annotated[
        str | None,
        typer.Option(
            help="TOML file, or a shipped configuration such as lite-further; options go before its settings."
        ),
    ] = None,
    steps: Steps = None,
    minutes: Minutes = None,
    lpips_alex: Annotated[Path | None, typer.Option(help="LPIPS weights with AlexNet features (.pth).")] = None,
    lpips_vgg: Annotated[Path | None, typer.Option(help="LPIPS weights with VGG16 features (.pth).")] = None,
    l1: Annotated[float | None, typer.Option(help="Weight of the L1 loss (1).", min=0)] = None,
    alex: Annotated[float | None, typer.Option(help="Weight of LPIPS over AlexNet (0.5).", min=0)] = None,
    vgg: Annotated[float | None, typer.Option(help="Weight of LPIPS over VGG16 (0.5).", min=0)] = None,
    grid: Annotated[float | None, typer.Option(help="Weight against 2- and 4-pixel patterns (0.1).", min=0)] = None,
    id_: Annotated[
        float | None, typer.Option("--id", help="Weight of the identity loss (0; whole crops only).", min=0)
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(help="ONNX face embedding for --id, input (1, 3, 112, 112) RGB.")
    ] = None,
    identity_norm: Annotated[
        str | None, typer.Option(help="Input scaling of the embedding: arcface (default) or imagenet.")
    ] = None,
    recurrent: Annotated[float | None, typer.Option(help="Share of steps on short clips (0.5).", min=0, max=1)] = None,
    flicker: Annotated[
        float | None, typer.Option(help="Weight of flicker against the truth in clips (0.5).", min=0)
    ] = None,
    memory_only: Annotated[
        bool | None, typer.Option("--memory-only", help="Train what looks at the frame before, and nothing else.")
    ] = None,
    gan: Annotated[float | None, typer.Option(help="Weight of the adversarial loss, e.g. 0.1 (0).", min=0)] = None,
    gan_start: Annotated[
        float | None, typer.Option(help="Share of the run after which it sets in (0.6).", min=0, max=1)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate (4e-4).", min=0)] = None,
    batch: Annotated[
        int | None, typer.Option(help="Faces per step in every stage (2 to 8 on a CPU, 32 on a GPU).", min=1)
    ] = None,
    seed: SetSeed = None,
    start: Annotated[Path | None, typer.Option(help="Begin from these weights (.safetensors).")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Learn the answers of this restorer: interlcm, with options if wanted.")
    ] = None,
    device: SetDevice = None,
    workers: SetWorkers = None,
) -> None:
    """Train the embedded restorer, or go on training it."""
    from streamfix.train.config import TrainConfig
    from streamfix.train.lite import train
    from streamfix.train.settings import read_settings

    settings = TrainConfig.of(
        {} if config is None else read_settings(config),
        data=data,
        run=run,
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
    # a teacher restores whole crops
    stages = settings.stages if settings.teacher is None else settings.stages[-1:]
    settings = replace(settings, stages=tuple(replace(stage, batch=batch or stage.batch) for stage in stages))
    with training_bar() as show:
        weights = train(settings, report=show)
    out.print(f"averaged weights: {weights}", highlight=False, markup=False, soft_wrap=True)
