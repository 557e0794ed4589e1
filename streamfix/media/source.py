"""`open_source`: a video file, an image, a folder of images or a glob as frames."""

from __future__ import annotations

import glob
import logging
import math
import os
from pathlib import Path

from streamfix.errors import InputError, UsageError
from streamfix.media.base import Source
from streamfix.media.images import IMAGE_SUFFIXES, ImageSource, images_in
from streamfix.media.video import VideoSource

__all__ = ["Source", "find_media", "open_source"]

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".m2v",
        ".vob",
        ".ts",
        ".m2ts",
        ".mts",
        ".flv",
        ".wmv",
        ".asf",
        ".3gp",
        ".3g2",
        ".ogv",
        ".mxf",
        ".mjpeg",
        ".mjpg",
        ".y4m",
        ".h264",
        ".264",
        ".hevc",
        ".h265",
        ".265",
        ".ivf",
        ".nut",
        ".dv",
        ".gif",
        ".rm",
        ".rmvb",
        ".divx",
        ".f4v",
        ".wtv",
        ".obu",
        ".mj2",
    }
)
"""Suffixes by which a folder is searched; a file named by itself is opened whatever it is called."""


UNREAD = frozenset(
    {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".psd", ".svg"}
)
"""Suffixes of pictures that are known and not read: told, so that a folder of photos is not restored in part and in silence."""


def _has_wildcard(text: str) -> bool:
    return any(c in text for c in "*?[") and not os.path.exists(text)


def find_media(spec: str | Path) -> list[Path]:
    """The media files that a file name, a folder or a glob stands for, sorted by name.

    A file is returned as it is, unread. Raises InputError where nothing is found.
    """
    text = str(spec)
    if not text:  # an unset variable of a script must not mean the current folder
        raise InputError("the name of the input is empty; name a file, a folder or a pattern")
    if _has_wildcard(text):
        found = sorted(p for name in glob.glob(text, recursive=True) if (p := Path(name)).is_file())
        if not found:
            raise InputError(f"nothing matches {text}; check the pattern")
        return found
    path = Path(spec)
    if os.path.isdir(path):  # unlike Path's own, these call a name that is too long just not there
        known = VIDEO_SUFFIXES | IMAGE_SUFFIXES
        entries = _entries(path)
        found = sorted(p for p in entries if p.suffix.lower() in known)
        unread = [p for p in entries if p.suffix.lower() in UNREAD]
        if unread:
            kinds = ", ".join(sorted({p.suffix.lower() for p in unread}))
            _log.warning(
                "%d pictures of %s are skipped (%s): convert them to JPEG or PNG first", len(unread), path, kinds
            )
        if not found:
            raise InputError(f"the folder {path} holds no video and no image; name a folder that does")
        return found
    if not os.path.exists(path):
        raise InputError(f"there is no file {path}; check the path")
    return [path]


def _entries(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    except PermissionError as error:
        raise InputError(f"the folder {folder} cannot be read: permission denied; change its permissions") from error


def open_source(
    spec: str | Path, *, start: float | None = None, end: float | None = None, deinterlace: bool | None = None
) -> Source:
    """Open a video file, an image, or a folder or glob of images.

    start, end: seconds from the start of the file: frames with start <= time < end (video only).
    deinterlace: True for every frame, False for none, None for those that the stream flags as interlaced; one frame comes
    out for each frame in, with its pts.
    Raises InputError when there is nothing to read, UsageError for an impossible range.
    """
    if not str(spec):
        raise InputError("the name of the input is empty; name a file, a folder or a pattern")
    if not all(math.isfinite(t) for t in (start, end) if t is not None):
        raise UsageError("a start and an end are seconds; leave one out for the whole file")
    if (start is not None and start < 0) or (end is not None and end <= (start or 0.0)):
        to = "its end" if end is None else f"{end:g}"
        raise UsageError(f"the range from {start or 0:g} to {to} seconds is empty; the end must come after the start")
    path = Path(spec)
    if path.suffix.lower() in UNREAD and os.path.isfile(path):
        raise InputError(
            f"{path} is a {path.suffix.lower()} picture, which is not read; convert it to JPEG or PNG first"
        )
    if _has_wildcard(str(spec)) or os.path.isdir(path):
        files = images_in(find_media(spec))
        if not files:
            raise InputError(f"{spec} holds no image; give its videos one by one")
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        files = [path]
    else:
        return VideoSource(path, start=start, end=end, deinterlace=deinterlace)
    if start is not None or end is not None:
        raise UsageError("a start and an end are for videos; images have no time")
    return ImageSource(path, files)
