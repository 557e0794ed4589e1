"""Contact sheets of prepared faces, to be looked at before anything is trained on them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamfix._cv2 import cv2
from streamfix.types import Image

COLUMNS, MOST = 10, 300
"""Faces in a row, and on a sheet: of more, evenly chosen ones are shown."""
_SIDE, _LINE = 112, 14
_GROUND = 24


@dataclass(frozen=True, slots=True)
class Cell:
    """One face. thumb: a JPEG in base64. lines: what stands below it."""

    thumb: str
    lines: tuple[str, str]


def contact_sheet(title: str, cells: Sequence[Cell]) -> Image:
    """RGB uint8: a title and the faces in the order given."""
    if len(cells) > MOST:
        picked = np.linspace(0, len(cells) - 1, MOST).round().astype(int)
        title, cells = f"{title}; {MOST} of them", [cells[i] for i in picked]
    rows = -(-len(cells) // COLUMNS)
    high = _SIDE + 2 * _LINE + 4
    sheet = np.full((2 * _LINE + 4 + rows * high, COLUMNS * (_SIDE + 4), 3), _GROUND, np.uint8)
    _write(sheet, title, 4, 20, 0.5)
    for number, cell in enumerate(cells):
        y, x = 2 * _LINE + 4 + number // COLUMNS * high, number % COLUMNS * (_SIDE + 4)
        stored = cv2.imdecode(np.frombuffer(base64.b64decode(cell.thumb), np.uint8), cv2.IMREAD_COLOR)
        if stored is not None:
            sheet[y : y + _SIDE, x : x + _SIDE] = cv2.resize(stored, (_SIDE, _SIDE))[..., ::-1]
        for line, text in enumerate(cell.lines):
            _write(sheet[:, : x + _SIDE], text[:18], x + 2, y + _SIDE + (line + 1) * _LINE - 3, 0.36)
    return sheet


def _write(sheet: Image, text: str, x: int, y: int, size: float) -> None:
    shown = text.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    canvas = np.ascontiguousarray(sheet)
    cv2.putText(canvas, shown, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (230, 230, 230), 1, cv2.LINE_AA)
    sheet[...] = canvas
