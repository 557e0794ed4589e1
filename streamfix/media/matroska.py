"""The aspect ratio in a finished Matroska file.

Matroska holds a sample aspect ratio as display width and height in the track header. FFmpeg's muxer writes it from a field of the stream
that PyAV cannot set, so codecs without an aspect ratio of their own (FFV1, AV1) would be shown with square pixels. The
elements are put in here afterwards; the room for them is taken from the padding that FFmpeg leaves behind the SeekHead, so that
only headers move. Element numbers: RFC 9559; sizes and numbers: RFC 8794.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

_SEGMENT, _SEEK_HEAD, _VOID, _CRC, _CLUSTER = 0x18538067, 0x114D9B74, 0xEC, 0xBF, 0x1F43B675
_SEEK, _SEEK_ID, _SEEK_POSITION = 0x4DBB, 0x53AB, 0x53AC
_TRACKS, _TRACK, _TRACK_TYPE, _VIDEO = 0x1654AE6B, 0xAE, 0x83, 0xE0
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
_RATIO = 3  # display unit: width and height are an aspect ratio, not pixels


@dataclass
class _Element:
    """One EBML element: id, its bytes [start, end) in the buffer, of which [body, end) are its content."""

    id: int
    start: int
    body: int
    end: int


def _children(data: bytes | bytearray, start: int, end: int) -> list[_Element]:
    """The elements in a stretch of bytes, as far as they are whole."""
    out = []
    while start < end:
        width = 9 - data[start].bit_length()
        number = int.from_bytes(data[start : start + width], "big")
        at = start + width
        if at >= end:
            break
        size_width = 9 - data[at].bit_length()
        size = int.from_bytes(data[at : at + size_width], "big") & ((1 << 7 * size_width) - 1)
        body = at + size_width
        out.append(_Element(number, start, body, body + size))
        start = body + size
    return out


def _encode(number: int, content: bytes) -> bytes:
    """An element with its size in eight bytes at most, as few as needed."""
    width = next(n for n in range(1, 9) if len(content) < (1 << 7 * n) - 1)
    size = (len(content) | (1 << 7 * width)).to_bytes(width, "big")
    return number.to_bytes((number.bit_length() + 7) // 8, "big") + size + content


def set_display_aspect(path: Path, ratio: Fraction) -> bool:
    """Write the display aspect ratio of the one video track; False, with the file untouched, where there is no room for it."""
    with path.open("r+b") as file:
        data = bytearray(file.read(1 << 20))
        segment = next((e for e in _children(data, 0, len(data)) if e.id == _SEGMENT), None)
        if segment is None:
            return False
        top = _children(data, segment.body, min(segment.end, len(data)))
        top = top[: next((i for i, e in enumerate(top) if e.id == _CLUSTER), len(top))]
        names = [e.id for e in top]
        if _TRACKS not in names or names[:2] != [_SEEK_HEAD, _VOID]:
            return False
        seek_head, void, tracks = top[0], top[1], top[names.index(_TRACKS)]
        new = _with_aspect(data, tracks, ratio)
        if new is None:
            return False
        more = len(new) - (tracks.end - tracks.start)
        room = void.end - void.start - more
        if room < 9 or tracks.end > len(data):
            return False
        padding = bytes([_VOID, 0x01]) + (room - 9).to_bytes(7, "big") + bytes(room - 9)
        moved = padding + bytes(data[void.end : tracks.start]) + new
        _move_seeks(data, seek_head, segment.body, void.end, tracks.end, more)
        data[void.start : tracks.end] = moved
        file.seek(seek_head.start)
        file.write(data[seek_head.start : tracks.end])
    return True


def _with_aspect(data: bytearray, tracks: _Element, ratio: Fraction) -> bytes | None:
    """The Tracks element anew, without its checksum; None unless there is exactly one video track."""
    display = {_DISPLAY_WIDTH: ratio.numerator, _DISPLAY_HEIGHT: ratio.denominator, _DISPLAY_UNIT: _RATIO}
    out, found = b"", 0
    for track in _children(data, tracks.body, tracks.end):
        if track.id == _CRC:
            continue
        parts = _children(data, track.body, track.end)
        video = [p for p in parts if p.id == _VIDEO] if track.id == _TRACK else []
        if not video:
            out += bytes(data[track.start : track.end])
            continue
        found += 1
        content = b""
        for part in parts:
            if part.id != _VIDEO:
                content += bytes(data[part.start : part.end])
                continue
            kept = [p for p in _children(data, part.body, part.end) if p.id not in display]
            inner = b"".join(bytes(data[p.start : p.end]) for p in kept)
            for number, value in display.items():
                inner += _encode(number, value.to_bytes(4, "big").lstrip(b"\0"))
            content += _encode(_VIDEO, inner)
        out += _encode(_TRACK, content)
    return _encode(_TRACKS, out) if found == 1 else None


def _move_seeks(data: bytearray, seek_head: _Element, origin: int, low: int, high: int, by: int) -> None:
    """Lessen the position of every element that moved: those in [low, high). The checksum becomes padding."""
    for seek in _children(data, seek_head.body, seek_head.end):
        if seek.id == _CRC:
            data[seek.start] = _VOID  # both have ids of one byte
        if seek.id != _SEEK:
            continue
        for part in _children(data, seek.body, seek.end):
            position = int.from_bytes(data[part.body : part.end], "big")
            if part.id == _SEEK_POSITION and low <= origin + position < high:
                data[part.body : part.end] = (position - by).to_bytes(part.end - part.body, "big")
