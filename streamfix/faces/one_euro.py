"""The One-Euro filter over the similarity of one track: smoothing without knowing the future (live)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from streamfix.faces.align import Similarity, wrapped

Vector = npt.NDArray[np.float64]

# One-Euro (Casiez, Roussel, Vogel, CHI 2012): cutoff = least + slope * |speed|. Position counts in shares of the face's size. A still
# face is held by the first figure; a face that moves by its own size in a second lags 1 % of its size behind. Scale is smoothed
# harder than position: its jitter is what the eye sees as pumping.
_LEAST = np.array([1.0, 1.0, 0.5, 0.7])
"""Hz, of cx, cy, log scale, angle."""
_SLOPE = np.array([15.0, 15.0, 8.0, 8.0])
"""Hz per (face size, natural log, radian) a second."""
_SPEED_CUTOFF = 1.0
_COAST = 0.1
"""Seconds in which the speed of a face that is not seen any more falls to 1/e."""


class SimilarityFilter:
    """State of one track. Feed `update` with every measurement and `coast` where there is none, in order of time.

    Equal measurements come out bit for bit, whatever the time between them.
    """

    def __init__(self) -> None:
        self._value: Vector | None = None
        self._speed = np.zeros(4)
        self._last = np.zeros(4)
        self._time = 0.0

    def update(self, measured: Similarity, *, size: float, time: float) -> Similarity:
        """The smoothed place. size: of the face, frame pixels. time: seconds, rising."""
        now = np.array([measured.cx, measured.cy, measured.log_scale, measured.angle])
        if self._value is None:
            self._value, self._last, self._time = now, now.copy(), time
            return measured
        now[3] = self._value[3] + wrapped(now[3] - self._value[3])
        unit = np.array([size, size, 1.0, 1.0])
        elapsed = max(time - self._time, 1e-6)
        speed = (now - self._last) / elapsed / unit
        self._speed = self._speed + _share(np.full(4, _SPEED_CUTOFF), elapsed) * (speed - self._speed)
        pace = np.abs(self._speed)
        pace[:2] = math.hypot(*self._speed[:2])  # no axis of the picture is special
        # written as a step from the old value, so that a measurement equal to it changes nothing
        self._value = self._value + _share(_LEAST + _SLOPE * pace, elapsed) * (now - self._value)
        self._last, self._time, self._size = now, time, size
        return self._place()

    def coast(self, *, time: float) -> Similarity:
        """Where the track is likely to be: onwards at a speed that dies out. Needs an `update` before."""
        if self._value is None:
            raise RuntimeError("a track coasts only after it has been seen")
        elapsed = max(time - self._time, 0.0)
        decay = math.exp(-elapsed / _COAST)
        unit = np.array([self._size, self._size, 0.0, 0.0])  # a face out of sight neither grows nor turns
        self._value = self._value + self._speed * unit * _COAST * (1.0 - decay)
        self._speed = self._speed * decay
        self._last, self._time = self._value.copy(), time
        return self._place()

    _size = 1.0

    def _place(self) -> Similarity:
        assert self._value is not None
        cx, cy, log_scale, angle = self._value.tolist()
        return Similarity(cx=cx, cy=cy, log_scale=log_scale, angle=angle)


def _share(cutoff: Vector, elapsed: float) -> Vector:
    """Weight of the newest value in a first-order low-pass of that cutoff (Hz)."""
    return 1.0 / (1.0 + 1.0 / (math.tau * cutoff * elapsed))
