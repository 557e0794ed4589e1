"""Scene cuts: a cut ends every track."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.types import Image

_WIDTH, _HEIGHT = 64, 36
_MARGIN_X, _MARGIN_Y = 12, 7
"""How far the picture may move between two frames and still be recognised, thumbnail pixels."""
_BINS = 8
_CHANGE = 0.3
"""Of `_change`: successive frames of handheld clips stay below 0.1, 99 % of pairs of unrelated pictures lie above 0.35."""
_JUMP = 2.5
_MEMORY = 3
_PLAIN = 2.0
"""Standard deviation of the thumbnail, in codes, below which a picture has no structure."""
_RELIT = 0.7
"""Of `_explained`: of pairs of unrelated pictures 99 % lie below 0.65; a scene under other light lies above."""
_FLASHED = 0.35
"""The same where no pixel got darker: 98 % of unrelated pairs are not like that at all, every flash is."""
_BLOWN = 0.6
"""Share of blown-out pixels from which a picture says too little to tell."""
_WAIT = 3
_BLACK = 8
"""Codes up to which the rim of a picture is a bar: it says nothing, and is there after a cut as it was before."""
_LEAST_PART = (12, 8)
"""Columns and rows of the thumbnail without which there is no picture between the bars."""
_DARK = 128.0
"""Two pictures of which hardly a pixel comes up to this are lit up before they are compared, by _MOST_GAIN at most."""
_MOST_GAIN = 6.0

Thumbnail = npt.NDArray[np.float32]
View = tuple[Thumbnail, npt.NDArray[np.float32]]
"""A picture as it is compared: blurred grey, and shares of the colours."""
Seen = tuple[Image, View]
"""The thumbnail of a picture, and its view as it is."""


class CutDetector:
    """Tells from the frames so far whether a frame begins a new scene. Feed every frame once, in order.

    A cut is a frame whose structure is found nowhere near its place in the previous frames (normalised correlation over
    shifts, so pans, shakes and changes of light are none), whose colours changed too, and both more than they did just before.
    Black bars around the picture count for nothing, and dark scenes are compared as if they were lit.
    A flash is none: a frame that is the one before under another tone curve, or brighter everywhere. Plain frames (black,
    white) and, for up to three frames, blown-out ones begin no scene themselves: what comes after them is compared with what
    was before. A change of the picture's size is a cut.
    """

    def __init__(self) -> None:
        self._past: deque[Seen] = deque(maxlen=_MEMORY)
        self._usual: deque[float] = deque(maxlen=8)
        self._shape: tuple[int, ...] | None = None
        self._plain = False
        self._waited = 0

    def is_cut(self, image: Image) -> bool:
        """image: RGB frame of any size, as stored. The first frame is no cut."""
        resized = self._shape is not None and image.shape != self._shape
        self._shape = image.shape
        thumbnail = np.asarray(cv2.resize(image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        now = (thumbnail, _view(thumbnail))
        if resized:
            self._past.clear()
            self._usual.clear()
        elif float(now[1][0].std()) < _PLAIN:
            self._plain = True
            return False
        cut = resized or (self._differs(now) if self._past else self._plain)
        if cut and self._past and self._waited < _WAIT and _blown(now) > _BLOWN >= _blown(self._past[-1]):
            self._waited += 1
            return False
        self._plain, self._waited = False, 0
        self._past.append(now)
        return cut

    def _differs(self, seen: Seen) -> bool:
        """Whether this is another scene than every frame remembered."""
        pairs = [_compared(seen, then) for then in self._past]
        changes = [_change(now, then) for now, then in pairs]
        usual = float(np.median(self._usual)) if self._usual else 0.0
        relit = min(changes) > _CHANGE and any(_relit(now[0], then[0]) for now, then in pairs)
        if not relit:
            self._usual.append(changes[-1])
        return not relit and min(changes) > max(_CHANGE, _JUMP * usual)


def _view(picture: Image | Thumbnail) -> View:
    grey = cv2.GaussianBlur(picture.mean(axis=2).astype(np.float32), (0, 0), 1.0)
    return np.asarray(grey, np.float32), _histogram(picture)


def _blown(seen: Seen) -> float:
    """Share of the picture that is white."""
    return float((seen[1][0] > 235).mean())


def _compared(*both: Seen) -> tuple[View, View]:
    """Two pictures as they are compared: what lies between their black bars, lit up where both are dark."""
    thumbnails = [thumbnail for thumbnail, _ in both]
    brightest = np.maximum(*thumbnails).max(axis=2)
    rows, columns = (np.flatnonzero((brightest > _BLACK).any(axis=axis)) for axis in (1, 0))
    part = slice(None), slice(None)
    if len(columns) >= _LEAST_PART[0] and len(rows) >= _LEAST_PART[1]:
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    gain = min(max(_DARK / max(float(np.percentile(brightest[part], 99)), 1.0), 1.0), _MOST_GAIN)
    whole = brightest[part].shape == brightest.shape
    if whole and gain == 1:
        return both[0][1], both[1][1]
    lit = (np.minimum(t[part].astype(np.float32) * np.float32(gain), 255) for t in thumbnails)
    sized = (t if whole else cv2.resize(t, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_LINEAR) for t in lit)
    now, then = (_view(np.asarray(t, np.float32)) for t in sized)
    return now, then


def _relit(now: Thumbnail, then: Thumbnail) -> bool:
    """Whether one is the other under another tone curve (a flash, a lamp, clouds), saturated or not."""
    alike = max(_explained(now, then), _explained(then, now))
    brighter, darker = float((now >= then - 6).mean()), float((now <= then + 6).mean())
    return alike > (_FLASHED if max(brighter, darker) > 0.97 else _RELIT)


def _explained(values: Thumbnail, by: Thumbnail) -> float:
    """Share of the variance of `values` that a tone curve of `by` explains (correlation ratio over twelve levels)."""
    whole = float(values.var())
    if whole < 1.0:
        return 0.0
    levels = np.array_split(values.ravel()[np.argsort(by, axis=None, kind="stable")], 12)
    return 1.0 - float(sum(part.var() * part.size for part in levels)) / values.size / whole


def _histogram(thumbnail: Image | Thumbnail) -> npt.NDArray[np.float32]:
    """Shares of the colours (_BINS**3,), each channel in _BINS steps."""
    steps = (thumbnail.astype(np.int64) >> 5).reshape(-1, 3) @ np.array([_BINS * _BINS, _BINS, 1])
    return np.asarray(np.bincount(steps, minlength=_BINS**3) / steps.size, dtype=np.float32)


def _change(now: View, then: View) -> float:
    """0 (same picture) .. 1 (nothing in common in structure and colour)."""
    core = now[0][_MARGIN_Y:-_MARGIN_Y, _MARGIN_X:-_MARGIN_X]
    if float(core.std()) < 2.0 and float(then[0].std()) < 2.0:
        likeness = 1.0 if abs(float(core.mean() - then[0].mean())) < 40 else 0.0  # two plain pictures have no structure
    elif float(core.std()) < 2.0 or float(then[0].std()) < 2.0:
        likeness = 0.0
    else:
        likeness = float(np.nan_to_num(cv2.matchTemplate(then[0], core, cv2.TM_CCOEFF_NORMED)).max())
    structure = min(max(1.0 - likeness, 0.0), 1.0)
    colour = max(1.0 - float(np.minimum(now[1], then[1]).sum()), 0.0)  # shares add up to 1 but for rounding
    return float(np.sqrt(structure * colour))
