"""Restored detail that outlives its frame: what the model added to a face, laid on the frames until it has run again.

The model runs in a thread of its own on the newest crops. Alignment registers a face from frame to frame, so the difference that
restoration made can be added to a later crop of the same track, but only where that crop still looks as it did:
a mouth that has opened or an eye that has closed shows the input until the next restoration. The input itself is always the
current frame's.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.types import CROP_SIZE, Crop

Picture = npt.NDArray[np.float32]
Restore = Callable[[Sequence[Crop]], list[Picture]]

_GATE_SIZE = 64
_SURE = 0.03
_LOST = 0.10
"""Mean change of a patch (0..1) up to which its detail stays whole, and from which it is gone."""
_EASE = 0.5
"""Share of the way from old detail to new that one frame goes: a renewal must not flash."""
_NICE = 5
"""Of the thread in which the model runs, see stand_back."""
_FORGET = 60
"""Frames without a sight of a track after which its detail is dropped."""


@dataclass(slots=True)
class _Kept:
    """What is known of one track.

    small: the crop that was restored, (64, 64, 3). shown: the difference laid on the last frame. goal: the newest
    difference. seen: frame number at which the track was last offered. restored: at which it was last restored.
    A track keeps its record: the model's thread renews the rest while a frame moves `shown`, which belongs to frames alone.
    """

    small: Picture
    shown: Picture
    goal: Picture
    seen: int
    restored: int


class Detail:
    """Restored detail by track.

    restore: the crops of one call -> restored crops; called in a thread of this object's own, at most `at_once` crops (which
    may be set at any time) a call, those first that have waited longest. An exception it raises is raised by the next `lay`.
    """

    def __init__(self, restore: Restore, *, at_once: int = 1) -> None:
        self._restore, self.at_once = restore, at_once
        self._state = threading.Condition()
        self._kept: dict[int, _Kept] = {}
        self._offered: list[Crop] | None = None
        self._number = 0
        self._time = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="live-detail", daemon=True)
        self._thread.start()

    def lay(self, crops: Sequence[Crop]) -> list[Picture | None]:
        """The crops of a frame with the detail their tracks have; None for a track that has none yet.

        The crops are offered to the model as the newest.
        """
        with self._state:
            if self._error is not None:
                raise self._error
            self._number += 1
            self._offered = list(crops)
            self._state.notify()
            kept = [self._kept.get(c.placement.track_id) for c in crops]
            for k in (k for k in kept if k is not None):
                k.seen = self._number
            known = [None if k is None else (k, k.small, k.goal) for k in kept]  # a pair, whatever is renewed meanwhile
            self._forget()
        return [None if k is None else self._laid(c, *k) for c, k in zip(crops, known, strict=True)]

    def renew(self, crops: Sequence[Crop], restored: Sequence[Picture]) -> None:
        """Take what the model made of crops elsewhere (every frame fresh), so that a change of plan does not show."""
        with self._state:
            self._number += 1
            self._offered = None
            for crop, picture in zip(crops, restored, strict=True):
                self._keep(crop, picture, at_once=True)
            self._forget()

    def clear(self) -> None:
        """Forget every track: their numbers will be those of other faces."""
        with self._state:
            self._time += 1
            self._kept.clear()
            self._offered = None

    def stop(self) -> None:
        """End the thread."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        self._thread.join(10.0)

    def _laid(self, crop: Crop, kept: _Kept, before: Picture, goal: Picture) -> Picture:
        change = np.abs(small(crop.image) - before).mean(axis=2)
        gate = np.clip((_LOST - cv2.blur(change, (5, 5))) / (_LOST - _SURE), 0.0, 1.0).astype(np.float32)
        if kept.shown is not goal:
            kept.shown = np.asarray(cv2.addWeighted(kept.shown, 1.0 - _EASE, goal, _EASE, 0.0), dtype=np.float32)
        if float(gate.min()) >= 1.0:
            added = kept.shown
        else:
            wide = cv2.resize(gate, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_LINEAR)
            added = kept.shown * np.asarray(wide, dtype=np.float32)[..., None]
        out = cv2.add(crop.image, added)
        return np.asarray(np.clip(out, 0.0, 1.0, out=np.asarray(out)), dtype=np.float32)

    def _keep(self, crop: Crop, picture: Picture, *, at_once: bool = False) -> None:
        goal = picture - crop.image
        seen, now, track = small(crop.image), self._number, crop.placement.track_id
        if track not in self._kept:
            self._kept[track] = _Kept(small=seen, shown=np.zeros_like(goal), goal=goal, seen=now, restored=now)
        kept = self._kept[track]
        kept.small, kept.goal, kept.seen, kept.restored = seen, goal, now, now
        if at_once:
            kept.shown = goal

    def _forget(self) -> None:
        for track in [t for t, k in self._kept.items() if self._number - k.seen > _FORGET]:
            del self._kept[track]

    def _due(self, crops: Sequence[Crop]) -> list[Crop]:
        def waited(crop: Crop) -> int:
            kept = self._kept.get(crop.placement.track_id)
            return -1 if kept is None else kept.restored

        return sorted(crops, key=waited)[: self.at_once]

    def _work(self) -> None:
        stand_back()
        while True:
            with self._state:
                self._state.wait_for(lambda: self._offered or self._stopped)
                if self._stopped:
                    return
                crops = self._due(self._offered or [])
                self._offered = None
                begun = self._time
            try:
                pictures = self._restore(crops)
            except BaseException as error:
                with self._state:
                    self._error = error
                return
            with self._state:
                if begun != self._time:
                    continue  # cleared meanwhile
                for crop, picture in zip(crops, pictures, strict=True):
                    self._keep(crop, picture)


def small(image: Picture) -> Picture:
    """A crop reduced for comparison: (64, 64, 3)."""
    return np.asarray(cv2.resize(image, (_GATE_SIZE, _GATE_SIZE), interpolation=cv2.INTER_AREA), dtype=np.float32)


def stand_back() -> None:
    """Let the picture go before detail: this thread, and threads that it starts, yield to the others where cores are short."""
    if sys.platform == "linux":  # where priorities belong to threads
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
