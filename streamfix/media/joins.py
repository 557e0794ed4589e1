"""Recordings joined in one file (`cat a.ts b.ts`): where each begins, and what puts its time stamps behind the one before."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any

import av
import av.container
import av.error

if TYPE_CHECKING:
    Packet = av.Packet[Any]

JOINABLE = frozenset({"mpegts", "mpeg"})
"""Containers (FFmpeg's names) that can be put together byte by byte."""
_SECOND = 90_000  # ticks of their clock
_BACK = _SECOND  # video that steps back by more has begun anew, as `Timeline` has it
_WRAP = 2**32  # FFmpeg takes a clock that starts anew much lower for one that ran over: a leap forward by 2**33
_LARGE, _LOOK = 2**30, 2**24
"""Bytes from which on a file is looked at here and there before it is read, and from one look to the next: that may take minutes."""
_APART = 10 * _SECOND  # from one known key frame to the next: few, however long the file is


@dataclass
class Joins:
    """The recordings of a file, each with its first byte and what to add to its time stamps; false where there is only one.

    duration: seconds from the first time stamp to the end of the last recording. keys: key frames of the video, as time in
    the whole and byte. Times are in ticks of 1/90000 s.
    """

    starts: Sequence[int] = (0,)
    shifts: Sequence[int] = (0,)
    duration: float = 0.0
    keys: list[tuple[int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return len(self.starts) > 1

    def byte(self, seconds: Fraction) -> int:
        """Where in the file to begin to read what lies at that time."""
        number = bisect_right(self.keys, floor(seconds * _SECOND), key=lambda k: k[0])
        return self.keys[number - 1][1] if number else 0


class Mover:
    """Gives packets, taken in the order of the file from any place on, their time in the whole."""

    def __init__(self, joins: Joins) -> None:
        self._joins = joins
        self._parts: dict[int, int] = {}

    def part(self, packet: Packet) -> int:
        """Number of the recording that a packet belongs to."""
        index = packet.stream_index
        if packet.pos is not None:  # None where it lies in one piece with the packet before
            self._parts[index] = bisect_right(self._joins.starts, packet.pos) - 1
        return self._parts.get(index, 0)

    def __call__(self, packet: Packet) -> None:
        """Move a packet's time stamps."""
        if not self._joins:
            return
        shift = self._joins.shifts[self.part(packet)]
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift


def find_joins(container: av.container.InputContainer, video: int) -> Joins:
    """Read a file from its beginning to its end for the places where its video begins anew.

    container: a joinable one, opened for this alone. video: index of the video stream. In a large file a recording of less
    than 16 MB may be overlooked.
    """
    if container.size > _LARGE and not _steps_back(container, video):
        return Joins()
    starts = _starts(container, video)
    return _measured(container, video, starts) if len(starts) > 1 else Joins()


def _packets(container: av.container.InputContainer) -> Iterator[Packet]:
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        if packet is None:
            return
        if packet.dts is not None and packet.pts is not None and packet.stream.type in ("video", "audio"):
            yield packet


def _steps_back(container: av.container.InputContainer, video: int) -> bool:
    last: int | None = None
    for place in range(0, container.size, _LOOK):
        container.seek(place, unsupported_byte_offset=True)
        now = next((p.pts for p in _packets(container) if p.stream_index == video), None)
        if now is not None:
            if _jumped(last, now):
                container.seek(0, unsupported_byte_offset=True)
                return True
            last = now
    return False


def _jumped(last: int | None, now: int) -> bool:
    return last is not None and not -_BACK <= now - last < _WRAP


def _starts(container: av.container.InputContainer, video: int) -> list[int]:
    """The first byte of each recording."""
    last: dict[int, int] = {}
    ends: dict[int, int] = {}
    """Where the other streams end, in bytes."""
    before, anew, others = 0, list[tuple[int, int]](), list[int]()
    for packet in _packets(container):
        # not dts: the first packet after a join has that of the recording before
        index, now, place = packet.stream_index, packet.pts or 0, packet.pos
        jumped = _jumped(last.get(index), now)
        last[index] = now
        if place is None:
            continue
        if index != video:
            ends[index] = place
            others += [place] if jumped else []
            continue
        if jumped:
            anew.append((before, place))
        before = place
    # damage, where the other streams simply go on: `Timeline` mends the video alone
    anew = [(x, here) for x, here in anew if any(p > x for p in others) or all(e < here for e in ends.values())]
    # what begins anew between two pictures goes with the second
    return sorted({0, *(min([here, *(p for p in others if x < p < here)]) for x, here in anew)})


def _measured(container: av.container.InputContainer, video: int, starts: list[int]) -> Joins:
    """How far each recording has to be moved: its video goes on with the next frame.

    Where another stream of the one before reaches further by a frame or more, it is moved by as many frames.
    """
    container.seek(0, unsupported_byte_offset=True)
    joins = Joins(starts)
    mover = Mover(joins)
    first: list[dict[int, int]] = [{} for _ in starts]
    ends: list[dict[int, int]] = [{} for _ in starts]
    keys: list[list[tuple[int, int]]] = [[] for _ in starts]
    step = round(_SECOND / (getattr(container.streams[video], "average_rate", None) or 25))
    for packet in _packets(container):
        index, stamp, part = packet.stream_index, packet.pts or 0, mover.part(packet)
        end = stamp + (packet.duration or (step if index == video else 0))
        first[part][index] = min(first[part].get(index, stamp), stamp)
        ends[part][index] = max(ends[part].get(index, end), end)
        key = index == video and packet.is_keyframe and packet.pos is not None
        if key and (not keys[part] or stamp - keys[part][-1][0] >= _APART):
            keys[part].append((stamp, packet.pos or 0))
    shifts = [0]
    for old, new in zip(ends, first[1:], strict=False):
        gaps = {index: old[index] - begin for index, begin in new.items() if index in old}
        usual = gaps.get(video, 0)
        shifts.append(shifts[-1] + usual + (max(gaps.values(), default=0) - usual) // step * step)
    joins.shifts = shifts
    whole = max(ends[-1].values(), default=0) + shifts[-1] - min(first[0].values(), default=0)
    joins.duration = whole / _SECOND
    joins.keys = [(at + shift, place) for shift, found in zip(shifts, keys, strict=True) for at, place in found]
    return joins
