"""The restorers that streams share, and what each stream knows of its own faces."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
from torch import Tensor

from streamfix.errors import StreamfixError
from streamfix.restore.base import Restorer, recurs, restore_next_images
from streamfix.restore.effort import Effort, Preparable, efforts
from streamfix.restraint import Guard
from streamfix.serve.detail import stand_back
from streamfix.types import Crop

_log = logging.getLogger(__name__)
_MOST_REMEMBERED = 32
Parser = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


class Memory:
    """What one stream carries from one restoration of a face to its next.

    states: of a recurrent restorer, by track. guard: how sharp each face was lately, counted in restorations, and what of
    it `parser` calls face.
    """

    def __init__(self, parser: Parser | None = None) -> None:
        self.states: dict[int, Tensor] = {}
        self.guard = Guard(parser)
        self.restorations = 0
        self.lock = threading.Lock()


class Models:
    """Restorers by name; one call at a time, whoever asks.

    batch_size: faces computed together at most. parser: which pixels of a crop are face (faces.parsing.FaceParser).
    """

    def __init__(self, restorers: Mapping[str, Restorer], *, batch_size: int = 4, parser: Parser | None = None) -> None:
        self._efforts = {name: efforts(restorer) for name, restorer in restorers.items()}
        self._batch_size = batch_size
        self._parser = parser
        self._lock = threading.Lock()
        self._preparing: dict[tuple[str, int], threading.Thread] = {}
        self._preparing_lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """As `Settings.model` takes them; the first is the default."""
        return list(self._efforts)

    def memory(self) -> Memory:
        """A new stream's, for `restore`."""
        return Memory(self._parser)

    def changes(self, model: str) -> bool:
        """Whether a model does anything at all."""
        return self._efforts[model][0].restorer.name != "passthrough"

    def efforts(self, model: str) -> tuple[Effort, ...]:
        """The ways to run a model, the best first; `restore` takes their numbers."""
        return self._efforts[model]

    def ready(self, model: str, effort: int) -> bool:
        """Whether an effort can be asked for without a stall; where not, it is readied beside the work and can be soon."""
        restorer = self._efforts[model][effort].restorer
        if effort == 0 or not isinstance(restorer, Preparable):
            return True
        with self._preparing_lock:
            thread = self._preparing.get((model, effort))
            if thread is None:
                # no daemon, although the thread that asks is one: the process must not end within a compiler's C++
                thread = threading.Thread(target=_prepare, args=(restorer,), name="live-prepare", daemon=False)
                self._preparing[model, effort] = thread
                thread.start()
        return not thread.is_alive()

    def restore(
        self, model: str, crops: Sequence[Crop], memory: Memory, *, effort: int = 0
    ) -> list[npt.NDArray[np.float32]]:
        """Restored crops in their order, as far as they do no harm (see restraint.py).

        memory: of the stream; it is brought up to date.
        """
        restorer, tracks = self._efforts[model][effort].restorer, [c.placement.track_id for c in crops]
        states = [memory.states.get(track) for track in tracks] if recurs(restorer) else None
        with self._lock:
            pictures, after = restore_next_images(
                restorer, [c.image for c in crops], states, batch_size=self._batch_size
            )
        with memory.lock:
            memory.states.update(zip(tracks, after, strict=False))
            for track in list(islice(memory.states, max(len(memory.states) - _MOST_REMEMBERED, 0))):
                del memory.states[track]
            memory.restorations += 1
            weights = [
                memory.guard.restrain(memory.restorations, track, crop.image, picture).weight
                for track, crop, picture in zip(tracks, crops, pictures, strict=True)
            ]
        return [_mixed(c.image, p, w) for c, p, w in zip(crops, pictures, weights, strict=True)]


def _prepare(restorer: Preparable) -> None:
    stand_back()
    try:
        restorer.prepare()
    except StreamfixError as error:  # whoever needs it is told by the call itself
        _log.warning("%s", error)


def _mixed(
    crop: npt.NDArray[np.float32], restored: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    return np.asarray(crop + weight[..., None] * (restored - crop), dtype=np.float32)
