"""`streamfix prepare-faces`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from streamfix.cli import people
from streamfix.cli.common import err, out, plain, told

if TYPE_CHECKING:
    from streamfix.train.prepare import Summary
    from streamfix.train.prepare.store import Record


@told
def prepare_faces(
    inputs: Annotated[
        list[Path], typer.Argument(help="Photos, videos, and folders with all below them.", metavar="DIR")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the faces; a further run adds to it.")],
    detector: Annotated[str, typer.Option(help="As for enhance.")] = "auto",
    embedding: people.Embedding = None,
    embedding_norm: people.EmbeddingNorm = "arcface",
    every: Annotated[float, typer.Option(help="Seconds between the frames of a video that are looked at.")] = 1.0,
    min_score: Annotated[float, typer.Option(help="Drop what the detector is less sure of, 0 to 1.")] = 0.8,
    min_size: Annotated[float, typer.Option(help="Drop faces smaller than this many source pixels.", min=0)] = 192.0,
    max_yaw: Annotated[float, typer.Option(help="Drop faces turned further than this, degrees.", min=0, max=90)] = 52.0,
    min_inside: Annotated[
        float, typer.Option(help="Drop faces of whose crop less lies in the picture, 0 to 1.")
    ] = 0.75,
    min_sharpness: Annotated[
        float, typer.Option(help="Drop soft faces: sharp portraits have 30 to 90, enlarged three times 24.", min=0)
    ] = 25.0,
    val: Annotated[float, typer.Option(help="Share of the faces kept for validation, 0 to 1.")] = 0.05,
    same: Annotated[float, typer.Option(help="Cosine of two embeddings from which on they are one person.")] = 0.45,
) -> None:
    """Make folders of aligned faces for training from photos and videos; a run that broke off goes on."""
    from streamfix.train.prepare import Options
    from streamfix.train.prepare import prepare_faces as prepare

    options = Options(
        detector=detector,
        embedding=embedding,
        embedding_norm=embedding_norm,
        every=every,
        min_score=min_score,
        min_size=min_size,
        max_yaw=max_yaw,
        min_inside=min_inside,
        min_sharpness=min_sharpness,
        val=val,
        same=same,
    )
    columns = (
        TextColumn("files"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, record: Record) -> None:
            good = sum(not face.reason for face in record.faces)
            what = f"{Path(record.source).name[-24:]}: {good} of {len(record.faces)} faces good"
            bar.update(task, completed=done, total=total, description=plain(what))

        summary = prepare(inputs, output, options, progress=show)
    for line in _told(summary):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"look at {output / 'kept.png'} and {output / 'dropped.png'}", highlight=False, markup=False, soft_wrap=True
    )


def _told(summary: Summary) -> list[str]:
    s = summary
    known = f" ({s.known} known from before)" if s.known else ""
    unread = f", {s.unreadable} unreadable" if s.unreadable else ""
    equal = f", {s.equal} more like the one before" if s.equal else ""
    dropped = ", ".join(f"{count} {reason}" for reason, count in s.dropped.most_common()) or "none"
    lines = [
        f"{s.sources} files{known}{unread}, {s.frames} frames{equal}: {s.found} faces, {s.kept} kept",
        f"dropped: {dropped}",
    ]
    if s.by_embedding:
        apart = "" if s.nearest is None else f", whose nearest faces have a cosine of {s.nearest:.2f}"
        lines.append(f"{s.people} people by their embeddings: {s.train} faces in train, {s.val} in val{apart}")
    else:
        lines.append(
            f"{s.train} faces in train, {s.val} in val, split by source file: who is in several files may be in both; "
            "--embedding FILE.onnx tells people apart"
        )
    return lines
