"""Time stamps that rise."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

import av
import av.stream


class Timeline:
    """Makes time stamps rise strictly, and counts every one that had to be changed.

    Small steps back are moved to the next tick after the previous stamp; a jump back by more than a second is taken for a new
    time line (joined recordings) that goes on where the old one ended. strict: equal stamps are moved too.
    """

    def __init__(self, time_base: Fraction, *, strict: bool = True) -> None:
        self.second = max(int(1 / time_base), 1)
        self.least = 1 if strict else 0
        self.last: int | None = None
        self.step = 1
        self.offset = 0
        self.changed = 0

    def __call__(self, stamp: int) -> int:
        """The stamp to use in place of this one."""
        stamp += self.offset
        if self.last is None:
            self.last = stamp
            return stamp
        if stamp < self.last + self.least:
            self.changed += 1
            if self.last - stamp > self.second:
                self.offset += self.last + self.step - stamp
                stamp = self.last + self.step
            else:
                stamp = self.last + self.least
        self.step, self.last = max(stamp - self.last, 1), stamp
        return stamp


class DecodingTimes:
    """Decoding times for the packets of an encoder with B frames, from the times at which its frames are shown.

    depth: by how many places frames change their order at most. Every packet is decoded when the frame `depth` places before
    it is shown; the first ones as long before as that takes.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._shown: deque[int] = deque()
        self._early: deque[int] | None = None

    def show(self, stamp: int) -> None:
        """Take the time of every frame, in order, before its packet comes."""
        self._shown.append(stamp)

    def __call__(self) -> int:
        """The time of the next packet, in the order of decoding."""
        if self._early is None:
            depth = min(self._depth, len(self._shown) - 1)  # that many frames the encoder has had at most
            before = self._shown[depth] - self._shown[0]
            self._early = deque(self._shown[k] - before for k in range(depth))
        return self._early.popleft() if self._early else self._shown.popleft()


class Holes:
    """Tells where Matroska's demuxer passed over damage: it goes on at the next cluster and says nothing.

    A hole is a stretch of bytes that belongs to no packet together with a gap in the time of the video; either alone is
    usual (padding and indexes; variable frame rate).
    """

    _LEAST = 1024  # bytes; headers between two packets take a few dozen

    def __init__(self, form: str) -> None:
        self._on = "matroska" in form.split(",")
        self._end: int | None = None
        self._bytes = False
        self._time: int | None = None
        self._step: int | None = None

    def __call__(self, packet: av.Packet[av.stream.Stream], video: int) -> bool:
        """Take every packet in order; True where a hole lies before one of the video stream."""
        if not self._on or packet.pos is None or packet.pos < 0:
            return False
        if self._end is not None and packet.pos - self._end > self._LEAST:
            self._bytes = True
        self._end = packet.pos + packet.size
        stamp = packet.dts if packet.dts is not None else packet.pts
        if packet.stream_index != video or stamp is None:
            return False
        before, usual = self._time, self._step
        self._time = stamp
        if before is not None:
            self._step = stamp - before
        found = self._bytes and before is not None and usual is not None and stamp - before > 1.5 * max(usual, 1)
        self._bytes = False
        return found
