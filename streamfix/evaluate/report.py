"""What an evaluation leaves behind: tables as Markdown and CSV, bars and faces as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from streamfix._cv2 import cv2
from streamfix.errors import DependencyError, OutputError
from streamfix.evaluate.metrics import Picture
from streamfix.evaluate.paper import MethodScores
from streamfix.evaluate.published import CITATION, SMALLER_IS_BETTER, PaperSet, Row
from streamfix.evaluate.tables import Table
from streamfix.evaluate.timing import Timing
from streamfix.media.part import explain, write_whole
from streamfix.types import Image

_DIGITS = {"LPIPS": 3, "SSIM": 3, "identity": 3, "s/face": 3, "s/face in batches": 3}
_PAPER_LPIPS = "LPIPS-alex"
"""Where the paper's LPIPS stands: it does not name its network, and AlexNet is the default of lpips and pyiqa."""
_INK = {"paper": "#b9bec4", "measured": "#2a7fb8"}


@dataclass(slots=True)
class Method:
    """A line of a table. values: by column; pictures: of the first few faces. published: of the paper, not measured here."""

    name: str
    values: dict[str, float]
    published: bool = False
    pictures: list[Picture] = field(default_factory=list)

    @classmethod
    def measured(cls, name: str, scores: MethodScores, timing: Timing | None = None) -> Method:
        """With its time a face, alone and in the best batch, where that was measured."""
        values = dict(scores.means)
        if timing is not None:
            values["s/face"] = timing.single
            values["s/face in batches"] = timing.best[1]
        return cls(name, values, pictures=scores.pictures)


@dataclass(slots=True)
class SetReport:
    """Everything about one set: what the paper says and what was measured, on how many faces. truths: of the pictures shown."""

    paper_set: PaperSet
    faces: int
    methods: list[Method]
    truths: list[Picture] = field(default_factory=list)

    @classmethod
    def beside(cls, rows: Sequence[Row], paper_set: PaperSet, faces: int, methods: Sequence[Method]) -> SetReport:
        """The paper's rows of that set first."""
        published = []
        for row in (r for r in rows if paper_set.key in r.values):
            values = {_PAPER_LPIPS if k == "LPIPS" else k: v for k, v in row.values[paper_set.key].items()}
            values |= {"s/face": row.seconds} if row.seconds is not None else {}
            published.append(Method(row.method, values, published=True))
        return cls(paper_set, faces, [*published, *methods])

    def columns(self) -> list[str]:
        """The paper's, then what else was measured, times last."""
        named = [_PAPER_LPIPS if m == "LPIPS" else m for m in self.paper_set.metrics]
        found = dict.fromkeys([*named, *(c for m in self.methods for c in m.values)])
        return sorted(found, key=lambda c: c.startswith("s/face"))

    def table(self) -> Table:
        """One row a method; a dash where a figure was not published or could not be measured."""
        columns = self.columns()
        rows = []
        for method in self.methods:
            cells = (_cell(c, method.values[c]) if c in method.values else "-" for c in columns)
            rows.append((method.name, "paper" if method.published else f"ours, {_faces(self.faces)}", *cells))
        title = f"{self.paper_set.name}: published figures are {CITATION}, of its {self.paper_set.faces} faces"
        return Table(title, ("method", "figures", *(f"{c} {arrow(c)}" for c in columns)), rows)


def arrow(column: str) -> str:
    """Which way is better."""
    smaller = column in SMALLER_IS_BETTER or column.startswith(("LPIPS", "s/face"))
    return "↓" if smaller else "↑"


def joined(reports: Sequence[SetReport]) -> Table:
    """All sets in one table, for CSV: bare numbers, empty where there is none."""
    columns = sorted(dict.fromkeys(c for r in reports for c in r.columns()), key=lambda c: c.startswith("s/face"))
    rows = []
    for report in reports:
        for m in report.methods:
            faces = report.paper_set.faces if m.published else report.faces
            cells = (f"{m.values[c]:.6g}" if c in m.values else "" for c in columns)
            rows.append((report.paper_set.key, m.name, "paper" if m.published else "ours", str(faces), *cells))
    return Table("", ("set", "method", "figures", "faces", *columns), rows)


def save_report(
    folder: Path, name: str, reports: Sequence[SetReport], notes: Sequence[str], *, overwrite: bool
) -> None:
    """Write NAME.md, NAME.csv and NAME.png into a folder, each whole or not at all. Raises OutputError, DependencyError."""
    targets = {suffix: folder / f"{name}{suffix}" for suffix in (".md", ".csv", ".png")}
    check_free(targets.values(), overwrite=overwrite)
    text = "\n".join(r.table().markdown() for r in reports)
    text += "".join(f"\n- {note}" for note in notes) + "\n"
    picture = draw(reports)
    for suffix, data in ((".md", text.encode()), (".csv", joined(reports).csv().encode()), (".png", picture)):
        write_whole(targets[suffix], data)


def check_free(paths: Any, *, overwrite: bool) -> None:
    """OutputError where one of these files exists, unless it may be overwritten; the folder is made."""
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already; name another folder with --output, or allow it with --overwrite")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(explain(error, path.parent)) from error


def draw(reports: Sequence[SetReport], *, dpi: int = 100) -> bytes:
    """A PNG: for each set a row of bars, one panel a metric, and below it the first faces by every method measured."""
    check_plotting()
    from matplotlib.figure import Figure

    widest = max(len(r.columns()) for r in reports)
    strips = [face_strip([m.pictures for m in r.methods], r.truths) for r in reports]
    heights = [
        h
        for r, s in zip(reports, strips, strict=True)
        for h in (_height(r), *([0.5 + s.shape[0] / 160] if s is not None else []))
    ]
    figure = Figure(figsize=(max(11, 2.5 * widest + 2.2), sum(heights) + 0.8), layout="constrained")
    parts = iter(np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)))
    for report, strip in zip(reports, strips, strict=True):
        part = next(parts)
        part.suptitle(
            f"{report.paper_set.name}: {CITATION} in grey, ours on {_faces(report.faces)} in blue", fontsize=11
        )
        columns = report.columns()
        for number, (axis, column) in enumerate(
            zip(np.ravel(part.subplots(1, len(columns), squeeze=False)), columns, strict=True)
        ):
            _bars(axis, column, report.methods, labelled=number == 0)
        if strip is not None:
            axis = next(parts).subplots()
            axis.imshow(strip)
            axis.axis("off")
            shown = [m.name for m in report.methods if m.pictures]
            axis.set_title("from above: " + ", ".join([*shown, *(["truth"] if report.truths else [])]), fontsize=9)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    return data.getvalue()


def png(picture: Image) -> bytes:
    """A picture, uint8 RGB, as PNG."""
    _, data = cv2.imencode(".png", picture[..., ::-1])
    return bytes(data)


def check_plotting() -> None:
    """DependencyError where the figure cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"the figure needs matplotlib ({error}); pip install 'streamfix[plot]'") from error


def face_strip(rows: Sequence[Sequence[Picture]], truths: Sequence[Picture], *, side: int = 160) -> Image | None:
    """Rows of faces by method, the truth last: uint8 RGB; None without any."""
    some = [row for row in [*rows, truths] if len(row)]
    return _laid_out(some, side) if some else None


def save_strip(rows: Sequence[Sequence[Picture]], path: Path, *, height: int = 256) -> None:
    """Rows of pictures of one shape as one PNG, each `height` pixels high, whole or not at all. Raises OutputError."""
    write_whole(path, png(_laid_out(rows, height)))


def _laid_out(rows: Sequence[Sequence[Picture]], height: int) -> Image:
    lines = []
    for row in rows:
        cells = [
            cv2.resize(p, (round(p.shape[1] * height / p.shape[0]), height), interpolation=cv2.INTER_AREA) for p in row
        ]
        lines.append(np.concatenate(cells, axis=1))
    return np.asarray(np.rint(np.clip(np.concatenate(lines), 0, 1) * 255), np.uint8)


def _bars(axis: Any, column: str, methods: Sequence[Method], *, labelled: bool) -> None:
    names = [f"{m.name} (paper)" if m.published else m.name for m in methods]
    values = [m.values.get(column, float("nan")) for m in methods]
    inks = [_INK["paper" if m.published else "measured"] for m in methods]
    places = range(len(methods) - 1, -1, -1)
    axis.barh(places, np.nan_to_num(values), color=inks)
    for place, value in zip(places, values, strict=True):
        axis.text(0, place, "  -" if np.isnan(value) else f"  {_cell(column, value)}", va="center", fontsize=8)
    axis.set_yticks(list(places), names if labelled else [""] * len(names), fontsize=8)
    axis.set_title(f"{column} {arrow(column)}", fontsize=9)
    axis.tick_params(labelsize=8, length=0)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _height(report: SetReport) -> float:
    return 0.9 + 0.28 * len(report.methods)


def _cell(column: str, value: float) -> str:
    return f"{value:.{next((n for c, n in _DIGITS.items() if column.startswith(c)), 2)}f}"


def _faces(count: int) -> str:
    return f"{count} faces" if count != 1 else "1 face"
