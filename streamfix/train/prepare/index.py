"""index.csv and the contact sheets: every face that was found, and what became of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from streamfix.media.part import write_whole
from streamfix.train.prepare.choose import Verdict
from streamfix.train.prepare.sheet import Cell, contact_sheet
from streamfix.train.prepare.store import Found, Record, encoded

COLUMNS = (
    *("file", "source", "time", "box", "size", "yaw", "sharpness", "score", "inside", "enlarged", "layout"),
    *("identity", "split", "reason", "duplicate_of"),
)
"""box: x1 y1 x2 y2 in the stored picture. file: below the folder, empty for what was dropped; the figures: see options and store."""


def write_index(root: Path, records: Sequence[Record], verdict: Verdict) -> None:
    """Write index.csv, kept.png and dropped.png. Raises OutputError."""
    rows: list[dict[str, object]] = []
    kept: list[tuple[str, Cell]] = []
    dropped: list[tuple[str, Cell]] = []
    for record in records:
        if record.error:
            rows.append({"source": record.source, "reason": f"unreadable: {record.error}"})
        for face in record.faces:
            rows.append(_row(record, face, verdict))
            place, why = verdict.places.get(face.name, ""), verdict.reason(face)
            cell = Cell(face.thumb, (place or why, _figure(face, why)))
            if place:  # people stand together
                kept.append((f"{place} {verdict.identities[face.name]}", cell))
            else:
                dropped.append((why, cell))
    write_whole(root / "index.csv", _csv(rows))
    title = f"kept: {len(kept)} of {len(kept) + len(dropped)} faces"
    _sheet(root / "kept.png", title, kept)
    _sheet(root / "dropped.png", f"dropped: {len(dropped)} of {len(kept) + len(dropped)} faces", dropped)


def _sheet(path: Path, title: str, cells: list[tuple[str, Cell]]) -> None:
    ordered = [cell for _, cell in sorted(cells, key=lambda entry: entry[0])]
    write_whole(path, encoded(".png", contact_sheet(title, ordered)))


def _figure(face: Found, why: str) -> str:
    """The figure that decided, for the sheet."""
    match why:
        case "unsure":
            return f"score {face.score:.2f}"
        case "small":
            return f"{face.size:.0f} px"
        case "turned":
            return f"{face.yaw:.0f} degrees"
        case "cut off":
            return f"{100 * face.inside:.0f} % inside"
        case _:
            return f"{face.size:.0f} px, sharp {face.sharpness or 0:.0f}"


def _row(record: Record, face: Found, verdict: Verdict) -> dict[str, object]:
    place = verdict.places.get(face.name, "")
    return {
        "file": f"{place}/{face.name}.png" if place else "",
        "source": record.source,
        "time": "" if face.time is None else face.time,
        "box": " ".join(f"{v:.1f}" for v in face.box),
        "size": face.size,
        "yaw": face.yaw,
        "sharpness": "" if face.sharpness is None else face.sharpness,
        "score": face.score,
        "inside": face.inside,
        "enlarged": face.enlarged,
        "layout": face.side or "",
        "identity": verdict.identities.get(face.name, ""),
        "split": place,
        "reason": verdict.reason(face),
        "duplicate_of": verdict.repeats.get(face.name, ""),
    }


def _csv(rows: Sequence[dict[str, object]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
