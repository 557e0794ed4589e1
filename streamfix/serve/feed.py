"""One stream: its pipeline, its sound, and everybody who watches it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Literal, Protocol

import av

from streamfix.errors import StreamfixError
from streamfix.serve.audio import AudioEncoder, Delay
from streamfix.serve.colors import STANDARD, tag
from streamfix.serve.encode import CLOCK_RATE
from streamfix.serve.engine import Engine, Looked, Restored
from streamfix.serve.figures import Figures
from streamfix.serve.levels import Receiver
from streamfix.serve.metrics import Metrics
from streamfix.serve.notice import held_picture
from streamfix.serve.scheduler import Scheduler
from streamfix.serve.viewers import Packet, Rung, View, Viewer, level
from streamfix.types import Facts, Frame

_log = logging.getLogger(__name__)

State = Literal["waiting", "live", "held", "failed", "closed"]
Key = tuple[str, View, int, Receiver]

_HELD_EVERY = 0.5
_SILENCE = 1.5
_INTERVALS = 3
"""Seconds without a picture, and intervals of a slow source, after which the last one is held, with a notice."""


class Sink(Protocol):
    """Where a stream goes besides its viewers."""

    def show(self, picture: av.VideoFrame, stamp: float) -> None:
        """The newest picture and its seconds on the stream's clock; must not wait."""

    def hear(self, packet: Packet, stamp: float) -> None:
        """A packet of Opus, likewise."""

    def close(self) -> None:
        """The stream is over."""


class Feed:
    """A stream of pictures and sound on its way through the engine to its viewers.

    Made and closed in the event loop's thread; `show` and `hear` may be called from any. engine: its own. ceiling: bits a second of
    one outgoing video. on_end: called in the loop with a sentence when the stream cannot go on.
    """

    def __init__(
        self, engine: Engine, *, figures: Figures, metrics: Metrics, ceiling: int, on_end: Callable[[str], None]
    ) -> None:
        self.engine, self.figures = engine, figures
        self._metrics, self._ceiling, self._on_end = metrics, ceiling, on_end
        self._loop = asyncio.get_running_loop()
        self._rungs: dict[Key, Rung] = {}
        self._rungs_lock = threading.Lock()
        self._viewers: dict[Viewer, Key] = {}
        self._sinks: list[Sink] = []
        self._origin = figures.clock()
        self._offset: float | None = None
        self._begun = self._origin  # the source's time line
        self._last: tuple[av.VideoFrame, float] | None = None
        self._gap = 0.0  # between the last two pictures: all that is known of a source that has just begun
        self._last_stamp = 0.0
        self.state: State = "waiting"
        self.notice = "waiting for the camera"
        self._scheduler: Scheduler[Looked, Restored] = Scheduler(
            engine, deliver=self._deliver, fail=self._fail, figures=figures, clock=figures.clock
        )
        self._audio: AudioEncoder | None = None
        self._audio_delay = Delay(clock=figures.clock)
        self._audio_thread = ThreadPoolExecutor(1, thread_name_prefix="live-audio")
        self._keeper = self._loop.create_task(self._keep(), name="feed-keeper")

    # --- what comes in ---

    def show(self, frame: Frame) -> None:
        """Take the newest picture of the source."""
        if not self._viewers and not self._sinks:  # nobody looks: nothing to do
            self._offset = None
            return
        tag(frame.picture)  # by its own size: beside another it is twice as wide
        self._scheduler.submit(frame)

    def hear(self, frame: av.AudioFrame) -> None:
        """Take the newest sound of the source."""
        if (self._viewers or self._sinks) and self.state != "closed":
            with contextlib.suppress(RuntimeError):  # closed in this very moment
                self._audio_thread.submit(self._encode_audio, frame)

    def restart(self) -> None:
        """The source begins a new time line."""
        self._offset, self._begun = None, self.figures.clock()
        self._scheduler.restart()

    def say(self, notice: str) -> None:
        """What the held frame tells while no picture comes."""
        self.notice = notice

    # --- who watches ---

    @property
    def viewers(self) -> int:
        """How many."""
        return len(self._viewers)

    def watch(self, viewer: Viewer) -> None:
        """Serve a viewer from the next key frame on."""
        self._join(viewer)

    def view(self, viewer: Viewer, view: View) -> None:
        """Show a viewer the result, or input and result side by side."""
        if viewer.view != view:
            self._leave(viewer)
            viewer.view = view
            self._join(viewer)

    def leave(self, viewer: Viewer) -> None:
        """Serve a viewer no longer."""
        self._leave(viewer)
        viewer.close()

    def add(self, sink: Sink) -> None:
        """Have the stream go to a sink too; it is closed with the stream."""
        self._sinks.append(sink)

    def key_frame(self, viewer: Viewer) -> None:
        """A viewer cannot go on without a key frame."""
        key = self._viewers.get(viewer)
        if key is not None:
            self._rungs[key].want_key()

    def reports(self) -> None:
        """Viewers' reports have come in: sort them among the encoders anew."""
        for viewer, key in list(self._viewers.items()):
            if level(viewer.rate) != key[2]:
                self._leave(viewer)
                self._join(viewer)
        for rung in self._rungs.values():
            rung.follow_reports()

    @property
    def bitrate(self) -> int:
        """Targets of all viewers together, bits a second."""
        return sum(self._rungs[key].bitrate for key in self._viewers.values())

    def bitrate_of(self, viewer: Viewer) -> int:
        """Target of one viewer's video, bits a second."""
        key = self._viewers.get(viewer)
        return self._rungs[key].bitrate if key is not None else 0

    def new_viewer(self, codec: Literal["H264", "VP8"], view: View = "result") -> Viewer:
        """A viewer that is not served yet."""
        return Viewer(codec=codec, view=view, ceiling=self._ceiling)

    def facts(self) -> Facts:
        """Plain figures for the page."""
        return {
            **self.figures.facts(),
            "state": self.state,
            "notice": self.notice if self.state != "live" else "",
            "plan": self.engine.plan,
            "restorations": round(self.figures.rate("restore"), 1),
            "viewers": len(self._viewers),
            "width": self._last[0].width if self._last is not None else 0,
            "height": self._last[0].height if self._last is not None else 0,
        }

    def _join(self, viewer: Viewer) -> None:
        key: Key = (viewer.codec, viewer.view, level(viewer.rate), viewer.receiver)
        rung = self._rungs.get(key)
        if rung is None:
            rung = Rung(
                viewer.codec,
                viewer.view,
                viewer.receiver,
                loop=self._loop,
                figures=self.figures,
                fail=self._fail,
                sent=self._metrics.sent.labels("video").inc,
            )
            with self._rungs_lock:
                self._rungs[key] = rung
        viewer.waits_for_key = True
        rung.viewers.add(viewer)
        rung.follow_reports()
        rung.want_key()
        self._viewers[viewer] = key
        self.engine.keep_before = any(k[1] == "compare" for k in self._rungs)

    def _leave(self, viewer: Viewer) -> None:
        key = self._viewers.pop(viewer, None)
        if key is None:
            return
        rung = self._rungs[key]
        rung.viewers.discard(viewer)
        if not rung.viewers:
            with self._rungs_lock:
                del self._rungs[key]
            self._loop.run_in_executor(None, rung.stop)
        self.engine.keep_before = any(k[1] == "compare" for k in self._rungs)

    # --- what goes out ---

    def _deliver(self, done: Restored, arrived: float) -> None:
        clock = self.figures.clock()
        offset = self._offset
        if offset is None:  # the source's own pace, begun now
            offset = clock - self._origin - done.frame.time
            if arrived >= self._begun:  # else of the time line before, which says nothing of this one
                self._offset = offset
        stamp = done.frame.time + offset
        self._send(done.frame.picture, done.before, stamp)
        self._gap = clock - self._last[1] if self._last is not None else 0.0
        self._last = done.frame.picture, clock
        self.state = "live"
        self.figures.went(clock - arrived, faces=done.faces)

    def _send(self, picture: av.VideoFrame, before: av.VideoFrame | None, stamp: float) -> None:
        self._last_stamp = stamp = max(stamp, self._last_stamp + 1e-4)
        with self._rungs_lock:
            rungs = list(self._rungs.values())
        for rung in rungs:
            rung.show(picture, before, round(stamp * CLOCK_RATE))
        for sink in self._sinks:
            sink.show(picture, stamp)

    def _encode_audio(self, frame: av.AudioFrame) -> None:
        try:
            if self._audio is None:
                self._audio = AudioEncoder(clock=self.figures.clock)
            packets = self._audio.encode(frame)
            self._loop.call_soon_threadsafe(self._delay_audio, packets)
        except Exception as error:
            if not self._loop.is_closed():  # else nobody is left to hear
                _log.warning("sound left out: %s", type(error).__name__)

    def _delay_audio(self, packets: list[Packet]) -> None:
        latency = (self.figures.latency(0.5) or 0.0) + (self.figures.mean("encode") or 0.0)
        for packet in packets:
            self._loop.call_later(self._audio_delay.release(latency), self._send_audio, packet)

    def _send_audio(self, packet: Packet) -> None:
        for viewer in self._viewers:
            viewer.hear(packet)
        for sink in self._sinks:
            sink.hear(packet, self.figures.clock() - self._origin)

    async def _keep(self) -> None:
        """Hold the last frame, with a notice, while no picture comes."""
        while True:
            await asyncio.sleep(_HELD_EVERY)
            now = self.figures.clock()
            last = self._last
            silence = max(_SILENCE, _INTERVALS * (self.figures.interval or self._gap))
            if self.state in ("failed", "closed") or (last is not None and now - last[1] < silence):
                continue
            if not self._viewers and not (self._sinks and last is not None):
                continue
            if last is not None:
                self.state = "held"
            self._offset = None
            picture = await self._loop.run_in_executor(
                None, held_picture, last[0] if last is not None else None, self.notice
            )
            self._send(picture, picture, now - self._origin)

    # --- the end ---

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, StreamfixError):
            sentence = str(error)
            _log.error("the stream failed: %s", sentence)
        else:
            sentence = "the restoration failed; the server's log says why"
            _log.error("the stream failed", exc_info=error)
        self.state, self.notice = "failed", sentence
        self._metrics.dropped("failed")
        self._loop.call_soon_threadsafe(self._on_end, sentence)

    async def close(self) -> None:
        """End everything that belongs to this stream."""
        self.state = "closed"
        self._keeper.cancel()
        for viewer in list(self._viewers):
            self.leave(viewer)
        self._audio_thread.shutdown(wait=False, cancel_futures=True)
        await self._loop.run_in_executor(None, self._stop)
        await asyncio.gather(self._keeper, return_exceptions=True)

    def _stop(self) -> None:
        self._scheduler.stop()
        self.engine.stop()
        for sink in self._sinks:
            sink.close()


def as_frame(picture: av.VideoFrame, *, index: int, time: float | None = None) -> Frame:
    """A received picture as the pipeline's Frame. time: seconds, where the picture's own pts is not to be used."""
    tag(picture, matrix=STANDARD.matrix)
    if time is not None or picture.pts is None or picture.time_base is None:
        base = Fraction(1, CLOCK_RATE)
        return Frame(picture=picture, index=index, pts=round((time or 0.0) * CLOCK_RATE), time_base=base)
    return Frame(picture=picture, index=index, pts=picture.pts, time_base=Fraction(picture.time_base))


def settings_from(engine: Engine, message: Facts) -> None:
    """Take strength, model and faces from a message of the page. Raises UsageError or ValueError where they make no sense."""
    known = {name: message[name] for name in ("strength", "model", "faces") if name in message}
    if "strength" in known:
        known["strength"] = float(known["strength"])
    if not all(isinstance(known.get(name, ""), str) for name in ("model", "faces")):
        raise ValueError("model and faces are names")
    engine.change(replace(engine.settings, **known))
