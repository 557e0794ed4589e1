"""What a recurrent restorer carries from frame to frame, in windows that no cut of a job can shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from streamfix.restore.base import Picture, Restorer, restore_next_images

WINDOW = 64
"""Frames after which the memory of a face begins anew, on a fixed grid of frame numbers. A job that is cut into parts
gives the same frames as one run when every part begins at a multiple of this, after WARM_UP frames that it throws away."""

WARM_UP = 8
"""Frames that a window runs ahead of its first. The answer goes over from the window before in them, so that nothing pops."""


@dataclass(frozen=True, slots=True)
class _Memory:
    image: Picture
    restored: Picture
    state: Tensor


class Recurrence:
    """Restores the faces of one frame after the other, each guided by the restored face of the frame before.

    restorer: a RecurrentRestorer. A face that was not there in the frame before starts afresh; one whose crop is that
    of the frame before, sample for sample, is the face that it was. Memory holds one state per face, two in the last
    frames of a window.
    """

    def __init__(self, restorer: Restorer, *, batch_size: int = 8) -> None:
        self._restorer, self._batch_size = restorer, batch_size
        self._memory: dict[tuple[int, int], _Memory] = {}  # by track and window, of the last frame
        self._last: int | None = None

    def restore(self, index: int, tracks: Sequence[int], images: Sequence[Picture]) -> list[Picture]:
        """Restore the faces of frame number `index`, which rises from call to call; call for frames without faces too.

        tracks: who each face is. images, result: as for restore_images.
        """
        if self._last is not None and index != self._last + 1:
            self._memory = {}
        self._last = index
        window, position = divmod(index, WINDOW)
        ahead = position + 1 - (WINDOW - WARM_UP)  # frames that the next window has run for, this one included
        chains = [window, window + 1] if ahead > 0 else [window]
        keys = [((track, chain), image) for chain in chains for track, image in zip(tracks, images, strict=True)]
        before, self._memory = self._memory, {}
        for key, image in keys:
            if key in before and np.array_equal(before[key].image, image):
                self._memory[key] = before[key]
        jobs = [(key, image) for key, image in keys if key not in self._memory]
        states = [before[key].state if key in before else None for key, _ in jobs]
        restored, after = restore_next_images(
            self._restorer, [image for _, image in jobs], states, batch_size=self._batch_size
        )
        for (key, image), picture, state in zip(jobs, restored, after, strict=True):
            self._memory[key] = _Memory(image, picture, state)
        answers = [self._memory[track, window].restored for track in tracks]
        if ahead <= 0:
            return answers
        share = np.float32(ahead / (WARM_UP + 1))
        following = [self._memory[track, window + 1].restored for track in tracks]
        return [a + share * (b - a) for a, b in zip(answers, following, strict=True)]
