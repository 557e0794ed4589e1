"""What a recurrent restorer carries from frame to frame, in windows that no cut of a job can shift."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from streamfix.restore.base import Picture, Restorer, restore_next_images

WINDOW = 32
"""Frames after which the memory of a face begins anew, on a fixed grid of frame numbers. A job that is cut into parts
gives the same frames as one run when every part begins at a multiple of this, after WARM_UP frames that it throws away."""

WARM_UP = 4
"""Frames that a window runs ahead of its first, unseen, so that its beginning does not show."""


class Recurrence:
    """Restores the faces of one frame after the other, each guided by the restored face of the frame before.

    restorer: a RecurrentRestorer. A face that was not there in the frame before starts afresh. Memory holds one state
    per face, two in the last frames of a window.
    """

    def __init__(self, restorer: Restorer, *, batch_size: int = 8) -> None:
        self._restorer, self._batch_size = restorer, batch_size
        self._states: dict[tuple[int, int], Tensor] = {}  # by track and window, of the last frame
        self._last: int | None = None

    def restore(self, index: int, tracks: Sequence[int], images: Sequence[Picture]) -> list[Picture]:
        """Restore the faces of frame number `index`, which rises from call to call; call for frames without faces too.

        tracks: who each face is. images, result: as for restore_images.
        """
        if self._last is not None and index != self._last + 1:
            self._states = {}
        self._last = index
        window = index // WINDOW
        jobs = [(track, window, n) for n, track in enumerate(tracks)]
        if index % WINDOW >= WINDOW - WARM_UP:
            jobs += [(track, window + 1, n) for n, track in enumerate(tracks)]
        if not jobs:
            self._states = {}
            return []
        before = [self._states.get((track, window)) for track, window, _ in jobs]
        restored, after = restore_next_images(
            self._restorer, [images[n] for _, _, n in jobs], before, batch_size=self._batch_size
        )
        self._states = {(track, window): state for (track, window, _), state in zip(jobs, after, strict=True)}
        return restored[: len(images)]
