"""Do no harm: where a restored face should give way to what was there.

Two things are read off the pair of crops itself. A face that the restorer hardly changes in its details was sharp
already: it is left alone. A place where both differ at the scale of features, not of details, is something that the
restorer did not take for what it is (a hand, a microphone, a lock of hair, a frame of glasses): the input wins there.
A face parsing network, where the user brings one, says besides where the face ends and hair, hat or collar begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.compose import face_mask

Picture = npt.NDArray[np.float32]

SHARP = (0.28, 0.5)
"""Relative change in fine detail up to which a face is left alone, and from which it is restored in full. Clean sharp
clips lie at 0.2 to 0.33, the least degraded ones at 0.6 and above."""
COVERED = (22.0, 45.0)
"""Difference at the scale of features, in 1/255, at which the input begins to win, and from which it has won. The
change that restoration owes to even heavy degradations stays below 20."""

WINDOW = 16
"""Frames over which the sharpness of a face is averaged."""

_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)
_FINE = (1.0, 2.0)
_FEATURE = 10.0
_STEP = 4


@dataclass(frozen=True, slots=True)
class Restraint:
    """What to use of a restored crop.

    sharp: 0 (left alone) .. 1 (restored in full), for the whole face. weight: float32 (512, 512) in [0, 1], for every
    pixel of the crop: sharp times what cover leaves.
    """

    sharp: float
    weight: Picture

    @property
    def covered(self) -> float:
        """Share of the face that is covered, 0..1."""
        if self.sharp <= 0:
            return 0.0
        return float(1 - (self.weight * face_mask()).sum() / (self.sharp * face_mask().sum()))


def restrain(crop: Picture, restored: Picture, *, change: float | None = None) -> Restraint:
    """How much of a restored crop to use.

    crop, restored: float32 (512, 512, 3), RGB in [0, 1]: what the restorer was given and what it gave. change: what
    `detail_change` says of the face, where the caller knows better than from this pair alone. A continuous function, so
    that nothing pops and equal frames are treated alike.
    """
    sharp = float(_ramp(detail_change(crop, restored) if change is None else change, *SHARP))
    return Restraint(sharp, np.float32(sharp) * _uncovered(crop, restored))


def detail_change(crop: Picture, restored: Picture) -> float:
    """Change in fine detail inside the face as a share of the detail that came out, from 0."""
    before, after = (_fine(np.asarray(cv2.transform(p, _LUMA), np.float32)) for p in (crop, restored))
    weight = face_mask()
    change = float((np.square(after - before) * weight).sum())
    return float(np.sqrt(change / max(float((np.square(after) * weight).sum()), 1e-9)))


class Guard:
    """`restrain` for the frames of a video: how sharp a face is, is told from its last WINDOW frames.

    Encoders make every frame a little sharper or softer than its neighbours (key frames, B-frames); a strength that
    followed would flicker. What is known of a track that has gone is dropped, so memory is bounded.
    parser: which pixels of a crop are face (faces.parsing.FaceParser), None where nobody knows.
    """

    def __init__(self, parser: Callable[[Picture], Picture] | None = None) -> None:
        self._parser = parser
        self._changes: dict[int, deque[tuple[int, float]]] = {}

    def restrain(self, index: int, track_id: int, crop: Picture, restored: Picture) -> Restraint:
        """As `restrain`, for the face of a track in frame number `index`, which rises from call to call."""
        since = index - WINDOW
        self._changes = {t: seen for t, seen in self._changes.items() if seen[-1][0] > since}
        seen = self._changes.setdefault(track_id, deque(maxlen=WINDOW))
        seen.append((index, min(detail_change(crop, restored), 1.0)))
        found = restrain(crop, restored, change=float(np.mean([c for i, c in seen if i > since])))
        if self._parser is None or found.sharp <= 0:
            return found
        return replace(found, weight=found.weight * self._parser(crop))


def _fine(luma: Picture) -> Picture:
    low, high = (cv2.GaussianBlur(luma, (0, 0), sigma) for sigma in _FINE)
    return np.asarray(low - high, np.float32)


def _uncovered(crop: Picture, restored: Picture) -> Picture:
    side = crop.shape[0] // _STEP  # the scale of features needs no finer grid
    small = cv2.resize(restored - crop, (side, side), interpolation=cv2.INTER_AREA)
    # by planes: numpy takes ten times as long along an axis of three
    difference = np.maximum.reduce(cv2.split(np.abs(cv2.GaussianBlur(small, (0, 0), _FEATURE / _STEP)))) * 255
    open_ = 1 - _ramp(difference, *COVERED)
    if bool((open_ == 1).all()):
        return _ones()
    # what covers is larger than where it differs most: its rim looks like skin
    grown = cv2.GaussianBlur(cv2.erode(np.asarray(open_, np.float32), np.ones((5, 5), np.uint8)), (0, 0), 2)
    return np.asarray(cv2.resize(grown, crop.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)


@cache
def _ones() -> Picture:
    ones = np.ones(face_mask().shape, np.float32)
    ones.setflags(write=False)
    return ones


def _ramp(value: npt.ArrayLike, low: float, high: float) -> npt.NDArray[np.float64]:
    """0 up to `low`, 1 from `high` on, smooth between."""
    t = np.clip((np.asarray(value, np.float64) - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float64)
