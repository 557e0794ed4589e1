"""What the stages of one stream cost, as the governor weighs them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

_SHARE = 0.2
"""Weight of the newest call in a running mean."""
_FORGET = 30.0
"""Seconds after which a cost that was not measured again is worth less than an estimate: the machine is shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Mean seconds of the stages.

    frame: look at a frame, without detection. detect: one search. model: one restoration of one face, by effort (see
    restore/effort.py), the best first; empty while unknown. lay: lay the frame's faces back. faces: in the frame.
    """

    frame: float
    detect: float
    model: tuple[float, ...]
    lay: float
    faces: float = 1.0


class ModelCosts:
    """Seconds that one face takes at each effort. Thread-safe.

    shares: what each effort takes of the first's time, as far as that is known beforehand. Efforts that have not run lately are
    told from the one that ran last.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = tuple(shares)
        self._known: dict[int, tuple[float, float]] = {}  # mean, when
        self._warm: set[int] = set()
        self._last = 0
        self._lock = threading.Lock()

    def spent(self, effort: int, seconds: float, *, faces: int, now: float) -> None:
        """Note one call of the model. An effort's first call is passed over: it readies what the others use."""
        with self._lock:
            if effort not in self._warm:
                self._warm.add(effort)
                return
            cost = seconds / max(faces, 1)
            before = self._known.get(effort)
            mean = cost if before is None else before[0] + _SHARE * (cost - before[0])
            self._known[effort], self._last = (mean, now), effort

    def all(self, *, now: float) -> tuple[float, ...]:
        """Of every effort; empty while nothing is known."""
        with self._lock:
            if self._last not in self._known:
                return ()
            base = self._known[self._last][0] / self._shares[self._last]
            known = {e: mean for e, (mean, when) in self._known.items() if e == self._last or now - when <= _FORGET}
            return tuple(known.get(e, base * share) for e, share in enumerate(self._shares))
