"""The live way to drive the stages: the latest frame wins, two in flight, order kept, nobody waits who must not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from streamfix.serve.figures import Clock, Figures
from streamfix.types import Frame

Looked = TypeVar("Looked")
Done = TypeVar("Done")
Result = TypeVar("Result", covariant=True)
_SHARE = 0.2


class Stages(Protocol[Looked, Result]):
    """The work on one frame in two halves; each half runs in a thread of its own, frame after frame."""

    def look(self, frame: Frame) -> Looked:
        """The first half: find the faces, cut them out."""

    def finish(self, looked: Looked) -> Result:
        """The second half: restore, lay back."""


@dataclass(frozen=True, slots=True)
class _Entry:
    frame: Frame
    arrived: float


class Scheduler(Generic[Looked, Done]):
    """Runs the stages over frames as they come.

    `submit` never blocks: a frame waits in a mailbox of one, and a newer one takes its place. At most two frames are worked on, one in
    each half, and the first half begins only when its result will be wanted: so latency is that of the work, and does
    not grow however slow it is. deliver: called with each result and the time its frame arrived, in order, in the finishing
    thread. fail: called once, in the thread it happened in, with what a stage or deliver raised; nothing more is done then.
    Every frame that is not delivered is counted in the figures with its reason: "superseded" by a newer one, "late" (its pts
    does not follow the last one's), "stopped".
    """

    def __init__(
        self,
        stages: Stages[Looked, Done],
        *,
        deliver: Callable[[Done, float], None],
        fail: Callable[[BaseException], None],
        figures: Figures,
        clock: Clock = time.monotonic,
    ) -> None:
        self._stages, self._deliver, self._fail = stages, deliver, fail
        self._figures, self._clock = figures, clock
        self._state = threading.Condition()
        self._mailbox: _Entry | None = None
        self._between: tuple[Looked, float] | None = None
        self._finishing_since: float | None = None
        self._look_mean = 0.0
        self._finish_mean: float | None = None
        self._last_time = float("-inf")
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("live-look", self._look_on), ("live-finish", self._finish_on))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, frame: Frame, *, arrived: float | None = None) -> None:
        """Hand in the newest frame, from any thread. arrived: on the clock; now where it is None."""
        stamp = self._clock() if arrived is None else arrived
        self._figures.came()
        with self._state:
            if self._stopped:
                reason = "stopped"
            elif frame.time <= self._last_time:
                reason = "late"
            else:
                self._last_time = frame.time
                reason = "superseded" if self._mailbox is not None else ""
                self._mailbox = _Entry(frame, stamp)
                self._state.notify_all()
        if reason:
            self._figures.dropped(reason)

    def restart(self) -> None:
        """The time line begins anew: the next frame may have any pts."""
        with self._state:
            self._last_time = float("-inf")

    def stop(self, *, timeout: float = 10.0) -> None:
        """End the threads; what is in flight is given up. Safe to call twice, and from a callback."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._state:
                first, self._stopped = not self._stopped, True
                self._state.notify_all()
            if first:
                self._fail(error)

    def _look_on(self) -> None:
        while (entry := self._next()) is not None:
            began = self._clock()
            looked = self._stages.look(entry.frame)
            self._look_mean += _SHARE * (self._clock() - began - self._look_mean)
            with self._state:
                self._state.wait_for(lambda: self._between is None or self._stopped)
                if self._stopped:
                    break
                self._between = looked, entry.arrived
                self._state.notify_all()

    def _next(self) -> _Entry | None:
        """The newest frame, taken as late as the second half allows; None at the end."""
        with self._state:
            while not self._stopped:
                wait = None if self._mailbox is None else self._ahead()
                if self._mailbox is not None and wait is not None and wait <= 0:
                    entry, self._mailbox = self._mailbox, None
                    return entry
                self._state.wait(wait)
            return None

    def _ahead(self) -> float | None:
        """Seconds until the first half should begin so that it ends when the second is free; None: until it is."""
        if self._between is not None:
            return None
        if self._finishing_since is None:
            return 0.0
        if self._finish_mean is None:
            return None
        return self._finishing_since + self._finish_mean - self._look_mean - self._clock()

    def _finish_on(self) -> None:
        while True:
            with self._state:
                self._finishing_since = None
                self._state.notify_all()
                self._state.wait_for(lambda: self._between is not None or self._stopped)
                if self._stopped or self._between is None:
                    return
                (looked, arrived), self._between = self._between, None
                self._finishing_since = began = self._clock()
                self._state.notify_all()
            done = self._stages.finish(looked)
            took = self._clock() - began
            mean = self._finish_mean
            self._finish_mean = took if mean is None else mean + _SHARE * (took - mean)
            self._deliver(done, arrived)
