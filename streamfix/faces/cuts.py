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


class CutDetector:
    """Tells from the frames so far whether a frame begins a new scene. Feed every frame once, in order.

    A cut is a frame whose structure is found nowhere near its place in the previous frames (normalised correlation over
    shifts, so pans, shakes and changes of light are none), whose colours changed too, and both more than they did just before.
    After a flash the picture is compared with those before it.
    """

    def __init__(self) -> None:
        self._past: deque[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = deque(maxlen=_MEMORY)
        self._usual: deque[float] = deque(maxlen=8)

    def is_cut(self, image: Image) -> bool:
        """image: RGB frame of any size, as stored. The first frame is no cut."""
        thumbnail = np.asarray(cv2.resize(image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        grey = cv2.GaussianBlur(thumbnail.mean(axis=2).astype(np.float32), (0, 0), 1.0)
        now = (np.asarray(grey, dtype=np.float32), _histogram(thumbnail))
        changes = [_change(now, then) for then in self._past]
        self._past.append(now)
        if not changes:
            return False
        latest = changes[-1]
        usual = float(np.median(self._usual)) if self._usual else 0.0
        self._usual.append(latest)
        return min(changes) > max(_CHANGE, _JUMP * usual)


def _histogram(thumbnail: Image) -> npt.NDArray[np.float32]:
    """Shares of the colours (_BINS**3,), each channel in _BINS steps."""
    steps = (thumbnail >> 5).astype(np.int64).reshape(-1, 3) @ np.array([_BINS * _BINS, _BINS, 1])
    return np.asarray(np.bincount(steps, minlength=_BINS**3) / steps.size, dtype=np.float32)


def _change(
    now: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    then: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> float:
    """0 (same picture) .. 1 (nothing in common in structure and colour)."""
    core = now[0][_MARGIN_Y:-_MARGIN_Y, _MARGIN_X:-_MARGIN_X]
    if float(core.std()) < 2.0 and float(then[0].std()) < 2.0:
        likeness = 1.0 if abs(float(core.mean() - then[0].mean())) < 40 else 0.0  # two plain pictures have no structure
    elif float(core.std()) < 2.0 or float(then[0].std()) < 2.0:
        likeness = 0.0
    else:
        likeness = float(np.nan_to_num(cv2.matchTemplate(then[0], core, cv2.TM_CCOEFF_NORMED)).max())
    structure = min(max(1.0 - likeness, 0.0), 1.0)
    colour = 1.0 - float(np.minimum(now[1], then[1]).sum())
    return float(np.sqrt(structure * colour))
