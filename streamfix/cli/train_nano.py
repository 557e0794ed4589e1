"""`streamfix train nano-autoencoder`, `nano-consistency` and `decoder`: small networks from nothing, and from a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamfix.cli.common import out, told
from streamfix.cli.training import (
    Batch,
    Data,
    Device,
    Lpips,
    Minutes,
    Rate,
    Run,
    Seed,
    Steps,
    Threads,
    Workers,
    training_bar,
)


@told
def nano_autoencoder(
    data: Data,
    lpips: Lpips,
    run: Run = Path("runs/nano-autoencoder"),
    steps: Steps = None,
    minutes: Minutes = None,
    batch: Batch = 4,
    face: Annotated[int, typer.Option(help="Side of a face in pixels.", min=64, max=512)] = 256,
    rate: Rate = 1e-3,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 0,
    threads: Threads = None,
) -> None:
    """Stage 1 of nano: a small autoencoder of faces."""
    from streamfix.train.nano.autoencoder import AutoencoderConfig, train_autoencoder

    config = AutoencoderConfig(
        data=data,
        run=run,
        lpips=lpips,
        steps=steps,
        minutes=minutes,
        batch=batch,
        face=face,
        window=min(128, face),
        rate=rate,
        seed=seed,
        device=device,
        workers=workers,
        threads=threads,
    )
    with training_bar() as show:
        folder = train_autoencoder(config, report=show)
    out.print(f"autoencoder: {folder}", highlight=False, markup=False, soft_wrap=True)


@told
def nano_consistency(
    data: Data,
    autoencoder: Annotated[Path, typer.Option(help="Release folder that stage 1 wrote.")] = Path(
        "runs/nano-autoencoder/release"
    ),
    run: Run = Path("runs/nano-consistency"),
    steps: Steps = None,
    minutes: Minutes = None,
    batch: Batch = 8,
    face: Annotated[int, typer.Option(help="Side of a face in pixels, as in stage 1.", min=64, max=512)] = 256,
    rate: Rate = 5e-4,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 0,
    threads: Threads = None,
) -> None:
    """Stage 2 of nano: a latent consistency model; writes a whole release to start stage 3 from."""
    from streamfix.train.nano.consistency import ConsistencyConfig, train_consistency

    config = ConsistencyConfig(
        data=data,
        autoencoder=autoencoder,
        run=run,
        steps=steps,
        minutes=minutes,
        batch=batch,
        face=face,
        rate=rate,
        seed=seed,
        device=device,
        workers=workers,
        threads=threads,
    )
    with training_bar() as show:
        folder = train_consistency(config, report=show)
    out.print(f"release: {folder}", highlight=False, markup=False, soft_wrap=True)


@told
def tiny_decoder(
    data: Data,
    lpips: Lpips,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher-vae", help="Release folder with the VAE to imitate; default: the installed one."),
    ] = None,
    run: Run = Path("runs/decoder"),
    steps: Steps = None,
    minutes: Minutes = None,
    batch: Batch = 4,
    face: Annotated[
        int, typer.Option(help="Side of a face in pixels, as the release takes them.", min=64, max=512)
    ] = 512,
    width: Annotated[int, typer.Option(help="Channels of the tiny VAE; TAESD has 64.", min=4)] = 64,
    rate: Rate = 5e-4,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 0,
    threads: Threads = None,
) -> None:
    """Distil a tiny VAE for faces, which --vae tiny uses after `models pull taesd --from RUN/release`."""
    from streamfix.train.tiny_vae import TinyVaeConfig, tiny_vae_config, train_tiny_vae

    config = TinyVaeConfig(
        data=data,
        teacher=teacher,
        run=run,
        lpips=lpips,
        steps=steps,
        minutes=minutes,
        batch=batch,
        face=face,
        window=min(128, face),
        network=tiny_vae_config(width),
        rate=rate,
        seed=seed,
        device=device,
        workers=workers,
        threads=threads,
    )
    with training_bar() as show:
        folder = train_tiny_vae(config, report=show)
    out.print(f"tiny VAE: {folder}", highlight=False, markup=False, soft_wrap=True)
