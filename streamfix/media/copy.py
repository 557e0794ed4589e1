"""Every stream but the restored one, packet for packet, in step with the video."""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.container
import av.error
import av.stream

from streamfix.errors import OutputError, UsageError
from streamfix.media import containers
from streamfix.media.facts import codec_name
from streamfix.media.joins import Joins, Mover
from streamfix.media.opening import is_cover, open_container
from streamfix.media.timeline import Timeline

if TYPE_CHECKING:
    Packet = av.Packet[av.stream.Stream]

_log = logging.getLogger(__name__)

_KINDS = {"audio": "audio", "subtitles": "subtitle", "data": "data", "attachments": "attachment", "video": "video"}
_EQUAL_STAMPS = {"matroska", "webm"}
# what MPEG-TS can carry so that it is found again; FFmpeg writes anything else as nameless private data
_TRANSPORT = {"mp2", "mp3", "mp1", "aac", "aac_latm", "ac3", "eac3", "dts", "truehd", "opus", "s302m"}
_TRANSPORT |= {"dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "klv", "timed_id3", "scte_35"}
_TRANSPORT |= {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"}
HOLDS_COVER = {"mp4", "ipod"}  # as an iTunes tag; Matroska has it as an attachment
_SILENCE = Fraction(1, 10)
"""Seconds that a sound may be late before it is heard to be, where a container has no time stamps for it or none so early."""
_CHAPTERS = containers.MOV | containers.MATROSKA | {"nut"}
_COVER_TYPES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}


def kind(stream: av.stream.Stream) -> str:
    """Kind of a stream as --drop names it; cover art counts as an attachment."""
    if is_cover(stream):
        return "attachments"
    return next((name for name, value in _KINDS.items() if value == stream.type), "data")


class StreamCopier:
    """Copies packets from its own demuxer to an output, as far in time as the video has got.

    video: index of the stream that is left to the encoder. drop: kinds of streams, or their indexes, to leave out.
    joins: of the recordings in the file.
    """

    def __init__(
        self, path: Path, output: av.container.OutputContainer, *, video: int, drop: Collection[str], joins: Joins
    ) -> None:
        self._path, self._output = path, output
        self._joins, self._move = joins, Mover(joins)
        self._input = open_container(path)
        self._video = video
        self._targets: dict[int, av.stream.Stream] = {}
        self._timelines: dict[int, Timeline] = {}
        self._packets: Iterator[Packet] | None = None
        self._next: Packet | None = None
        self._shift = Fraction(0)
        self._begin: Fraction | None = None
        self._end: Fraction | None = None
        self._done: set[int] = set()
        self._primed: set[int] = set()
        self._heard: dict[int, Fraction] = {}
        """Where the sound so far ends, in seconds of the output, by stream."""
        self._dropped = self._choose(drop)

    def _choose(self, drop: Collection[str]) -> set[int]:
        dropped: set[int] = set()
        streams = list(self._input.streams)
        for word in map(str, drop):  # indexes may come as numbers
            if word in _KINDS:
                dropped |= {s.index for s in streams if kind(s) == word}
            elif word.isdecimal() and int(word) < len(streams):
                dropped.add(int(word))
            else:
                words = ", ".join(_KINDS)
                raise UsageError(f"cannot drop {word!r}: name {words}, or a stream from 0 to {len(streams) - 1}")
        if str(self._video) in map(str, drop):
            raise UsageError(f"stream {self._video} is the video to restore and cannot be dropped")
        return dropped - {self._video}

    def before(self) -> list[av.stream.Stream]:
        """Streams to copy that come before the video in the file, so that the order is kept."""
        return [s for s in self._wanted() if s.index < self._video]

    def after(self) -> list[av.stream.Stream]:
        """Streams to copy that come after the video."""
        return [s for s in self._wanted() if s.index > self._video]

    def _wanted(self) -> list[av.stream.Stream]:
        out = []
        chapters = bool(self._input.chapters())
        tagged = self._output.format.name in containers.MOV | {"matroska"}
        for stream in self._input.streams:
            if stream.index in self._dropped or stream.index == self._video:
                continue
            # a QuickTime chapter track is read as chapters, a timecode track as a tag: both are written anew from those
            hidden = stream.type == "data" and stream.discard == av.stream.Discard.all and chapters
            if hidden or (stream.type == "data" and "timecode" in stream.metadata and tagged):
                continue
            out.append(stream)
        return out

    def check(self) -> None:
        """Raise OutputError naming every stream that the container cannot hold, and what to do about it."""
        form = self._output.format.name
        bad = [s for s in self._wanted() if not _fits(s, form)]
        if not bad:
            return
        suffix = Path(self._output.name).suffix
        words = [f"stream {s.index} ({s.type}, {codec_name(s)})" for s in bad]
        kinds = sorted({kind(s) for s in bad})
        elsewhere = next((s for f, s in (("matroska", ".mkv"), ("mov", ".mov")) if all(_fits(b, f) for b in bad)), None)
        other = f"write {elsewhere} instead, or " if elsewhere else ""
        raise OutputError(
            f"{suffix} ({form}) cannot hold {' and '.join(words)}; "
            f"{other}leave {'it' if len(bad) == 1 else 'them'} out with {' '.join(f'--drop {k}' for k in kinds)}"
        )

    def add(self, stream: av.stream.Stream) -> None:
        """Give the output a stream like this one."""
        if is_cover(stream) and self._output.format.name == "matroska":
            name, mime = _COVER_TYPES[codec_name(stream)]
            data = next((bytes(p) for p in self._input.demux(stream) if p.size), b"")
            attached = self._output.add_attachment(
                stream.metadata.get("filename", name), stream.metadata.get("mimetype", mime), data
            )
            self._describe(stream, attached)
            self._input.seek(0)
            return
        target = self._output.add_stream_from_template(stream, opaque=True)
        self._describe(stream, target)
        if stream.type != "attachment":
            self._targets[stream.index] = target
            # muxers refuse equal time stamps, except these, and except for text and data
            lenient = self._output.format.name in _EQUAL_STAMPS or stream.type in ("subtitle", "data")
            self._timelines[stream.index] = Timeline(stream.time_base or Fraction(1, 1000), strict=not lenient)

    @staticmethod
    def _describe(stream: av.stream.Stream, target: av.stream.Stream) -> None:
        target.metadata.update(stream.metadata)
        target.disposition = stream.disposition

    def chapters(self, shift: Fraction, begin: Fraction | None, end: Fraction | None) -> None:
        """Copy the chapters, moved and cut to the range."""
        out = []
        for chapter in self._input.chapters():
            base = chapter["time_base"] or Fraction(1, 1000)
            first, last = chapter["start"] * base, chapter["end"] * base
            if (begin is not None and last <= begin) or (end is not None and first >= end):
                continue
            first = max(first, begin) if begin is not None else first
            last = min(last, end) if end is not None else last
            moved = dict(chapter)
            moved["start"], moved["end"] = round((first - shift) / base), round((last - shift) / base)
            moved["time_base"] = base
            out.append(moved)
        if out and self._output.format.name not in _CHAPTERS:
            suffix = Path(self._output.name).suffix
            _log.warning("%s cannot hold the chapters of %s: they are left out", suffix, self._path)
        elif out:
            self._output.set_chapters(out)  # type: ignore[arg-type]  # plain dictionaries of the same keys

    def start(self, *, shift: Fraction, begin: Fraction | None, end: Fraction | None) -> None:
        """Begin to read. shift: seconds subtracted from every time stamp; begin, end: the range to copy, as time stamps."""
        self._shift, self._begin, self._end = shift, begin, end
        if not self._targets:
            return
        for stream in self._input.streams:
            if stream.index not in self._targets:
                stream.discard = av.stream.Discard.all
        if begin is not None:
            try:
                if self._joins:
                    self._input.seek(self._joins.byte(begin - 1), unsupported_byte_offset=True)
                else:
                    self._input.seek(int((begin - 1) * av.time_base), backward=True)
            except av.error.FFmpegError:
                self._input.seek(0)
        self._packets = self._input.demux([self._input.streams[i] for i in self._targets])
        self._next = self._fetch()

    def advance(self, until: Fraction | None) -> None:
        """Write every packet due up to that time of the output (seconds); all that is left for None."""
        while self._next is not None and (until is None or self._due(self._next) <= until):
            packet, self._next = self._next, None
            index = packet.stream_index
            packet.stream = self._targets[index]
            try:
                self._output.mux_one(packet)
            except ValueError as error:
                raise OutputError(
                    f"stream {index} of {self._path} cannot be copied into {Path(self._output.name).suffix} "
                    f"({str(getattr(error, 'strerror', None) or error).lower()}); write .mkv instead, or leave it out with --drop {index}"
                ) from error
            self._next = self._fetch()

    @staticmethod
    def _due(packet: Packet) -> Fraction:
        return Fraction(packet.dts or 0) * packet.time_base

    def _fetch(self) -> Packet | None:
        """The next packet to copy, with its time stamps in the output's time."""
        assert self._packets is not None
        while True:
            try:
                packet = next(self._packets, None)
            except av.error.FFmpegError:
                return None
            if packet is None:
                return None
            if packet.stream_index not in self._targets or not packet.size:
                continue
            self._move(packet)
            stamp = packet.dts if packet.dts is not None else packet.pts
            timeline = self._timelines[packet.stream_index]
            if stamp is None:
                stamp = 0 if timeline.last is None else timeline.last + timeline.step
            cover = is_cover(packet.stream)
            seconds = (packet.pts if packet.pts is not None else stamp) * packet.time_base
            if not cover and self._begin is not None and seconds < self._begin:
                continue
            if not cover and self._end is not None and seconds >= self._end:
                if self._all_past_end(packet.stream_index):
                    return None
                continue
            moved = round(self._shift / packet.time_base)
            if stamp < moved and self._output.format.name in containers.FROM_ZERO:
                begin = packet.pts if packet.pts is not None else stamp
                if begin < moved:
                    self._check_priming(packet.stream_index, (moved - begin) * packet.time_base)
                packet.pts, stamp = max(begin, moved), moved
            rising = timeline(stamp)
            late = rising - stamp
            packet.pts = (packet.pts if packet.pts is not None else stamp) + late - moved
            packet.dts = rising - moved
            if cover:
                packet.pts = packet.dts = 0
            packet.pts = max(packet.pts, packet.dts)
            if self._output.format.name == "avi" and packet.stream.type == "audio":
                self._check_sound(packet)
            if not packet.duration and self._output.format.name in containers.MOV:
                packet.duration = (
                    timeline.step
                )  # MP4 ends with its last sample's duration: with none it would be cut off
            return packet

    def _check_sound(self, packet: Packet) -> None:
        """Raise OutputError where sound that AVI plays without a pause, from the start on, would come early."""
        index, begin = packet.stream_index, (packet.pts or 0) * packet.time_base
        if begin - self._heard.get(index, Fraction(0)) > _SILENCE:
            raise OutputError(
                f".avi has no time stamps for sound, and stream {index} of {self._path} is silent until {float(begin):.2f} s; "
                f"write .mp4 or .mkv, or leave it out with --drop {index}"
            )
        self._heard[index] = begin + (packet.duration or 0) * packet.time_base

    def _check_priming(self, index: int, early: Fraction) -> None:
        """Tell, once, of sound before the first picture that has to wait for it; OutputError where that would be heard."""
        suffix = Path(self._output.name).suffix
        if early > _SILENCE:
            raise OutputError(
                f"{suffix} has no time before zero, and stream {index} of {self._path} begins {float(early):.2f} s before it; "
                f"write .mp4 or .mkv, or leave it out with --drop {index}"
            )
        if index not in self._primed:
            self._primed.add(index)
            words = "%s has no time before zero: stream %d of %s begins %.3f s late"
            _log.warning(words, suffix, index, self._path, early)

    def _all_past_end(self, index: int) -> bool:
        """Note that a stream has passed the end; True when every one has."""
        self._done.add(index)
        sparse = {i for i in self._targets if self._input.streams[i].type not in ("audio", "video")}
        return self._done | sparse >= set(self._targets)

    def close(self) -> None:
        """Let go of the source file."""
        self._input.close()


def _fits(stream: av.stream.Stream, form: str) -> bool:
    """Whether a container can hold a stream: the muxer itself says so when it is given the stream alone."""
    if stream.type == "attachment" or (is_cover(stream) and form == "matroska"):
        return form == "matroska" and (stream.type == "attachment" or codec_name(stream) in _COVER_TYPES)
    if is_cover(stream) and form not in HOLDS_COVER:
        return False
    if stream.type in ("data", "subtitle") and form in ("avi", "flv", "mpeg", "vob"):
        return False  # these take anything and lose what it was
    if form == "mpegts" and codec_name(stream) not in _TRANSPORT:
        return False
    if form == "nut" and codec_name(stream) in ("mp2", "mp3"):
        return False  # FFmpeg leaves out the headers of their packets, and of some files does not find them again
    try:
        trial = av.open(io.BytesIO(), "w", format=form)
        trial.add_stream_from_template(stream, opaque=True)
        trial.start_encoding()
        trial.close()
    except (ValueError, av.error.FFmpegError):
        return False
    return True
