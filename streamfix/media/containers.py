"""What each container can say, and the codec that suits it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import av
import av.error

from streamfix.errors import OutputError

MOV = frozenset({"mov", "mp4", "ipod", "3gp", "3g2", "psp", "f4v"})
MATROSKA = frozenset({"matroska", "webm"})
PROGRAM = frozenset({"mpeg", "vob", "dvd", "svcd", "vcd"})
ON_A_GRID = PROGRAM | {"avi"}
"""These know frames by their number at a constant rate."""
KEEPS_ROTATION = MOV | MATROSKA
FROM_ZERO = frozenset({"flv", "nut"})
"""These have no time before zero, and FFmpeg would move the whole file instead."""
NO_REORDERING = ON_A_GRID | FROM_ZERO | {"mpegts"}
"""Time stamps below zero or without pts do not come back from these as they went in: no B frames."""
KEEPS_TIME = MOV | MATROSKA | NO_REORDERING
"""Every container in which the frames of a test came back at their times; raw streams and the like have none."""
_OWN_METADATA = {
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "software",
}  # these speak of the container itself
_RIFF = {"title", "artist", "album", "date", "comment", "genre", "copyright", "language", "track", "encoded_by"}
_ITUNES = {
    "title",
    "artist",
    "album_artist",
    "composer",
    "album",
    "date",
    "comment",
    "genre",
    "copyright",
    "grouping",
    "lyrics",
    "description",
    "synopsis",
    "show",
    "episode_id",
    "network",
    "keywords",
    "track",
    "disc",
}
_IMAGES = {"image2", "gif", "apng", "webp", "avif"}
_HOLDS_HEVC = MATROSKA | {"mov", "mp4", "mpegts", "nut"}  # the other kin of mov take H.264 at most
_HEVC_LEAST = 64


def format_of(path: Path) -> str:
    """FFmpeg's name of the container that a suffix stands for; OutputError where it is none for video with its times."""
    if not path.suffix:
        raise OutputError(f"{path} has no suffix to choose a container by; call it .mp4 or .mkv")
    try:
        with av.open(f"x{path.suffix}", "w") as probe:  # allocates only; the file is created with the first packet
            name = str(probe.format.name)
    except (ValueError, av.error.FFmpegError) as error:
        raise OutputError(
            f"{path.suffix} is not the suffix of a container that FFmpeg writes; choose .mp4 or .mkv"
        ) from error
    if name in _IMAGES:
        raise OutputError(f"{path} would be an image, but the input is a video; choose .mp4 or .mkv")
    if name not in KEEPS_TIME:
        raise OutputError(f"{path.suffix} ({name}) does not keep the time of every frame; choose .mp4 or .mkv")
    return name


def default_codec(form: str, pixels: str, width: int, height: int) -> str:
    """The codec for `auto`: what every player takes, unless that would lose depth or transparency, or does not go in there.

    form: FFmpeg's name of the container; pixels: of the pixel format of the source; width, height: of its pictures.
    H.264 is the rule. Program streams hold MPEG-2. WebM holds AV1, or VP9 where AV1 would lose transparency or colour
    resolution. Transparency is kept by ProRes in .mov and by FFV1 in .mkv. More than 8 bits a sample go to HEVC: it has
    up to 12 and is decoded by the hardware that shows such pictures, while hardly any takes H.264's 10.
    """
    parts = av.VideoFormat(pixels, 16, 16).components
    alpha, deep = any(c.is_alpha for c in parts), max(c.bits for c in parts) > 8
    if form in PROGRAM:
        return "mpeg2video"
    if form == "webm":
        whole = len(parts) > 2 and all((c.width, c.height) != (8, 8) for c in parts[1:3]) and not deep
        return "libvpx-vp9" if alpha or whole else "av1"
    if alpha and form == "mov":
        return "prores_ks"
    if alpha and form in ("matroska", "nut"):
        return "ffv1"
    return "hevc" if deep and form in _HOLDS_HEVC and min(width, height) >= _HEVC_LEAST else "h264"


def own_left_out(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a file without those that speak of its container."""
    return {key: value for key, value in tags.items() if key.lower() not in _OWN_METADATA}


def named(tags: Mapping[str, str], form: str, *, itunes: bool) -> dict[str, str]:
    """The tags as a container can hold them: what has no name there goes into the comment. itunes: an MP4 with cover art."""
    known = _ITUNES if itunes else _RIFF if form == "avi" else None
    if known is None:
        return dict(tags)
    unknown = {key: value for key, value in tags.items() if key.lower() not in known}
    held = {key.lower(): value for key, value in tags.items() if key not in unknown}
    lines = [held["comment"]] if "comment" in held else []
    return held | {"comment": "\n".join(lines + [f"{key}: {value}" for key, value in unknown.items()])}
