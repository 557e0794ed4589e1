"""The tables of an evaluation, for the terminal and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamfix.evaluate.clips import KINDS, ClipScores
from streamfix.evaluate.faces import FaceScores
from streamfix.evaluate.groups import FEWEST, worst_to_best


@dataclass(frozen=True, slots=True)
class Table:
    """Text in cells; every row has as many as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """A Markdown table under its title in bold."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        cells = ("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)
        return f"**{self.title}**\n\n" + "\n".join(cells) + "\n"

    def turned(self) -> Table:
        """With rows and columns exchanged: for a terminal that is narrower than a line of figures."""
        head, *lines = zip(self.columns, *self.rows, strict=True)
        return Table(self.title, head, lines)

    def csv(self) -> str:
        """Comma-separated, the columns' names first."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


def metrics_table(scores: FaceScores, degradation: str) -> Table:
    """One row per metric: input, restored, their ratio."""
    rows = [(name, f"{a:.4f}", f"{b:.4f}", f"{ratio:.3f}") for name, a, b, ratio in scores.table()]
    return Table(f"{len(scores.names)} faces, {degradation}", ("metric", "input", "restored", "restored / input"), rows)


def contest_table(scores: FaceScores, name: str, degradation: str) -> Table:
    """One column per restorer, the input first; one row per metric, and the time a face."""
    entries = scores.contest(name)
    rows = [(metric, *(f"{values[metric]:.4f}" for _, _, values in entries)) for metric in entries[0][2]]
    rows.append(("ms a face", *(f"{seconds * 1e3:.0f}" if who != "input" else "-" for who, seconds, _ in entries)))
    return Table(
        f"{len(scores.names)} faces, {degradation}: in one run", ("metric", *(who for who, _, _ in entries)), rows
    )


def group_table(scores: FaceScores, labels: Mapping[str, str], by: str, metric: str) -> Table:
    """One row per group, then the largest to the smallest of every column, and what of it may be chance, over groups of FEWEST faces."""
    groups = scores.groups(labels)
    rows: list[tuple[str, ...]] = []
    for name, members in groups.items():
        a, b = (scores.mean(which, metric, members) for which in ("before", "after"))
        rows.append((name, str(len(members)), f"{a:.4f}", f"{b:.4f}", f"{b / a:.3f}"))
    counted = [members for members in groups.values() if len(members) >= FEWEST]
    if len(counted) > 1:
        faces = [i for members in counted for i in members]
        before, after = ([row[i][metric] for i in faces] for row in (scores.before, scores.after))
        figures = worst_to_best(before, after, [len(members) for members in counted])
        names = (f"worst / best ({FEWEST} faces and more)", "the same by chance, median", "p: by chance as far apart")
        rows += [
            (name, str(len(faces)), *(f"{v:.3f}" for v in line)) for name, line in zip(names, figures, strict=True)
        ]
    return Table(f"{metric} by {by}", (by, "faces", "input", "restored", "restored / input"), rows)


def clips_tables(scores: ClipScores) -> list[Table]:
    """One row per metric over the clips; and the error after another face in the same track."""
    rows = []
    for name, given in scores.means["input"].items():
        alone, recurrent = (scores.means[kind][name] for kind in KINDS[1:])
        ratio = recurrent / alone if alone else float("nan")
        rows.append((name, f"{given:.4f}", f"{alone:.4f}", f"{recurrent:.4f}", f"{ratio:.3f}"))
    columns = ("metric", *KINDS, "recurrent / frame by frame")
    tables = [Table(f"{scores.clips} clips", columns, rows)]
    if scores.cut:
        cut = [(kind, *(f"{v:.3f}" for v in scores.cut[kind])) for kind in KINDS[1:]]
        tables.append(Table("error after a cut, in 1/255", ("restorer", "first frame", "second frame"), cut))
    return tables
