"""What is done of a video that is being written, kept on the disk in stretches of frames, each whole or not there."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av

from streamfix.errors import OutputError
from streamfix.files import plain_value
from streamfix.media.part import explain

if TYPE_CHECKING:
    Packet = av.Packet[Any]

SEGMENT = 128
"""Frames of a stretch, on a fixed grid of frame numbers: with a key frame and an encoder of its own, it depends on no other."""

_SUFFIX = ".packets"
_PACKET = struct.Struct("<qqqqqqi")  # pts, dts, duration, time base (two), key frame; bytes that follow, or _END
_END = -1
_SUM = struct.Struct("<I")
_CHUNK = 1 << 20


class Segments:
    """The packets of one encoded stream, and notes about each stretch, in a folder beside the output.

    folder: made with the first packet. settings: what the packets depend on, plain values that json can write; kept ones
    of others raise OutputError. done: frames in the whole stretches that were found; a broken one and all after it
    do not count. notes: asked for what to keep with a stretch when it is whole.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], notes: Callable[[], bytes] = bytes) -> None:
        self._ask = notes
        self.folder, self._settings = folder, json.loads(json.dumps(settings, default=plain_value))
        self._number = 0
        self._began = False
        self._file: BinaryIO | None = None
        self._sum = 0
        try:
            if folder.exists():
                self._compare()
                while _is_whole(self._path(self._number)):
                    self._number += 1
        except OSError as error:
            raise OutputError(explain(error, folder)) from error
        self.done = self._number * SEGMENT

    def _compare(self) -> None:
        try:
            kept = json.loads(self._manifest.read_text("utf-8"))
        except (ValueError, RecursionError, FileNotFoundError):
            kept = None
        if not isinstance(kept, dict):  # nobody knows of what job the rest is
            kept = self._settings
            for file in self.folder.glob(f"*{_SUFFIX}"):
                file.unlink()
        other = sorted(k for k in {*kept, *self._settings} if kept.get(k) != self._settings.get(k))
        if other:
            words = "; ".join(f"{k}: {kept.get(k)} then, {self._settings.get(k)} now" for k in other)
            raise OutputError(
                f"{self.folder} keeps what is done of another job ({words}); call it as then, or remove that folder to begin anew"
            )

    @property
    def _manifest(self) -> Path:
        return self.folder / "job.json"

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{_SUFFIX}"

    def packets(self, number: int) -> Iterator[Packet]:
        """The packets of a stretch, in the order of decoding. Raises OutputError where it cannot be read."""
        try:
            with self._path(number).open("rb") as file:
                while (head := _PACKET.unpack(file.read(_PACKET.size)))[-1] != _END:
                    yield _packet(head, file.read(head[-1]))
        except OSError as error:
            raise OutputError(explain(error, self._path(number))) from error

    def notes(self, number: int) -> bytes:
        """What was kept with a stretch. Raises OutputError where it cannot be read."""
        try:
            with self._path(number).open("rb") as file:
                while (size := _PACKET.unpack(file.read(_PACKET.size))[-1]) != _END:
                    file.seek(size, os.SEEK_CUR)
                return file.read()[: -_SUM.size]
        except OSError as error:
            raise OutputError(explain(error, self._path(number))) from error

    def add(self, packet: Packet) -> Packet:
        """Keep one more packet of the stretch that is being encoded; gives it as it will be read. OSError as the disk has it."""
        if self._file is None:
            if not self._began:
                self._begin()
            self._file, self._sum = self._path(self._number).with_suffix(".part").open("wb"), 0
        base, data = packet.time_base, bytes(packet)
        stamps = packet.pts or 0, packet.dts or 0, packet.duration or 0
        head = (*stamps, base.numerator, base.denominator, int(packet.is_keyframe), len(data))
        self._write(_PACKET.pack(*head) + data)
        return _packet(head, data)

    def _begin(self) -> None:
        self._began = True
        self.folder.mkdir(exist_ok=True)
        if self._number == 0:  # else it is there, and what is kept would be worth nothing if it were lost on the way
            self._manifest.write_text(json.dumps(self._settings, indent=1), "utf-8")
        for file in self.folder.glob(f"*{_SUFFIX}"):
            if file >= self._path(self._number):  # after a broken one: their notes go with those of what was before
                file.unlink()

    def close(self) -> None:
        """The stretch is whole. OSError as the disk has it."""
        assert self._file is not None
        self._write(_PACKET.pack(0, 0, 0, 0, 1, 0, _END) + self._ask())
        self._file.write(_SUM.pack(self._sum))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        path = self._path(self._number)
        path.with_suffix(".part").replace(path)
        self._number += 1

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._sum = zlib.crc32(data, self._sum)
        self._file.write(data)

    @property
    def kept(self) -> int:
        """Frames in whole stretches by now."""
        return self._number * SEGMENT

    def leave(self) -> None:
        """Stop in the middle: what is whole stays, and nothing at all where nothing is."""
        if not self._began:  # another run may be at work there
            return
        with suppress(OSError):  # on a full disk the last bytes fail once more; why it stops is told already
            if self._file is not None:
                self._file.close()
        self._file = None
        if self._number == 0:
            self.remove()
        else:
            with suppress(OSError):
                self._path(self._number).with_suffix(".part").unlink(missing_ok=True)

    def remove(self) -> None:
        """The output is there: nothing of this is needed any more."""
        with suppress(OSError):  # what else lies there is not ours
            for file in (*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob("*.part"), self._manifest):
                file.unlink(missing_ok=True)
            self.folder.rmdir()


def _packet(head: tuple[int, ...], data: bytes) -> Packet:
    packet: Packet = av.Packet(data)
    packet.pts, packet.dts, packet.duration = head[:3]
    packet.time_base, packet.is_keyframe = Fraction(head[3], head[4]), bool(head[5])
    return packet


def _is_whole(path: Path) -> bool:
    total = 0
    try:
        with path.open("rb") as file:
            left = path.stat().st_size - _SUM.size
            if left < _PACKET.size:
                return False
            while left and (chunk := file.read(min(left, _CHUNK))):
                total, left = zlib.crc32(chunk, total), left - len(chunk)
            return file.read() == _SUM.pack(total)
    except FileNotFoundError:
        return False
