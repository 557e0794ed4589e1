"""`streamfix evaluate faces`, `video` and `clips`; what repeats the paper's tables is in evaluate_paper.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from streamfix.cli.common import Overwrite, out, told
from streamfix.cli.measures import Strip, bar, check_outputs, left_out, show, with_metrics
from streamfix.errors import UsageError

evaluate_app = typer.Typer(help="Measure restorers on faces and on video.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of clean aligned faces.", metavar="DIR")]


@evaluate_app.command("faces")
@told
@with_metrics
def evaluate_faces(
    folder: Folder,
    model: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    degradation: Annotated[str, typer.Option(help="paper, heavy, mild or footage.")] = "paper",
    limit: Annotated[int, typer.Option(help="How many faces.", min=1)] = 60,
    seed: Annotated[int, typer.Option(help="Of the degradation.", min=0)] = 0,
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
    overwrite: Overwrite = False,
    metrics: Any = None,
) -> None:
    """Degrade clean faces by a seed, restore them, and measure."""
    from streamfix.evaluate.faces import evaluate_faces as run
    from streamfix.evaluate.faces import read_groups
    from streamfix.evaluate.peers import load_peers
    from streamfix.evaluate.report import save_strip
    from streamfix.evaluate.tables import contest_table, group_table, metrics_table
    from streamfix.media.part import write_whole
    from streamfix.restore.base import describe, load_restorer

    if by and groups is None:
        raise UsageError("--by names a column of a CSV file; give that file with --groups")
    check_outputs(strip, markdown, sources=[folder], overwrite=overwrite)
    labels = {column: read_groups(groups, column) for column in by or ["source"]} if groups else {}
    peers, absent = load_peers(peer or ())
    restorer = load_restorer(model)
    with bar() as shown:
        task = shown.add_task("faces", total=None)
        scores = run(
            folder,
            restorer,
            metrics,
            peers=peers,
            degradation=degradation,
            limit=limit,
            seed=seed,
            progress=lambda done, total: shown.update(task, completed=done, total=total),
        )
    tables = [metrics_table(scores, degradation)]
    if peers:
        tables.append(contest_table(scores, restorer.name, degradation))
    grouped = [c for c in scores.before[0] if c.startswith("LPIPS")] or ["PSNR"]
    tables += [group_table(scores, names, column, metric) for column, names in labels.items() for metric in grouped]
    for table in tables:
        show(table)
    median = sorted(scores.seconds)[len(scores.seconds) // 2]
    out.print(f"{describe(restorer)}: {median * 1e3:.1f} ms a face", highlight=False)
    left_out(scores.missing + absent)
    if markdown is not None:
        write_whole(markdown, "\n".join(t.markdown() for t in tables).encode())
    if strip is not None:
        save_strip(scores.strip, strip)


@evaluate_app.command("video")
@told
@with_metrics
def evaluate_video(
    clean: Annotated[Path, typer.Argument(help="The truth.")],
    degraded: Annotated[Path, typer.Argument(help="What was restored.")],
    restored: Annotated[Path, typer.Argument(help="The result.")],
    detector: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    landmarks: Annotated[
        Path | None,
        typer.Option(
            help="insightface landmark model (2d106det.onnx) for AKD and TLME; default: the detector's 5 points."
        ),
    ] = None,
    strip: Strip = None,
    overwrite: Overwrite = False,
    metrics: Any = None,
) -> None:
    """Compare a restored video with its clean original, face by face."""
    from streamfix.evaluate.landmarks import load_landmarks
    from streamfix.evaluate.report import save_strip
    from streamfix.evaluate.video import evaluate_video as run
    from streamfix.faces.detect import load_detector

    check_outputs(strip, None, sources=[clean, degraded, restored], overwrite=overwrite)
    found = load_detector(detector)
    points = load_landmarks(found, landmarks)
    with bar() as shown:
        task = shown.add_task("frames", total=None)
        scores = run(
            clean,
            degraded,
            restored,
            detector=found,
            metrics=metrics,
            landmarks=points,
            progress=lambda done: shown.update(task, completed=done),
        )
    table = Table(
        "metric", "input", "restored", "restored / input", title=f"{scores.faces} faces in {scores.frames} frames"
    )
    for name, before in scores.degraded.items():
        after = scores.restored.get(name, math.nan)  # a restored face without landmarks has no AKD
        table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f}" if before else "-")
    out.print(table)
    out.print(f"AKD and TLME by {points.name}, in pixels of the 512x512 crop.", highlight=False)
    left_out(scores.missing)
    if strip is not None:
        save_strip(scores.strip, strip)


@evaluate_app.command("clips")
@told
@with_metrics
def evaluate_clips(
    folder: Folder,
    model: Annotated[str, typer.Option(help="As for enhance; one that looks at the frame before.")] = "auto",
    limit: Annotated[int, typer.Option(help="How many faces; each becomes a clip.", min=1)] = 24,
    frames: Annotated[int, typer.Option(help="Length of a clip.", min=2)] = 12,
    seed: Annotated[int, typer.Option(help="Of motion and degradation.", min=0)] = 0,
    metrics: Any = None,
) -> None:
    """Make clips of moving faces, coded at a low bit rate, and restore them with and without the frame before."""
    from streamfix.evaluate.clips import evaluate_clips as run
    from streamfix.evaluate.tables import clips_tables
    from streamfix.restore.base import load_restorer

    restorer = load_restorer(model)
    with bar() as shown:
        task = shown.add_task("clips", total=None)
        scores = run(
            folder,
            restorer,
            metrics,
            limit=limit,
            frames=frames,
            seed=seed,
            progress=lambda done, total: shown.update(task, completed=done, total=total),
        )
    for table in clips_tables(scores):
        show(table)
    left_out(scores.missing)
