"""Who watches a stream, and the encoders that serve them: one for all viewers that can take the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import av

from streamfix.media.color import copy_picture, side_by_side
from streamfix.serve.encode import FRAME_RATE, Codec, VideoEncoder, useful_bitrate
from streamfix.serve.figures import Figures
from streamfix.serve.levels import Receiver
from streamfix.serve.rate import RateControl

View = Literal["result", "compare"]
"""compare: input on the left, result on the right, in one picture of twice the width."""
Packet: TypeAlias = "av.Packet[Any]"

_QUEUE = 8
"""Packets that may wait for a viewer's connection; beyond that it has to begin anew at a key frame."""
_LEVELS = (0.4, 0.12)
"""Shares of the ceiling that part viewers into good, middling and poor connections: one poor one slows no good one."""
_QUICK = 1 / 40
"""Seconds a frame below which a source counts as one of 60 frames a second."""
_KEY_EVERY = 0.5
"""Least seconds between two key frames that were asked for."""


class Viewer:
    """One receiver. Lives in the event loop's thread.

    video, audio: queues of packets; None ends them. rate: what its reports say it can take. receiver: what its offer says,
    set before it watches.
    """

    def __init__(self, *, codec: Codec, view: View, ceiling: int) -> None:
        self.codec, self.view = codec, view
        self.receiver = Receiver()
        self.rate = RateControl(ceiling=ceiling)
        self.video: asyncio.Queue[Packet | None] = asyncio.Queue(_QUEUE)
        self.audio: asyncio.Queue[Packet | None] = asyncio.Queue(4 * _QUEUE)
        self.waits_for_key = True
        self.bytes = 0

    def close(self) -> None:
        """End both queues."""
        for queue in (self.video, self.audio):
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)

    def hear(self, packet: Packet) -> None:
        """A packet of sound; the oldest is left out where the connection does not keep up."""
        if self.audio.full():
            self.audio.get_nowait()
        self.audio.put_nowait(packet)
        self.bytes += packet.size


class Rung:
    """One encoder in a thread of its own, and the viewers it serves."""

    def __init__(
        self,
        codec: Codec,
        view: View,
        receiver: Receiver,
        *,
        loop: asyncio.AbstractEventLoop,
        figures: Figures,
        fail: Callable[[BaseException], None],
        sent: Callable[[int], None],
    ) -> None:
        self.viewers: set[Viewer] = set()
        self.view = view
        self._loop, self._figures, self._fail, self._sent = loop, figures, fail, sent
        self._encoder = VideoEncoder(codec, bitrate=1_000_000, clock=figures.clock, receiver=receiver)
        self._state = threading.Condition()
        self._mailbox: tuple[av.VideoFrame, av.VideoFrame | None, int] | None = None
        self._key, self._key_at = True, float("-inf")
        self._stopped = False
        self.pixels = 0
        self._thread = threading.Thread(target=self._work, name="live-encode", daemon=True)
        self._thread.start()

    @property
    def bitrate(self) -> int:
        """Target in bits a second."""
        return self._encoder.bitrate

    def want_key(self) -> None:
        """The next picture is one from which a viewer can begin."""
        with self._state:
            self._key = True

    def follow_reports(self) -> None:
        """Take the bitrate that the poorest of its viewers can take, as far as the picture needs it."""
        interval = self._figures.interval
        self._encoder.frame_rate = FRAME_RATE if interval is None or interval > _QUICK else 2 * FRAME_RATE
        targets = [viewer.rate.target for viewer in self.viewers]
        if targets:
            need = useful_bitrate(self.pixels, 1) if self.pixels else max(targets)
            self._encoder.bitrate = min(min(targets), max(need, 300_000))

    def show(self, picture: av.VideoFrame, before: av.VideoFrame | None, pts: int) -> None:
        """Take the newest picture, from any thread; one that still waits is replaced."""
        with self._state:
            replaced = self._mailbox is not None
            self._mailbox = picture, before, pts
            self._state.notify()
        if replaced:
            self._figures.dropped("encoder busy")

    def stop(self) -> None:
        """End the thread."""
        with self._state:
            self._stopped = True
            self._state.notify()
        self._thread.join(10.0)

    def _work(self) -> None:
        try:
            while True:
                with self._state:
                    self._state.wait_for(lambda: self._mailbox is not None or self._stopped)
                    if self._stopped or self._mailbox is None:
                        return
                    (picture, before, pts), self._mailbox = self._mailbox, None
                    now = self._figures.clock()
                    key = self._key and now - self._key_at >= _KEY_EVERY
                    if key:
                        self._key, self._key_at = False, now
                with self._figures.stage("encode"):
                    if self.view == "compare":
                        picture = side_by_side(before if before is not None else picture, picture)
                    else:
                        picture = copy_picture(picture)  # other encoders mark the same picture with their own time
                    self.pixels = picture.width * picture.height
                    packets = self._encoder.encode(picture, pts=pts, key=key)
                if not self._stopped:
                    self._loop.call_soon_threadsafe(self._hand_out, packets)
        except BaseException as error:
            if not self._loop.is_closed():  # else nobody is left to be told
                self._fail(error)

    def _hand_out(self, packets: list[Packet]) -> None:
        for packet in packets:
            for viewer in self.viewers:
                if viewer.video.full():
                    while not viewer.video.empty():
                        viewer.video.get_nowait()
                    viewer.waits_for_key = True
                    self._figures.dropped("viewer too slow")
                    self.want_key()
                if viewer.waits_for_key and not packet.is_keyframe:
                    continue
                viewer.waits_for_key = False
                viewer.video.put_nowait(packet)
                viewer.bytes += packet.size
                self._sent(packet.size)


def level(rate: RateControl) -> int:
    """0 (good) .. 2 (poor): which viewers share an encoder."""
    share = rate.target / rate.ceiling
    start = min(1.0, 1_000_000 / rate.ceiling)  # what everybody begins with counts as good
    return sum(share < min(bound, start) for bound in _LEVELS)
