"""Running figures of a live stream: stage times, latencies, rates, drops by reason."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from streamfix.types import Facts

STAGES = ("rgb", "detect", "follow", "cut", "restore", "lay", "encode")
"""restore: one call of the model; the rest: one frame."""

Clock = Callable[[], float]
_SHARE = 0.15
_WINDOW = 3.0


class Figures:
    """What one stream did lately. Thread-safe.

    observe: called with the name and the seconds of every stage run, latency: with those of every frame delivered,
    drop: with the reason of every frame dropped (for metrics). clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        observe: Callable[[str, float], None] = lambda _name, _seconds: None,
        latency: Callable[[float], None] = lambda _seconds: None,
        drop: Callable[[str], None] = lambda _reason: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._observe, self._on_latency, self._on_drop, self.clock = observe, latency, drop, clock
        self._lock = threading.Lock()
        self._mean: dict[str, float] = {}
        self._calls: dict[str, deque[float]] = {}
        self._came: deque[float] = deque(maxlen=512)
        self._went: deque[tuple[float, float]] = deque(maxlen=512)
        self.drops: Counter[str] = Counter()
        self.frames = 0
        self.faces = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one run of a stage."""
        began = self.clock()
        yield
        self.spent(name, self.clock() - began)

    def spent(self, name: str, seconds: float) -> None:
        """Note one run of a stage."""
        with self._lock:
            before = self._mean.get(name)
            self._mean[name] = seconds if before is None else before + _SHARE * (seconds - before)
            self._calls.setdefault(name, deque(maxlen=256)).append(self.clock())
        self._observe(name, seconds)

    def mean(self, name: str) -> float | None:
        """Running mean of a stage in seconds, None where it has never run."""
        with self._lock:
            return self._mean.get(name)

    def rate(self, name: str) -> float:
        """Runs of a stage a second, lately."""
        with self._lock:
            return self._recent(self._calls.get(name, ()))

    def came(self) -> None:
        """A frame arrived."""
        with self._lock:
            self._came.append(self.clock())

    def went(self, latency: float, *, faces: int) -> None:
        """A frame was delivered that many seconds after it had arrived."""
        with self._lock:
            self._went.append((self.clock(), latency))
            self.frames += 1
            self.faces = faces
        self._on_latency(latency)

    def dropped(self, reason: str) -> None:
        """A frame was not delivered."""
        with self._lock:
            self.drops[reason] += 1
        self._on_drop(reason)

    @property
    def interval(self) -> float | None:
        """Median seconds between arriving frames, None until some have come."""
        with self._lock:
            stamps = list(self._came)[-60:]
        gaps = sorted(b - a for a, b in pairwise(stamps))
        return gaps[len(gaps) // 2] if len(gaps) >= 5 else None

    def latency(self, share: float) -> float | None:
        """Quantile (0..1) of the seconds from arrival to delivery, lately."""
        since = self.clock() - _WINDOW
        with self._lock:
            values = sorted(latency for stamp, latency in self._went if stamp >= since)
        return values[min(int(share * len(values)), len(values) - 1)] if values else None

    def facts(self) -> Facts:
        """Plain figures for the page: seconds as milliseconds."""
        p50, p95 = self.latency(0.5), self.latency(0.95)
        with self._lock:
            return {
                "fps_in": round(self._recent(self._came), 1),
                "fps": round(self._recent([stamp for stamp, _ in self._went]), 1),
                "latency_p50_ms": None if p50 is None else round(p50 * 1e3),
                "latency_p95_ms": None if p95 is None else round(p95 * 1e3),
                "frames": self.frames,
                "faces": self.faces,
                "drops": dict(self.drops),
                "stages_ms": {name: round(value * 1e3, 1) for name, value in self._mean.items()},
            }

    def _recent(self, stamps: deque[float] | list[float] | tuple[float, ...]) -> float:
        now = self.clock()
        recent = [s for s in stamps if s >= now - _WINDOW]
        return len(recent) / _WINDOW if recent else 0.0
