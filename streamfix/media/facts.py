"""What a media file says about itself: colour tags, rotation, HDR metadata, streams."""

from __future__ import annotations

import re
import struct
import threading
from fractions import Fraction
from typing import Any

import av
import av.container
import av.logging
import av.stream

from streamfix.media.base import ColorTags, HdrMetadata
from streamfix.types import Facts

# code points of ITU-T H.273 under FFmpeg's names; the rest is shown as its number
_MATRIX = {0: "gbr", 1: "bt709", 2: "unknown", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco"}
_MATRIX |= {9: "bt2020nc", 10: "bt2020c", 14: "ictcp"}
_PRIMARIES = {1: "bt709", 2: "unknown", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film"}
_PRIMARIES |= {9: "bt2020", 10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213"}
_TRANSFER = {1: "bt709", 2: "unknown", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear"}
_TRANSFER |= {11: "iec61966-2-4", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 18: "hlg"}
_RANGE = {0: "unknown", 1: "tv", 2: "pc"}
_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")

_dump_lock = threading.Lock()


def describe(container: av.container.InputContainer) -> dict[int, str]:
    """FFmpeg's own one-line description of each stream, by index; holds what PyAV has no attribute for."""
    with _dump_lock:  # the log level is global to the process
        level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        av.logging.set_libav_level(av.logging.VERBOSE)  # below it the chroma location is left out
        try:
            text: str = container.dumps_format()  # type: ignore[attr-defined]  # missing from PyAV's stubs
        finally:
            av.logging.set_libav_level(av.logging.INFO)  # FFmpeg's own default
            av.logging.set_level(level)
    return {
        int(m[1]): m[2] for m in re.finditer(r"Stream #0:(\d+)[^\n]*?: (?=Video|Audio|Subtitle|Data|Att)([^\n]*)", text)
    }


def chroma_location(description: str) -> str | None:
    """Chroma sample location out of a stream's description; None where unspecified."""
    inside = re.search(r"\(([^()]*)\)", description[description.find("yuv") :]) if "yuv" in description else None
    words = [w.strip() for w in inside[1].split(",")] if inside else []
    return next((w for w in words if w in _CHROMA_LOCATIONS), None)


def color_tags(picture: av.VideoFrame, location: str | None = None) -> ColorTags:
    """The tags a decoded picture carries; a yuvj format is full range by its name."""
    full = picture.format.name.startswith("yuvj")
    return ColorTags(
        matrix=int(picture.colorspace),
        range=2 if full else int(picture.color_range),
        transfer=int(picture.color_trc),
        primaries=int(picture.color_primaries),
        chroma_location=location,
    )


def side_data(picture: av.VideoFrame) -> dict[str, bytes]:
    """Side data of a picture by FFmpeg's name; empty where PyAV does not know one of the kinds."""
    try:
        return {data.type.name: bytes(data) for data in list(picture.side_data)}  # type: ignore[attr-defined, arg-type]
    except ValueError:  # PyAV lists the kinds in an enumeration that trails FFmpeg's
        return {}


def display_matrix(data: dict[str, bytes]) -> tuple[int, ...] | None:
    """The nine integers of the display matrix, None where there is none or it changes nothing."""
    raw = data.get("DISPLAYMATRIX")
    if raw is None or len(raw) < 36:
        return None
    matrix = struct.unpack("=9i", raw[:36])
    return None if matrix[:2] == (65536, 0) and matrix[3:5] == (0, 65536) else matrix


def clockwise(degrees_counterclockwise: float) -> int:
    """FFmpeg's rotation (counterclockwise) as the nearest of 0, 90, 180, 270 degrees clockwise."""
    return round(-degrees_counterclockwise / 90) % 4 * 90


def hdr_metadata(data: dict[str, bytes]) -> HdrMetadata | None:
    """Mastering display and content light metadata out of a picture's side data.

    AVMasteringDisplayMetadata is 22 native ints: primaries as 6 rationals, white point, luminance, two flags.
    """
    mastering, light = data.get("MASTERING_DISPLAY_METADATA"), data.get("CONTENT_LIGHT_LEVEL")
    primaries = white = luminance = content = None
    if mastering is not None and len(mastering) >= 88:
        ints = struct.unpack("=22i", mastering[:88])
        ratio = [Fraction(n, d or 1) for n, d in zip(ints[0:20:2], ints[1:20:2], strict=True)]
        if ints[20]:
            primaries = ((ratio[0], ratio[1]), (ratio[2], ratio[3]), (ratio[4], ratio[5]))
            white = (ratio[6], ratio[7])
        if ints[21]:
            luminance = (ratio[8], ratio[9])
    if light is not None and len(light) >= 8:
        content = struct.unpack("=2I", light[:8])
    if primaries is None and luminance is None and content is None:
        return None
    return HdrMetadata(primaries=primaries, white=white, luminance=luminance, content_light=content)


def color_facts(tags: ColorTags) -> Facts:
    """Colour tags under FFmpeg's names."""
    return {
        "matrix": _MATRIX.get(tags.matrix, str(tags.matrix)),
        "range": _RANGE.get(tags.range, str(tags.range)),
        "transfer": _TRANSFER.get(tags.transfer, str(tags.transfer)),
        "primaries": _PRIMARIES.get(tags.primaries, str(tags.primaries)),
        "chroma_location": tags.chroma_location or "unspecified",
    }


def hdr_facts(hdr: HdrMetadata) -> Facts:
    """HDR metadata in plain floats."""
    return {
        "primaries": [[float(v) for v in point] for point in hdr.primaries] if hdr.primaries else None,
        "white_point": [float(v) for v in hdr.white] if hdr.white else None,
        "luminance": [float(v) for v in hdr.luminance] if hdr.luminance else None,
        "max_cll": hdr.content_light[0] if hdr.content_light else None,
        "max_fall": hdr.content_light[1] if hdr.content_light else None,
    }


def stream_facts(stream: av.stream.Stream, description: str = "") -> Facts:
    """One stream: what every kind has, and the rest by its kind."""
    context = stream.codec_context
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    found: dict[str, Any] = {
        "index": stream.index,
        "type": stream.type,
        "codec": codec_name(stream),
        "language": stream.language,
        "title": stream.metadata.get("title"),
        "disposition": [flag.name for flag in type(stream.disposition) if flag in stream.disposition],
        "time_base": str(stream.time_base),
        "duration": seconds,
        "metadata": dict(stream.metadata),
    }
    if stream.type not in ("video", "audio") and description:
        found["description"] = description
    if context is not None:
        found["profile"] = context.profile
        found["bit_rate"] = context.bit_rate
    if isinstance(stream, av.VideoStream) and context is not None:
        found["width"], found["height"], found["pix_fmt"] = stream.width, stream.height, stream.pix_fmt
        found["frame_rate"] = float(stream.average_rate) if stream.average_rate else None
        found["frames"] = stream.frames or None
        found["sample_aspect_ratio"] = str(stream.sample_aspect_ratio or 1)
    elif isinstance(stream, av.AudioStream) and context is not None:
        found["sample_rate"], found["channels"] = stream.sample_rate, stream.channels
        found["layout"] = stream.layout.name
    return found


def codec_name(stream: av.stream.Stream) -> str:
    """Name of a stream's codec, "unknown" where FFmpeg has none."""
    if stream.codec_context is not None:
        return str(stream.codec_context.codec.canonical_name)
    if stream.type == "attachment":
        return stream.metadata.get("mimetype", "attachment")
    return getattr(stream, "name", None) or "unknown"
