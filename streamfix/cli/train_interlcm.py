"""`streamfix train interlcm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamfix.cli.common import out, told
from streamfix.cli.training import Data, SetDevice, SetSeed, SetWorkers, training_bar


@told
def train_interlcm(
    data: Data,
    config: Annotated[
        str,
        typer.Option(help="TOML file, or a shipped configuration such as interlcm-1step (a wrong name lists them)."),
    ] = "interlcm-3step",
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run, by default runs/CONFIG; an existing run goes on.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Folder with the networks that are not trained, laid out as a release.")
    ] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS weight file (.pth); published is VGG16.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Length of the run.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Faces an iteration, of all processes.", min=1)] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Faces that a process computes at a time.", min=1)] = None,
    precision: Annotated[str | None, typer.Option(help="Of the computation: float32 or bfloat16.")] = None,
    seed: SetSeed = None,
    device: SetDevice = None,
    workers: SetWorkers = None,
) -> None:
    """Train InterLCM's encoders, or go on training them; options given here go before the configuration's settings."""
    from streamfix.train.interlcm import train
    from streamfix.train.interlcm_config import InterLCMConfig

    settings = InterLCMConfig.load(
        config,
        data=data,
        run=run or Path("runs") / Path(config).stem,
        base=base,
        lpips=lpips,
        iterations=iterations,
        batch=batch,
        micro_batch=micro_batch,
        precision=precision,
        seed=seed,
        device=device,
        workers=workers,
    )
    with training_bar() as show:
        folder = train(settings, report=show)
    out.print(f"averaged weights: {folder}", highlight=False, markup=False, soft_wrap=True)
