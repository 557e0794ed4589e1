"""`streamfix train` and `streamfix evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from streamfix.cli.common import err, out, plain, told

if TYPE_CHECKING:
    from streamfix.evaluate.tables import Table as Sheet

train_app = typer.Typer(help="Train the networks on your own faces.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure restorers on faces and on video.", no_args_is_help=True)


@train_app.callback()
def _train() -> None:  # with a callback a lone command keeps its name
    pass


@contextmanager
def training_bar() -> Iterator[Callable[[int, float, dict[str, float]], None]]:
    """A bar that follows a training; what it gives is the training's report."""
    with Progress(
        TextColumn("step {task.fields[step]}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f} %  {task.fields[losses]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    ) as bar:
        task = bar.add_task("", total=1.0, step=0, losses="")

        def show(step: int, done: float, losses: dict[str, float]) -> None:
            words = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            bar.update(task, completed=done, step=step, losses=words)

        yield show


@train_app.command("lite")
@told
def train_lite(
    data: Annotated[Path, typer.Option(help="Folder of aligned faces: 512x512, 640x640 or 400x400 with margin.")],
    run: Annotated[Path, typer.Option(help="Folder of the run; an existing run goes on where it stands.")] = Path(
        "runs/lite"
    ),
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps.", min=1)] = None,
    minutes: Annotated[float | None, typer.Option(help="Length of the run in minutes of training.", min=0)] = None,
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
    rate: Annotated[float, typer.Option(help="Highest learning rate.", min=0)] = 4e-4,
    batch: Annotated[
        int | None, typer.Option(help="Faces per step in every stage (2 to 8 on a CPU, 32 on a GPU).", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="One seed, one result.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Begin from these weights (.safetensors).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that prepare data.", min=0)] = 1,
) -> None:
    """Train the embedded restorer, or go on training it."""
    from streamfix.train.config import STAGES, TrainConfig
    from streamfix.train.lite import train

    config = TrainConfig(
        data=data,
        run=run,
        stages=tuple(replace(stage, batch=batch or stage.batch) for stage in STAGES),
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
        device=device,
        workers=workers,
    )
    with training_bar() as show:
        weights = train(config, report=show)
    out.print(f"averaged weights: {weights}", highlight=False, markup=False, soft_wrap=True)


Lpips = Annotated[list[Path] | None, typer.Option(help="LPIPS weight file (.pth); may be given twice.")]
Embedding = Annotated[Path | None, typer.Option(help="ONNX face embedding, input (1, 3, 112, 112) RGB.")]
Scaling = Annotated[str, typer.Option(help="Input scaling of the embedding: arcface or imagenet.")]
Strip = Annotated[Path | None, typer.Option(help="Write a picture strip: input, restored, truth.")]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", help="Metric whose network no loss has seen: dlib, efficientnet; may be repeated."),
]


@evaluate_app.command("faces")
@told
def evaluate_faces(
    folder: Annotated[Path, typer.Argument(help="Folder of clean aligned faces.", metavar="DIR")],
    model: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    degradation: Annotated[str, typer.Option(help="paper or heavy.")] = "paper",
    limit: Annotated[int, typer.Option(help="How many faces.", min=1)] = 60,
    seed: Annotated[int, typer.Option(help="Of the degradation.")] = 0,
    lpips: Lpips = None,
    identity: Embedding = None,
    identity_norm: Scaling = "arcface",
    judge: Judges = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Restore by others too: bicubic, span, realesrgan; may be repeated.")
    ] = None,
    groups: Annotated[Path | None, typer.Option(help="CSV with a `file` column, to report by group.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column of that CSV (default: source), may be repeated; numbers are cut into thirds."),
    ] = None,
    strip: Strip = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
) -> None:
    """Degrade clean faces by a seed, restore them, and measure."""
    from streamfix.evaluate.faces import evaluate_faces as run
    from streamfix.evaluate.faces import read_groups, save_strip
    from streamfix.evaluate.metrics import Metrics
    from streamfix.evaluate.peers import load_peers
    from streamfix.evaluate.tables import contest_table, group_table, metrics_table
    from streamfix.restore.base import describe, load_restorer

    metrics = Metrics.load(lpips=lpips or (), identity=identity, norm=identity_norm, judges=judge or ())
    labels = {column: read_groups(groups, column) for column in by or ["source"]} if groups else {}
    peers, absent = load_peers(peer or ())
    restorer = load_restorer(model)
    with _bar() as bar:
        task = bar.add_task("faces", total=None)
        scores = run(
            folder,
            restorer,
            metrics,
            peers=peers,
            degradation=degradation,
            limit=limit,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    tables = [metrics_table(scores, degradation)]
    if peers:
        tables.append(contest_table(scores, restorer.name, degradation))
    grouped = [c for c in scores.before[0] if c.startswith("LPIPS")] or ["PSNR"]
    tables += [group_table(scores, names, column, metric) for column, names in labels.items() for metric in grouped]
    for table in tables:
        _show(table)
    median = sorted(scores.seconds)[len(scores.seconds) // 2]
    out.print(f"{describe(restorer)}: {median * 1e3:.1f} ms a face", highlight=False)
    _left_out(scores.missing + absent)
    if markdown is not None:
        markdown.write_text("\n".join(t.markdown() for t in tables))
    if strip is not None:
        save_strip(scores.strip, strip)


@evaluate_app.command("video")
@told
def evaluate_video(
    clean: Annotated[Path, typer.Argument(help="The truth.")],
    degraded: Annotated[Path, typer.Argument(help="What was restored.")],
    restored: Annotated[Path, typer.Argument(help="The result.")],
    detector: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    lpips: Lpips = None,
    identity: Embedding = None,
    identity_norm: Scaling = "arcface",
    judge: Judges = None,
    strip: Strip = None,
) -> None:
    """Compare a restored video with its clean original, face by face."""
    from streamfix.evaluate.faces import save_strip
    from streamfix.evaluate.metrics import Metrics
    from streamfix.evaluate.video import evaluate_video as run
    from streamfix.faces.detect import load_detector

    metrics = Metrics.load(lpips=lpips or (), identity=identity, norm=identity_norm, judges=judge or ())
    with _bar() as bar:
        task = bar.add_task("frames", total=None)
        scores = run(
            clean,
            degraded,
            restored,
            detector=load_detector(detector),
            metrics=metrics,
            progress=lambda done: bar.update(task, completed=done),
        )
    table = Table(
        "metric", "input", "restored", "restored / input", title=f"{scores.faces} faces in {scores.frames} frames"
    )
    for name, before in scores.degraded.items():
        after = scores.restored[name]
        table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f}" if before else "-")
    out.print(table)
    _left_out(scores.missing)
    if strip is not None:
        save_strip(scores.strip, strip)


@evaluate_app.command("clips")
@told
def evaluate_clips(
    folder: Annotated[Path, typer.Argument(help="Folder of clean aligned faces.", metavar="DIR")],
    model: Annotated[str, typer.Option(help="As for enhance; one that looks at the frame before.")] = "auto",
    limit: Annotated[int, typer.Option(help="How many faces; each becomes a clip.", min=1)] = 24,
    frames: Annotated[int, typer.Option(help="Length of a clip.", min=2)] = 12,
    seed: Annotated[int, typer.Option(help="Of motion and degradation.")] = 0,
    lpips: Lpips = None,
    identity: Embedding = None,
    identity_norm: Scaling = "arcface",
    judge: Judges = None,
) -> None:
    """Make clips of moving faces, coded at a low bit rate, and restore them with and without the frame before."""
    from streamfix.evaluate.clips import evaluate_clips as run
    from streamfix.evaluate.metrics import Metrics
    from streamfix.evaluate.tables import clips_tables
    from streamfix.restore.base import load_restorer

    metrics = Metrics.load(lpips=lpips or (), identity=identity, norm=identity_norm, judges=judge or ())
    restorer = load_restorer(model)
    with _bar() as bar:
        task = bar.add_task("clips", total=None)
        scores = run(
            folder,
            restorer,
            metrics,
            limit=limit,
            frames=frames,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for table in clips_tables(scores):
        _show(table)
    _left_out(scores.missing)


def _show(table: Sheet) -> None:
    shown = Table(*table.columns, title=plain(table.title))
    for row in table.rows:
        shown.add_row(*map(plain, row))
    out.print(shown)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _left_out(missing: list[str]) -> None:
    for name in missing:
        err.print(f"left out: {name}", highlight=False)
