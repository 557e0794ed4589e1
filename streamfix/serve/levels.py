"""How large, how often and how richly a receiver takes pictures: H.264 levels (Annex A, RFC 6184), VP8's max-fs (RFC 7741)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_BLOCK = 16
_ROWS = 8
"""No side may have more macroblocks than the square root of so many times the level's frame size (A.3.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One H.264 level. idc: ten times its number. rate: macroblocks a second; size: a frame; bits: a second (Baseline)."""

    idc: int
    rate: int
    size: int
    bits: int

    @property
    def name(self) -> str:
        """As FFmpeg and x264 write it."""
        return f"{self.idc // 10}.{self.idc % 10}"


LEVELS = tuple(
    Level(idc=idc, rate=rate, size=size, bits=1000 * kilobits)
    for idc, rate, size, kilobits in (
        (10, 1485, 99, 64),
        (11, 3000, 396, 192),
        (12, 6000, 396, 384),
        (13, 11880, 396, 768),
        (20, 11880, 396, 2000),
        (21, 19800, 792, 4000),
        (22, 20250, 1620, 4000),
        (30, 40500, 1620, 10000),
        (31, 108000, 3600, 14000),
        (32, 216000, 5120, 20000),
        (40, 245760, 8192, 20000),
        (41, 245760, 8192, 50000),
        (42, 522240, 8704, 50000),
        (50, 589824, 22080, 135000),
        (51, 983040, 36864, 240000),
        (52, 2073600, 36864, 240000),
    )
)
ASSUMED = 31
"""Of a receiver that names none, as WebRTC's implementations take it (RFC 6184 would have 1.0)."""
TAKEN = 42
"""What this server takes: 1080p at 60 frames a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """What a receiver takes: macroblocks a frame (size) and a second (rate), bits a second; None for no limit that is known."""

    size: int | None = None
    rate: int | None = None
    bits: int | None = None


def level_of(profile_level_id: str | None) -> Level:
    """The level that an SDP profile-level-id names; the nearest below where there is no such level. ASSUMED for None or nonsense."""
    try:
        idc = int(str(profile_level_id)[4:6], 16) if len(str(profile_level_id)) == 6 else ASSUMED
    except ValueError:
        idc = ASSUMED
    return next((level for level in reversed(LEVELS) if level.idc <= idc), LEVELS[0])


def h264_receiver(parameters: Mapping[str, str]) -> Receiver:
    """From the receiver's fmtp: its level, and what it takes beyond it (RFC 6184: max-fs, max-mbps, max-br)."""
    level = level_of(parameters.get("profile-level-id"))
    return Receiver(
        size=max(level.size, _number(parameters, "max-fs") or 0),
        rate=max(level.rate, _number(parameters, "max-mbps") or 0),
        bits=max(level.bits, 1000 * (_number(parameters, "max-br") or 0)),
    )


def vp8_receiver(parameters: Mapping[str, str]) -> Receiver:
    """From the receiver's fmtp: max-fs and max-fr (RFC 7741), where it names them."""
    size, frames = _number(parameters, "max-fs"), _number(parameters, "max-fr")
    return Receiver(size=size, rate=size * frames if size and frames else None)


def level_for(width: int, height: int, *, frame_rate: int, bits: int) -> Level:
    """The lowest level that has room for such pictures; the highest where none has."""
    blocks = _blocks(width, height)
    return next(
        (
            level
            for level in LEVELS
            if _fits(width, height, level.size) and blocks * frame_rate <= level.rate and bits <= level.bits
        ),
        LEVELS[-1],
    )


def fitted(width: int, height: int, receiver: Receiver, *, frame_rate: int) -> tuple[int, int]:
    """The picture's own size where the receiver takes it, else the largest of its shape that it takes; even numbers."""
    sizes = [receiver.size, receiver.rate // frame_rate if receiver.rate is not None else None]
    most = min((max(s, 1) for s in sizes if s is not None), default=None)
    if most is None or _fits(width, height, most):
        return width, height
    long, short = max(width, height), min(width, height)
    side = _even(min(long, math.sqrt(most / _blocks(width, height)) * long * 1.1, math.sqrt(_ROWS * most) * _BLOCK))
    while side > 2 and not _fits(side, _even(short * side / long), most):
        side -= 2
    other = _even(short * side / long)
    return (side, other) if width >= height else (other, side)


def _even(side: float) -> int:
    return max(2, round(side / 2) * 2)


def _blocks(width: int, height: int) -> int:
    return -(-width // _BLOCK) * -(-height // _BLOCK)


def _fits(width: int, height: int, size: int) -> bool:
    longest = -(-max(width, height) // _BLOCK)
    return _blocks(width, height) <= size and longest * longest <= _ROWS * size


def _number(parameters: Mapping[str, str], name: str) -> int | None:
    text = parameters.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
