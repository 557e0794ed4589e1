"""Which encoder, in which pixel format, with which options."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import av
import av.codec
import av.error
from av.codec.codec import UnknownCodecError, find_best_pix_fmt_of_list

from streamfix._cv2 import cv2
from streamfix.errors import OutputError, UsageError
from streamfix.media.base import ColorTags, HdrMetadata

_log = logging.getLogger(__name__)

# SVT-AV1 writes its settings to stderr for every file; it reads this when it starts. Failures are raised by FFmpeg anyway.
os.environ.setdefault("SVT_LOG", "0")

CODECS = {"h264": "libx264", "hevc": "libx265", "h265": "libx265", "av1": "libsvtav1", "ffv1": "ffv1"}
"""Short names -> FFmpeg encoders. Any other encoder goes by FFmpeg's own name (h264_nvenc ...); auto: `containers.default_codec`."""

_CRF = {
    "libx264": 18,
    "libx265": 20,
    "libsvtav1": 26,
    "libvpx-vp9": 22,
    "mpeg2video": 18,
}  # visually close to lossless, in each one's scale
_CRF_MAX = {"libsvtav1": 63, "libvpx-vp9": 63, "libvpx": 63}
_PRESET = {"libx264": "veryfast", "libx265": "fast", "libsvtav1": "8"}
_X26X = ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"]
_PRESETS = {"libx264": _X26X, "libx265": _X26X, "libsvtav1": [str(n) for n in range(14)]}
_SURFACES = {"cuda", "vaapi", "qsv", "d3d11", "d3d12", "dxva2_vld", "drm_prime", "videotoolbox_vld", "vulkan", "amf"}
_WHOLE_CHROMA = {"libx264", "libx265", "mpeg2video"}
_FULL_RANGE, _LIMITED_RANGE, _BT709 = 2, 1, 1
_INTERLACED = (1 << 18) | (1 << 29)  # AV_CODEC_FLAG_INTERLACED_DCT, AV_CODEC_FLAG_INTERLACED_ME
_FRAME_DURATION = 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION: packets carry their frame's duration
QUANTISED = frozenset({"mpeg2video", "mjpeg", "mpeg4"})
"""Encoders that are told a quantiser, not a crf."""
_AVX512 = 256  # cv::CPU_AVX512_SKX, which the Python module does not name
X264_PARAMS = ["asm=avx2,fma3,bmi2"] if cv2.checkHardwareSupport(_AVX512) else []
"""What x264 must be told for the same pictures to give the same stream: its AVX-512 code for the rate control's macroblock tree
reads what is not its own where a picture is not a multiple of 128 pixels wide, and one run's file then differs from the next's."""
_LEAST_SIZE = {"libx265": 64}  # below, x265 4.1 writes past its buffers (found with glibc's MALLOC_CHECK_)


def find_encoder(name: str) -> av.codec.Codec:
    """FFmpeg's encoder for a short name or its own name; UsageError names the ones there are."""
    try:
        codec = av.codec.Codec(CODECS.get(name, name), "w")
        if codec.type == "video":
            return codec
    except UnknownCodecError:
        pass
    raise UsageError(
        f"there is no video encoder called {name!r} in this FFmpeg; choose h264, hevc, av1, ffv1 or an FFmpeg encoder name"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that the first frame of a video decides for its encoder.

    size: width and height; pixels: its pixel format; rate: frames a second; quantiser: for QUANTISED; tag: of the codec in
    the container (Apple's players insist on hvc1), None for FFmpeg's choice; reorders: whether it may have B frames.
    """

    size: tuple[int, int]
    pixels: str
    time_base: Fraction
    rate: Fraction
    colors: ColorTags
    aspect: Fraction | None
    interlaced: bool
    reorders: bool
    quantiser: int | None
    tag: str | None
    options: Mapping[str, str]

    def apply(self, context: av.VideoCodecContext) -> None:
        """Tell it all to an encoder that is not open yet."""
        colors = self.colors
        (context.width, context.height), context.pix_fmt = self.size, self.pixels
        context.time_base, context.framerate = self.time_base, self.rate
        context.colorspace, context.color_range = colors.matrix, colors.range
        context.color_primaries, context.color_trc = colors.primaries, colors.transfer
        context.sample_aspect_ratio = self.aspect
        context.flags |= _FRAME_DURATION | (_INTERLACED if self.interlaced else 0)
        # slices (PyAV's default) would cut every picture of x264 into strips, at a cost in quality
        context.thread_type = "SLICE" if context.name in ("ffv1", "mpeg2video") else "AUTO"
        if not self.reorders:
            context.max_b_frames = 0
        if self.quantiser is not None:
            context.qscale, context.global_quality = True, self.quantiser
        if self.tag is not None:
            context.codec_tag = self.tag
        located = {"chroma_sample_location": colors.chroma_location} if colors.chroma_location else {}
        context.options = {**self.options, **located}

    def depth(self, context: av.VideoCodecContext) -> int:
        """By how many places its frames change their order at most, once it is open."""
        if not self.reorders:
            return 0
        if context.name == "libx265":  # which does not tell; B frames refer to B frames there
            return 2
        return context.reorder_depth

    def another(self, codec: av.codec.Codec, *, flags: int) -> av.VideoCodecContext:
        """An open encoder that knows of no frame yet. flags: of the first one, as its container wanted them."""
        context = av.CodecContext.create(codec, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.flags, context.bit_rate = flags, 0  # as containers begin theirs
        self.apply(context)
        open_encoder(context)
        return context


def open_encoder(context: av.VideoCodecContext) -> None:
    """Open it, and leave every thread of this process to the scheduler as it was.

    For root SVT-AV1 makes the threads that it starts, and the one that opens it, real-time ones: nothing else on the machine gets
    a core while they work, and the programs that this thread starts later inherit it.
    """
    before = _real_time_threads()
    try:
        context.open()
    finally:
        for thread in _real_time_threads() - before:
            with suppress(OSError):  # it has ended
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _real_time_threads() -> set[int]:
    if sys.platform != "linux":
        return set()
    threads = set()
    for name in os.listdir("/proc/self/task"):
        with suppress(OSError):
            if os.sched_getscheduler(int(name)) in (os.SCHED_FIFO, os.SCHED_RR):
                threads.add(int(name))
    return threads


def try_hardware(codec: av.codec.Codec, width: int, height: int) -> None:
    """Open a hardware encoder once, so that a machine without it is told so before any work: OutputError. Others pass."""
    if not codec.capabilities & av.codec.codec.Capabilities.hardware:
        return
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height = max(width & ~1, 256), max(height & ~1, 256)
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 25)
    try:
        open_encoder(context)
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise OutputError(
            f"the hardware encoder {codec.name} cannot be opened on this machine; choose h264, hevc or av1"
        ) from error


def options(encoder: str, *, crf: int | None, preset: str | None) -> dict[str, str]:
    """Rate control and speed of an encoder; crf in the encoder's own scale. UsageError outside of it."""
    top = _CRF_MAX.get(encoder, 51)
    if crf is not None and not 0 <= crf <= top:
        raise UsageError(f"{encoder} takes a crf from 0 (best) to {top}, not {crf}")
    known = _PRESETS.get(encoder)
    if preset is not None and known is not None and preset not in known:
        raise UsageError(f"{encoder} has no preset {preset!r}; choose one of: {', '.join(known)}")
    if encoder == "ffv1":
        if crf is not None or preset is not None:
            _log.warning("ffv1 loses nothing, and does without --crf and --preset")
        return {"level": "3", "slicecrc": "1", "g": "1"}
    out: dict[str, str] = {}
    value = str(crf if crf is not None else _CRF.get(encoder, 19))
    if encoder in ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "libvpx", "libaom-av1", "libx264rgb"):
        out["crf"] = value
        if encoder.startswith("libvpx"):
            out |= {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}  # without b=0 the rate is limited
    elif encoder.endswith("_nvenc"):
        out |= {"rc": "vbr", "cq": value, "preset": "p5"}
    elif encoder.endswith("_qsv"):
        out |= {"global_quality": value}
    elif encoder.endswith("_amf"):
        out |= {"rc": "cqp", "qp_i": value, "qp_p": value}
    elif encoder.endswith("_videotoolbox"):
        out["q:v"] = str(max(100 - 2 * int(value), 1))
    elif encoder == "mjpeg":
        out["strict"] = "unofficial"  # or it takes full range only; FFmpeg notes the limited range in a comment
    speed = preset if preset is not None else _PRESET.get(encoder)
    if speed is not None and encoder not in QUANTISED:
        out["preset"] = speed
    return out


def quantiser(crf: int | None) -> int:
    """The scale of MPEG-2, MPEG-4 and MJPEG (1 best ... 31) for a crf of x264's."""
    return min(max(round(((18 if crf is None else crf) - 12) / 3), 1), 31)


def pixel_format(name: str, codec: av.codec.Codec, width: int, height: int) -> str:
    """The encoder's pixel format that holds `name` without loss, or with the least FFmpeg knows of.

    H.264, H.265 and MPEG-2 cannot hold an odd width or height with chroma at half resolution: there chroma is stored at full
    resolution (4:4:4), which keeps every luma sample and the size, where padding would change the picture. AV1 stays 4:2:0.
    """
    offered = [f.name for f in codec.video_formats or [] if f.name not in _SURFACES]
    if not offered:
        return name
    offered = [f for f in offered if not (codec.name == "libx265" and f.startswith("yuva"))]  # needs a build option
    if codec.name in _WHOLE_CHROMA:
        offered = [f for f in offered if fits(f, width, height)] or offered
    if not _is_float(name):
        offered = [f for f in offered if not _is_float(f)] or offered
    least = _LEAST_SIZE.get(codec.name, 1)
    if min(width, height) < least:
        raise OutputError(
            f"{codec.name} cannot encode {width}x{height}, only {least}x{least} and up; choose h264 or ffv1"
        )
    plain = name.replace("yuvj", "yuv")
    for candidate in (name, plain):
        if candidate in offered:
            return candidate
    usable = [f for f in offered if not f.startswith("yuvj")] or offered
    best, _ = find_best_pix_fmt_of_list(usable, plain, has_alpha=True)
    chosen = best.name if best is not None else usable[0]
    lost = _lost(plain, chosen)
    if lost:
        _log.warning("%s does not hold %s: %s; --codec ffv1 in .mkv keeps all", codec.name, plain, lost)
    return chosen


def _is_float(name: str) -> bool:
    """Whether the samples of a pixel format are floating point, which FFmpeg counts as no worse than integers of that depth."""
    return "f16" in name or "f32" in name


def _lost(name: str, chosen: str) -> str:
    """What a picture loses from one pixel format to the other, in words; empty for nothing that can be seen."""
    one, two = (av.VideoFormat(n, 16, 16) for n in (name, chosen))
    bits, left = (max(c.bits for c in f.components) for f in (one, two))
    out = []
    if any(c.is_alpha for c in one.components) and not any(c.is_alpha for c in two.components):
        out.append("its transparency is left out")
    if left < bits:
        out.append(f"{bits} bits a sample become {left}")
    if len(one.components) > 2 and len(two.components) > 2 and not one.is_rgb and not two.is_rgb:
        area, less = (f.components[1].width * f.components[1].height for f in (one, two))
        if less < area:
            out.append("its colour loses resolution")
    return " and ".join(out)


def fits(name: str, width: int, height: int) -> bool:
    """Whether a picture of that size divides into the format's chroma samples."""
    picture = av.VideoFormat(name, 4, 4)
    return all(width * c.width % 4 == 0 and height * c.height % 4 == 0 for c in picture.components)


def private_options(encoder: str, tags: ColorTags, hdr: HdrMetadata | None) -> dict[str, str]:
    """Options in the encoders' own syntax, where FFmpeg has none: HDR metadata (if they can), a steady stream, and silence."""
    x264 = encoder in ("libx264", "libx264rgb")
    name = "x264-params" if x264 else {"libx265": "x265-params", "libsvtav1": "svtav1-params"}.get(encoder)
    parts = _hdr_parts(encoder, hdr) if hdr is not None else []
    if x264:
        parts += X264_PARAMS
    if encoder == "libx265":
        parts.append("log-level=error")
    if x264 and tags.range == 1 and tags.matrix == tags.transfer == tags.primaries == 2:
        parts.append("videoformat=component")  # without any description x264 would not write the range either
    if hdr is not None and name is None:
        _log.warning("%s does not carry mastering display metadata: it is left out", encoder)
    return {name: ":".join(parts)} if name and parts else {}


def _hdr_parts(encoder: str, hdr: HdrMetadata) -> list[str]:
    parts = []
    floats = encoder == "libsvtav1"

    def number(value: Fraction, unit: int) -> str:
        return f"{float(value):.8g}" if floats else str(round(value * unit))

    if hdr.primaries and hdr.white and hdr.luminance:
        red, green, blue = hdr.primaries
        points = {"G": green, "B": blue, "R": red, "WP": hdr.white}
        text = "".join(f"{k}({number(x, 50000)},{number(y, 50000)})" for k, (x, y) in points.items())
        low, high = hdr.luminance
        key = {"libx265": "master-display"}.get(encoder, "mastering-display")
        parts.append(f"{key}={text}L({number(high, 10000)},{number(low, 10000)})")
    if hdr.content_light:
        key = {"libx264": "cll", "libx265": "max-cll"}.get(encoder, "content-light")
        parts.append(f"{key}={hdr.content_light[0]},{hdr.content_light[1]}")
    return parts


def tame(rate: Fraction) -> Fraction:
    """A frame rate that encoders accept: between 1 and 240, small terms."""
    return min(max(rate.limit_denominator(1001), Fraction(1)), Fraction(240))


def standard(rate: Fraction) -> Fraction:
    """The usual rate that an average of measured times stands for, the rate itself where none is near."""
    usual = [
        Fraction(n * 1000, d)
        for n in (24, 25, 30, 50, 60)
        for d in (1000, 1001)
        if (n, d) not in ((25, 1001), (50, 1001))
    ]
    nearest = min(usual, key=lambda r: abs(r - rate))
    return nearest if abs(nearest - rate) / nearest < Fraction(1, 2000) else rate


def tags_of(picture: av.VideoFrame, source: ColorTags, name: str) -> ColorTags:
    """Tags for the output: the picture's own, and the source's where it has none."""
    if picture.format.is_rgb:
        rgb = av.VideoFormat(name, 16, 16).is_rgb
        matrix, span = (0, _FULL_RANGE) if rgb else (_BT709, _LIMITED_RANGE)
        return ColorTags(matrix=matrix, range=span, transfer=source.transfer, primaries=source.primaries)
    return ColorTags(
        matrix=int(picture.colorspace) if int(picture.colorspace) != 2 else source.matrix,
        range=range_of(picture) or source.range,
        transfer=int(picture.color_trc) if int(picture.color_trc) != 2 else source.transfer,
        primaries=int(picture.color_primaries) if int(picture.color_primaries) != 2 else source.primaries,
        chroma_location=source.chroma_location,
    )


def range_of(picture: av.VideoFrame) -> int:
    """Code of the range: yuvj is full by its name, and so is grey unless it is tagged otherwise."""
    name = picture.format.name
    if name.startswith("yuvj") or (name.startswith(("gray", "ya")) and int(picture.color_range) == 0):
        return _FULL_RANGE
    return int(picture.color_range)
