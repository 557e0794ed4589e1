"""Encoding a video: frames at their exact times, everything else of the file copied beside them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import av
import av.container
import av.error

from streamfix.errors import OutputError
from streamfix.media import containers, matroska
from streamfix.media import encoder as encoders
from streamfix.media.base import Sink
from streamfix.media.copy import HOLDS_COVER, StreamCopier
from streamfix.media.part import explain, part_of, prepare, release
from streamfix.media.segments import SEGMENT, Segments
from streamfix.media.timeline import DecodingTimes
from streamfix.media.video import VideoSource
from streamfix.types import Frame

_log = logging.getLogger(__name__)

_HAS_ASPECT = {"libx264", "libx265", "mpeg2video", "h264_nvenc", "hevc_nvenc"}  # in the stream itself
_MAX_TIMESCALE = 2**31 - 1
_LIMITED_RANGE = 1


class VideoSink(Sink):
    """A video file beside which nothing is lost: audio, subtitles, data, attachments, chapters and tags are copied.

    The encoder is set up by the first frame: its size (which may differ from the source's), pixel format and colour tags.
    Later frames of another size are scaled to the first one's, as FFmpeg does. The pixel format is kept where the encoder
    has it, else the one that loses least; see `encoder.pixel_format` for odd sizes.

    Time: every frame keeps its pts to the tick wherever the container's clock can say it (MP4 and MOV always: the time
    scale is set to the source's; Matroska counts milliseconds, MPEG-TS and FLV have clocks of their own). AVI and MPEG
    program streams know a constant rate only: a frame off that grid raises OutputError. AVI has no
    time stamps for sound either: sound that begins late or pauses raises it too. FLV and NUT have no time before zero: the
    priming of sound waits for it, with a warning, and sound that begins earlier raises it. Program streams (.mpg, .vob) do
    not carry H.264 with its times, so the default codec becomes MPEG-2 there.

    segments: what is kept of a job that may be broken off; its frames are taken from there, each stretch of frames is
    encoded by itself, and kept. In whole and in part written that way, an output is the same.
    """

    def __init__(
        self,
        path: Path,
        *,
        like: VideoSource,
        codec: str,
        crf: int | None,
        preset: str | None,
        drop: Collection[str],
        overwrite: bool,
        tags: Mapping[str, str],
        segments: Segments | None = None,
    ) -> None:
        self.path, self._like, self._tags, self._crf = path, like, dict(tags), crf
        self._segments = segments
        form = containers.format_of(path)
        self._program = form in containers.PROGRAM
        if codec == "auto":
            codec = containers.default_codec(form, like.pixels, like.width, like.height)
        if form == "mpeg" and codec == "mpeg2video":
            form = "vob"
        self._codec = encoders.find_encoder(codec)
        self.encoder = self._codec.name
        if self._program and self.encoder not in ("mpeg2video", "mpeg1video"):
            raise OutputError(
                f"{path.suffix} does not keep the time of frames of {self.encoder}; leave out --codec, or write .mp4 or .mkv"
            )
        self._options = encoders.options(self.encoder, crf=crf, preset=preset)
        self._form = form
        # MP4 keeps either any tags or the ones that iTunes knows; cover art is among the latter
        covers = [] if "attachments" in drop else [i for i in like.covers if str(i) not in drop]
        self._itunes = form in HOLDS_COVER and bool(covers)
        if like.display_matrix is not None and form not in containers.KEEPS_ROTATION:
            raise OutputError(f"{path.suffix} cannot hold the rotation of {like.path}; choose .mp4, .mov or .mkv")
        encoders.try_hardware(self._codec, like.width, like.height)
        prepare(path, source=like.path, overwrite=overwrite)
        self._part = part_of(path)
        self._setup: encoders.Setup | None = None
        self._grid: Fraction | None = None
        self._stamps: dict[int, int] = {}
        self._shift = 0
        self._last: int | None = None
        self._decoding: DecodingTimes | None = None
        self._scaled = False
        try:
            self._output = self._open()
            self._copier = StreamCopier(like.path, self._output, video=like.index, drop=drop, joins=like.joins)
            self._add_streams()
        except BaseException:
            self.discard()
            raise

    def _open(self) -> av.container.OutputContainer:
        options: dict[str, str] = {
            "max_interleave_delta": "1000000"
        }  # 1 s: silent streams must not hold back the others
        if self._form in containers.MATROSKA:
            options["avoid_negative_ts"] = "disabled"  # AAC priming lies before 0 and would push the video late
        elif self._program:
            options |= {"preload": "0", "avoid_negative_ts": "disabled"}
        elif self._form == "mpegts":
            options |= {"mpegts_copyts": "1", "avoid_negative_ts": "disabled"}
        elif self._form == "avi":
            options["avoid_negative_ts"] = "disabled"  # audio priming would push every frame by one
        elif self._form in containers.MOV:
            scale = self._like.time_base.denominator
            while scale < 10000:
                scale *= 2
            movie = lcm(scale, *self._like.audio_rates)  # edit lists count in this unit
            options["video_track_timescale"] = str(min(scale, _MAX_TIMESCALE))
            options["movie_timescale"] = str(movie if movie <= 10_000_000 else min(scale, _MAX_TIMESCALE))
            if not self._itunes:
                options["movflags"] = "use_metadata_tags"  # keep tags that iTunes has no name for
        return av.open(str(self._part.absolute()), "w", format=self._form, container_options=options)

    def _add_streams(self) -> None:
        """Streams in the order of the source; raises OutputError for those that the container cannot hold."""
        like, copier = self._like, self._copier
        copier.check()
        for other in copier.before():
            copier.add(other)
        try:
            stream = self._output.add_stream(self._codec.name, rate=encoders.tame(like.rate))
        except ValueError as error:
            raise self._cannot_hold() from error
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        for other in copier.after():
            copier.add(other)
        self._stream.metadata.update(containers.own_left_out(like.stream_metadata))
        self._stream.disposition = like.disposition
        tags = containers.own_left_out(like.metadata) | self._tags
        self._output.metadata.update(containers.named(tags, self._form, itunes=self._itunes))

    def _begin(self, frame: Frame) -> None:
        """Set up the encoder from the first frame, and the copies from its time."""
        like, context, picture = self._like, self._stream.codec_context, frame.picture
        width, height = picture.width, picture.height
        name = encoders.pixel_format(picture.format.name, self._codec, width, height)
        self._time_base = frame.time_base
        if self._form in containers.ON_A_GRID:
            self._grid = encoders.standard(encoders.tame(like.rate))
        self._stream.time_base = frame.time_base if not self._grid or self._program else 1 / self._grid
        alpha = any(c.is_alpha for c in av.VideoFormat(name, width, height).components)
        if self._segments is not None and alpha and self.encoder in ("libvpx", "libvpx-vp9"):
            raise OutputError(
                "the transparency of VP8 and VP9 lies beside the packets, where a job that goes on cannot keep it; "
                "leave --resume out, or write .mov or .mkv with the codec that is the default there"
            )
        colors = encoders.tags_of(picture, like.color, name)
        self._setup = encoders.Setup(
            size=(width, height),
            pixels=name,
            time_base=self._time_base if self._grid is None else 1 / self._grid,
            rate=encoders.tame(like.rate) if self._grid is None else self._grid,
            colors=colors,
            aspect=like.sample_aspect_ratio,
            interlaced=picture.interlaced_frame,
            reorders=self._form not in containers.NO_REORDERING,
            quantiser=encoders.quantiser(self._crf) if self.encoder in encoders.QUANTISED else None,
            tag="hvc1" if self.encoder == "libx265" and self._form in containers.MOV else None,
            options=self._options | encoders.private_options(self.encoder, colors, like.hdr),
        )
        self._setup.apply(context)
        self._encoder: av.VideoCodecContext | None = context
        if like.deinterlaced:
            _log.warning("%s is interlaced: it comes out progressive, one frame for each", like.path)
        if like.dynamic_hdr:
            _log.warning("dynamic HDR metadata (%s) is left out", ", ".join(like.dynamic_hdr))
        if like.display_matrix is not None:
            self._stream.set_display_matrix(like.display_matrix)
        ranged = like.start is not None
        self._shift = frame.pts if ranged else 0
        begin = frame.pts * frame.time_base if ranged else None
        end = None if like.end is None else Fraction(str(like.end)) + like.origin
        shift = begin if begin is not None else Fraction(0)
        self._copier.chapters(shift, begin, end)
        try:
            encoders.open_encoder(context)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._refused(error, width, height, name) from error
        # of less than three frames x265 comes with times out of nowhere
        depth = self._setup.depth(context)
        if depth and (self.encoder == "libx265" or self._segments is not None):
            self._decoding = DecodingTimes(depth)
        try:
            self._output.start_encoding()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if self._program or self._output_full(error):
                raise self._refused(error, width, height, name) from error
            raise self._cannot_hold() from error
        self._copier.start(shift=shift, begin=begin, end=end)

    def _cannot_hold(self) -> OutputError:
        other = "" if self._form == "matroska" else ", or write .mkv"
        return OutputError(f"{self.path.suffix} ({self._form}) cannot hold {self.encoder}; choose another codec{other}")

    def _refused(self, error: BaseException, width: int, height: int, name: str) -> OutputError:
        if self._output_full(error):
            return OutputError(explain(error, self.path))
        rate = float(self._like.rate)
        if self._program:
            return OutputError(
                f"{self.path.suffix} holds a constant frame rate only, one of MPEG-2's (23.976 to 60), and {self._like.path} has "
                f"{rate:.4g} frames/s at {width}x{height}; write .mp4 or .mkv"
            )
        return OutputError(
            f"{self.encoder} cannot encode {width}x{height} {name} at {rate:.4g} frames/s into {self.path.suffix} "
            f"({str(getattr(error, 'strerror', None) or error).lower()}); choose another --codec, --preset or container"
        )

    @staticmethod
    def _output_full(error: BaseException) -> bool:
        return isinstance(error, OSError) and not isinstance(error, ValueError)

    def write(self, frame: Frame) -> None:
        """Encode one frame, and copy what lies before it in time; raises OutputError."""
        try:
            if self._setup is None:
                self._begin(frame)
            whole = self._segments is not None and (frame.index + 1) % SEGMENT == 0
            if self._segments is not None and frame.index < self._segments.done:
                self._place(frame)
                self._encoder = None
                if whole:
                    self._repeat(frame.index // SEGMENT)
            else:
                self._encode(frame)
                if whole:
                    self._end_segment()
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(explain(error, self.path)) from error
        self.written += 1

    def _place(self, frame: Frame) -> int:
        """When a frame is shown, in units of the encoder's time base. Raises OutputError where that cannot be."""
        stamp = round(frame.pts * frame.time_base / self._time_base) - self._shift
        number = stamp if self._grid is None else self._number(stamp, frame)
        if self._last is not None and number <= self._last:
            raise OutputError(
                f"{self.path} cannot be written: the frame at {frame.time:.3f} s does not come after the one before"
            )
        self._last = number
        if self._program:
            self._stamps[number] = stamp
        if self._decoding is not None:
            self._decoding.show(number)
        return number

    def _encode(self, frame: Frame) -> None:
        number = self._place(frame)
        if self._encoder is None:
            assert self._setup is not None
            self._encoder = self._setup.another(self._codec, flags=self._stream.codec_context.flags)
        step = 1 if self._grid is not None else max(round(1 / (self._like.rate * self._time_base)), 1)
        picture = self._convert(frame.picture)
        before = picture.pts, picture.time_base, picture.pict_type, picture.duration
        picture.pts = number
        picture.time_base = self._time_base if self._grid is None else 1 / self._grid
        picture.pict_type = 0  # or the encoder repeats the source's choice of I, P and B frames
        if self._grid is not None or not picture.duration:  # without one, the last frame would last no time at all
            picture.duration = step
        try:
            self._mux(self._encoder.encode(picture))
        finally:
            picture.pts, picture.pict_type, picture.duration = before[0], before[2], before[3]
            if before[1] is not None:
                picture.time_base = before[1]

    def _number(self, stamp: int, frame: Frame) -> int:
        """Number of a frame on the constant grid of AVI and MPEG program streams."""
        assert self._grid is not None
        if self._last is None:
            self._zero = stamp if self._program else 0
        exact = (stamp - self._zero) * self._time_base * self._grid
        number = round(exact)
        if abs(exact - number) / self._grid > max(self._time_base, Fraction(1, 1000)):
            raise OutputError(
                f"{self.path.suffix} holds a constant frame rate only, and the frame at {frame.time:.3f} s is off the grid of "
                f"{float(self._grid):.4g} frames/s; write .mp4 or .mkv"
            )
        return number

    def _convert(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The picture as the encoder wants it; itself wherever possible."""
        assert self._setup is not None
        size, pixels = self._setup.size, self._setup.pixels
        if (picture.format.name, (picture.width, picture.height)) == (pixels, size):
            return picture
        width, height = size
        if (picture.width, picture.height) != size and not self._scaled:
            self._scaled = True
            _log.warning(
                "%s changes its size from %dx%d to %dx%d on the way: what differs is scaled to the first",
                self._like.path, width, height, picture.width, picture.height,
            )  # fmt: skip
        if picture.format.is_rgb and not av.VideoFormat(pixels, 16, 16).is_rgb:
            return picture.reformat(
                width,
                height,
                pixels,
                dst_colorspace="ITU709",
                dst_color_range=_LIMITED_RANGE,
                interpolation="BICUBIC",
            )
        # naming the same range twice keeps FFmpeg from squeezing yuvj (full by name) into the limited range
        kept = encoders.range_of(picture)
        return picture.reformat(
            width, height, pixels, src_color_range=kept, dst_color_range=kept, interpolation="BICUBIC"
        )

    def _mux(self, packets: Iterable[av.Packet[Any]]) -> None:
        for packet in packets:
            if self._decoding is not None:
                packet.dts = self._decoding()
            if self._grid is not None and self._program and packet.pts is not None:
                # the encoder counts frames; the program stream gets their true times, and no B frames: dts is pts
                packet.pts = packet.dts = self._stamps.pop(packet.pts)
                packet.duration = round(1 / (self._grid * self._time_base))
                packet.time_base = self._time_base
            self._pass_on(packet if self._segments is None else self._segments.add(packet))

    def _pass_on(self, packet: av.Packet[Any]) -> None:
        if packet.dts is not None:
            self._copier.advance(packet.dts * packet.time_base)
        packet.stream = self._stream
        self._output.mux_one(packet)

    def _repeat(self, number: int) -> None:
        """Write a stretch that is kept."""
        assert self._segments is not None
        self._stamps.clear()
        for packet in self._segments.packets(number):
            if self._decoding is not None:
                self._decoding()
            self._pass_on(packet)

    def _end_segment(self) -> None:
        assert self._segments is not None
        assert self._encoder is not None
        self._mux(self._encoder.encode(None))
        self._segments.close()
        self._encoder = None

    def finish(self) -> None:
        """Flush the encoder, copy the rest, and move the file into place; raises OutputError."""
        if self._setup is None:
            raise OutputError(f"no frame was written to {self.path}; nothing is left of it")
        try:
            if self._encoder is not None:
                self._mux(self._encoder.encode(None))
            self._copier.advance(None)
            self._copier.close()
            self._output.close()
            self._set_aspect()
            self._part.replace(self.path)
            release(self.path)
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(explain(error, self.path)) from error

    def _set_aspect(self) -> None:
        """Put the aspect ratio into Matroska's header for codecs that have none of their own."""
        ratio = self._like.sample_aspect_ratio
        if self._form not in containers.MATROSKA or ratio in (0, 1) or self.encoder in _HAS_ASPECT:
            return
        assert self._setup is not None
        width, height = self._setup.size
        if not matroska.set_display_aspect(self._part, ratio * width / height):
            _log.warning("%s is written without its sample aspect ratio %s", self.path, ratio)

    def discard(self) -> None:
        """Remove the part file."""
        for holder in (getattr(self, "_copier", None), getattr(self, "_output", None)):
            try:
                if holder is not None:
                    holder.close()
            except (av.error.FFmpegError, OSError, ValueError):  # what is thrown away may fail to be finished
                pass
        self._part.unlink(missing_ok=True)
        release(self.path)
