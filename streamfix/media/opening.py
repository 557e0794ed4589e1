"""Opening a media file, and which of its streams is the picture."""

from __future__ import annotations

import os
from pathlib import Path

import av
import av.container
import av.error
import av.stream

from streamfix.errors import InputError


def open_container(path: Path) -> av.container.InputContainer:
    """Open a media file; raises InputError with one sentence for each way a file can be bad."""
    if not os.path.exists(path):  # unlike Path's own, False for a name that is too long
        raise InputError(f"there is no file {path}; check the path")
    try:
        if path.is_fifo():  # two demuxers read every file: one for the picture, one for the rest
            raise InputError(f"{path} is a pipe, which cannot be read twice; save it to a file first")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); copy or record it again")
        # absolute, or FFmpeg takes what stands before a colon in the name for a protocol
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, PermissionError) and not os.access(path, os.R_OK):  # FFmpeg has its own uses for it
            raise InputError(f"{path} cannot be read: permission denied; change its permissions") from error
        if _lacks_index(path):
            raise InputError(
                f"{path} is cut off: its index (moov) is missing, because the recording was not finished; "
                "finish or repair it first"
            ) from error
        raise InputError(f"{path} is not a media file that FFmpeg can read, or it is damaged from the start") from error
    if container.format.name == "tty":  # FFmpeg renders any text file as a terminal
        container.close()
        raise InputError(f"{path} is a text file, not media; give a video, an image, or a folder of images")
    return container


def _lacks_index(path: Path) -> bool:
    """Whether this begins like an MP4 or QuickTime file but has no moov box."""
    try:
        kinds: list[bytes] = []
        size, at = path.stat().st_size, 0
        with path.open("rb") as file:
            while at + 8 <= size and len(kinds) < 64:
                file.seek(at)
                head = file.read(16)
                length, kind = int.from_bytes(head[:4], "big"), head[4:8]
                if length == 1:
                    length = int.from_bytes(head[8:16], "big")
                kinds.append(kind)
                at += length if length >= 8 else size
    except OSError:
        return False
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The video stream to restore: FFmpeg's best one that is not a cover picture."""
    usable = [s for s in container.streams.video if s.codec_context is not None and not is_cover(s)]
    best = container.streams.best("video")
    return best if isinstance(best, av.VideoStream) and best in usable else usable[0] if usable else None


def is_cover(stream: av.stream.Stream) -> bool:
    """Whether a stream is cover art: one picture attached to the file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)
