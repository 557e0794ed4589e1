"""Decoding a video file: every frame with its exact place in time."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.stream

from streamfix.errors import InputError
from streamfix.media import facts
from streamfix.media.base import Source
from streamfix.media.deinterlace import Deinterlacer
from streamfix.media.joins import JOINABLE, Joins, Mover, find_joins
from streamfix.media.opening import is_cover, open_container, picture_stream
from streamfix.media.repair import limit
from streamfix.media.timeline import Holes, Timeline
from streamfix.types import Facts, Frame

_log = logging.getLogger(__name__)

GENERATE_PTS = 1  # AVFMT_FLAG_GENPTS, which PyAV sets on every container
_BACK_OFF = (0, 2, 10, 60)  # seconds before the start to seek to, until a frame at or before it is decoded
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_REORDERED = 64  # pictures, more than any codec holds back to bring them into the order of display
_DECLARES_DURATION = {"mov", "matroska", "avi", "flv"}  # the others' duration is worked out from the packets themselves


def _stamp(picture: av.VideoFrame) -> int | None:
    """The picture's place in time, as the file has it."""
    return picture.pts if picture.pts is not None else picture.dts


class VideoSource(Source):
    """The frames of a video file.

    index: of the stream decoded. pixels: name of its pixel format. color: its tags. display_matrix: nine integers or None.
    hdr: static HDR metadata or None. sample_aspect_ratio: of the stored pixels, 0 where the file does not say. metadata,
    stream_metadata, disposition: the file's and the stream's own tags. audio_rates: samples a second of each audio stream.
    covers: indexes of cover art. interlaced: whether the first frame is. deinterlace: as `open_source` was told. origin:
    seconds at which the file starts, which `start` and `end` count from. joins: of the recordings that the file was put
    together from.
    """

    is_still = False

    def __init__(self, path: Path, *, start: float | None, end: float | None, deinterlace: bool | None) -> None:
        self.path, self.start, self.end, self.deinterlace = path, start, end, deinterlace
        self._decoding, self._closed = threading.Lock(), False
        self._container = open_container(path)
        try:
            self._begin(deinterlace)
        except BaseException:
            self.close()
            raise

    def _begin(self, deinterlace: bool | None) -> None:
        container = self._container
        stream = picture_stream(container)
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise InputError(
                f"{self.path} has no video that can be decoded (it holds {kinds}); give a file with a picture"
            )
        if "avi" in container.format.name.split(","):
            # AVI stores no pts, and those that FFmpeg generates from the next packet's dts are one frame late
            container.flags &= ~GENERATE_PTS
        self._stream = stream
        self.index = stream.index
        stream.thread_type = "AUTO"
        assert stream.time_base is not None
        self.time_base = stream.time_base
        self.rate = stream.average_rate or stream.base_rate or stream.guessed_rate or Fraction(25)
        self.origin = Fraction(container.start_time or 0, av.time_base)
        limits = [None if t is None else self._tick(t) for t in (self.start, self.end)]
        self._first, self._last = limits
        self.joins = Joins()
        if container.format.name in JOINABLE:
            with open_container(self.path) as other:
                self.joins = find_joins(other, stream.index)
        self._descriptions = facts.describe(container)  # before any decoder's threads run: it turns logging on
        self._decoded = self._seek_and_decode()
        head = next(self._decoded, None)
        if head is None:
            raise InputError(f"no picture of {self.path} can be decoded; the file is damaged")
        self._head: tuple[av.VideoFrame, int] | None = head
        self._look_at(head[0])
        wanted = bool(deinterlace) if deinterlace is not None else True
        self._deinterlacer = Deinterlacer(self.time_base, every=deinterlace is True) if wanted else None
        self.deinterlaced = wanted and (self.interlaced or deinterlace is True)

    def _tick(self, seconds: float) -> int:
        """The first tick at or after that many seconds from the start of the file."""
        return math.ceil((Fraction(str(seconds)) + self.origin) / self.time_base)

    def _look_at(self, picture: av.VideoFrame) -> None:
        """Take over what holds for the whole stream from its first picture."""
        stream, data = self._stream, facts.side_data(picture)
        self.width, self.height, self.pixels = picture.width, picture.height, picture.format.name
        self.color = facts.color_tags(picture, facts.chroma_location(self._descriptions.get(self.index, "")))
        self.display_matrix, self.hdr = facts.display_matrix(data), facts.hdr_metadata(data)
        self.rotation = facts.clockwise(picture.rotation)
        self.interlaced = bool(picture.interlaced_frame)
        self.dynamic_hdr = sorted(
            {"DYNAMIC_HDR_PLUS", "DOVI_RPU_BUFFER", "DOVI_METADATA", "DYNAMIC_HDR_VIVID"} & set(data)
        )
        self.sample_aspect_ratio = stream.sample_aspect_ratio or Fraction(0)
        self.metadata, self.stream_metadata = dict(self._container.metadata), dict(stream.metadata)
        self.disposition = stream.disposition
        self.covers = [s.index for s in self._container.streams if is_cover(s)]
        self.audio_rates = [s.sample_rate for s in self._container.streams.audio if getattr(s, "sample_rate", None)]
        self.frame_rate = float(self.rate)
        whole = self._declared_duration()
        begin, stop = self.start or 0.0, self.end if self.end is not None else whole
        self.duration = None if stop is None else max(min(stop, whole if whole is not None else stop) - begin, 0.0)
        if self.start is None and self.end is None and stream.frames:
            self.frames = stream.frames
        else:
            self.frames = None if self.duration is None else max(round(self.duration * self.frame_rate), 1)

    def _declared_duration(self) -> float | None:
        stream, container = self._stream, self._container
        if self.joins:
            return self.joins.duration
        if stream.duration:
            return float(stream.duration * self.time_base)
        return container.duration / av.time_base if container.duration else None

    def __iter__(self) -> Iterator[Frame]:
        if self._head is None:
            raise RuntimeError(f"the frames of {self.path} were taken already; open it again")
        frames = self._frames()
        while True:
            with self._decoding:  # FFmpeg crashes where a file is closed in use, or used after that
                if self._closed:
                    raise RuntimeError(f"{self.path} was closed before all of its frames were taken")
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def _frames(self) -> Iterator[Frame]:
        index, timeline = 0, Timeline(self.time_base)
        for picture, pts in self._progressive(timeline):
            if self._last is not None and pts >= self._last:
                break
            if self._first is None or pts >= self._first:
                yield Frame(
                    picture=picture,
                    index=index,
                    pts=pts,
                    time_base=self.time_base,
                    rotation=self.rotation,
                    chroma_location=self.color.chroma_location,
                )
                index += 1
        if index == 0:
            raise InputError(
                f"{self.path} has no frame between the start and the end that were asked for; "
                f"it lasts {self._declared_duration() or 0.0:.3f} s"
            )

    def _progressive(self, timeline: Timeline) -> Iterator[tuple[av.VideoFrame, int]]:
        """Frames in order with rising time stamps, deinterlaced where asked for or needed."""
        for picture, stamp in self._all():
            before, pts = timeline.changed, timeline(stamp)
            self.damaged += timeline.changed - before
            picture.pts, picture.time_base = pts, self.time_base
            if self._deinterlacer is None:
                yield picture, pts
            else:
                yield from self._deinterlacer(picture, pts)
        if self._deinterlacer is not None:
            yield from self._deinterlacer.flush()

    def _all(self) -> Iterator[tuple[av.VideoFrame, int]]:
        assert self._head is not None
        head, self._head = self._head, None
        yield head
        yield from self._decoded

    def _seek_and_decode(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Decode from a point from which the first frame wanted comes out whole."""
        if self._first is None or self._first <= (self._stream.start_time or 0):
            yield from self._decode()
            return
        for seconds in (*_BACK_OFF, None):
            self.damaged = self.guessed = 0
            target = 0 if seconds is None else self._first - round(seconds / self.time_base)
            lowest = self._stream.start_time or 0
            self._seek(max(target, lowest) if seconds is not None else lowest)
            decoded = self._decode()
            head = next(decoded, None)
            if head is not None and (head[1] <= self._first or seconds is None):
                yield head
                yield from decoded
                return

    def _go_to(self, container: av.container.InputContainer, tick: int) -> None:
        """Go to a key frame at or before a time; in joined recordings by its place, as times say nothing there."""
        if self.joins:
            container.seek(self.joins.byte(tick * self.time_base), unsupported_byte_offset=True)
        else:
            container.seek(tick, stream=container.streams[self.index], backward=True)

    def _seek(self, tick: int) -> None:
        try:
            self._go_to(self._container, tick)
        except (av.error.FFmpegError, OverflowError):  # no index, or beyond all time: read it from the start
            self._container.close()
            self._container = open_container(self.path)
            stream = self._container.streams[self.index]
            assert isinstance(stream, av.VideoStream)
            stream.thread_type = "AUTO"
            self._stream = stream

    def _decode(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Decoded pictures with their time stamps as the file has them; goes on after damage and counts it."""
        last: int | None = None
        step = max(round(1 / (self.time_base * (self._stream.average_rate or 25))), 1)
        for picture in self._pictures():
            stamp = _stamp(picture)
            if stamp is None:
                self.guessed += 1
                stamp = 0 if last is None else last + step
            if last is not None and stamp > last:
                step = stamp - last
            last = stamp
            self.damaged += limit(picture) or bool(picture.is_corrupt)
            yield picture, stamp

    def _pictures(self) -> Iterator[av.VideoFrame]:
        context, known = self._decoder(), deque[int](maxlen=_REORDERED)
        for packet in self._packets():
            try:
                pictures = context.decode(packet)
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            for picture in pictures:
                known += [stamp] if (stamp := _stamp(picture)) is not None else []
                yield picture
        try:
            yield from context.decode(None)
        except av.error.FFmpegError:
            # with frame threads an error on flushing loses the whole pictures behind it: decode the tail once more
            self.damaged += 1
            yield from self._tail(known)

    def _decoder(self) -> av.VideoCodecContext:
        """The stream's own decoder; libvpx's where FFmpeg's own would leave the transparency of VP8 and VP9 out."""
        context = self._stream.codec_context
        name = _WITH_ALPHA.get(context.codec.canonical_name)
        if name is None or {k.lower(): v for k, v in self._stream.metadata.items()}.get("alpha_mode") != "1":
            return context
        other = av.CodecContext.create(name, "r")
        assert isinstance(other, av.VideoCodecContext)
        return other

    def _packets(self) -> Iterator[av.Packet[av.stream.Stream]]:
        """Packets of the video stream. Notes where the others end too, to tell a file that was cut off."""
        reached: Fraction | None = None
        holes, move = Holes(self._container.format.name), Mover(self.joins)
        # FFmpeg calls one of the last two packets before a join corrupt, though none is
        flags = deque[tuple[bool, int]]()
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self.damaged += 1
                break
            if packet is None:
                break
            if not packet.size:  # the demuxer's own flush packets, and frames that AVI left out
                continue
            self.damaged += holes(packet, self.index)
            move(packet)
            stamp = packet.pts if packet.pts is not None else packet.dts  # AVI has dts alone
            if packet.stream.type in ("video", "audio", "subtitle") and stamp is not None:
                reached = max(reached or Fraction(0), (stamp + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index == self.index:
                flags.append((packet.is_corrupt, move.part(packet)))
                if len(flags) > 2:
                    corrupt, part = flags.popleft()
                    self.damaged += corrupt and part == move.part(packet)
                yield packet
        self.damaged += sum(corrupt for corrupt, part in flags if part == flags[-1][1])
        declared = Fraction(self._container.duration or 0, av.time_base) + self.origin
        honest = _DECLARES_DURATION & set(self._container.format.name.split(","))
        if honest and reached is not None and declared - reached > max(Fraction(1, 2), 2 / Fraction(self.rate)):
            _log.warning("%s ends %.1f s before the length it declares", self.path, float(declared - reached))
            self.damaged += 1

    def _tail(self, known: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Pictures behind those with the stamps `known`, decoded in one thread so that an error costs one picture only."""
        with open_container(self.path) as container:
            container.flags = self._container.flags
            stream = container.streams[self.index]
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.thread_count = 1
            if known:
                try:
                    self._go_to(container, min(known))
                except av.error.FFmpegError:
                    container.seek(0)
            context, beyond, move = stream.codec_context, not known, Mover(self.joins)
            for packet in container.demux(stream):
                move(packet)
                try:
                    pictures = context.decode(packet if packet.size else None)
                except av.error.FFmpegError:
                    continue
                # without pts (AVI) the stamps are dts, which do not rise in the order of display, and the last have none
                for picture in pictures:
                    stamp = _stamp(picture)
                    new = beyond if stamp is None else not known or (stamp > min(known) and stamp not in known)
                    beyond = beyond or new or stamp == known[-1]
                    if new:
                        yield picture

    def facts(self) -> Facts:
        """Container, tags and every stream, in plain values under FFmpeg's names."""
        container = self._container
        streams = [facts.stream_facts(s, self._descriptions.get(s.index, "")) for s in container.streams]
        picture = streams[self.index]
        picture["color"] = facts.color_facts(self.color)
        picture["rotation"], picture["interlaced"] = self.rotation, self.interlaced
        picture["hdr"] = facts.hdr_facts(self.hdr) if self.hdr else None
        picture["restored"] = True
        return {
            "path": str(self.path),
            "kind": "video",
            "container": container.format.name,
            "size": self.path.stat().st_size,
            "duration": container.duration / av.time_base if container.duration else None,
            "start_time": float(self.origin),
            "bit_rate": container.bit_rate or None,
            "metadata": dict(container.metadata),
            "chapters": len(container.chapters()),
            "frames": self.frames,
            "frame_rate": self.frame_rate,
            "rotation": self.rotation,
            "damaged": self.damaged,
            "streams": streams,
        }

    def close(self) -> None:
        """Let go of the file, once the frame that another thread may be decoding is done."""
        with self._decoding:
            self._closed = True
            self._container.close()
