"""`open_sink`: a video file, an image, or a folder of images."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from streamfix.errors import UsageError
from streamfix.media.base import Sink, Source
from streamfix.media.image_sink import ImageSink
from streamfix.media.images import ImageSource
from streamfix.media.segments import Segments
from streamfix.media.video import VideoSource
from streamfix.media.video_sink import VideoSink

__all__ = ["Sink", "open_sink"]

_log = logging.getLogger(__name__)


def open_sink(
    path: str | Path,
    *,
    like: Source,
    codec: str = "auto",
    crf: int | None = None,
    preset: str | None = None,
    drop: Collection[str] = (),
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
    segments: Segments | None = None,
) -> Sink:
    """Open an output for the frames of `like`; its suffix chooses the container or the image format.

    codec: auto (H.264, or what keeps the input's depth and transparency, see `containers.default_codec`), h264, hevc, av1,
    ffv1, or the FFmpeg name of an encoder (h264_nvenc ...). crf, preset: in the encoder's own scale.
    drop: what not to copy: "audio", "subtitles", "data", "attachments", "video" (other video streams), or stream indexes.
    tags: added to the metadata of the output. Images use none of codec, crf, preset and drop, and say so.
    segments: of a video that goes on where it was broken off, see VideoSink.
    The output appears under its name when the with-block is left without an exception, and not at all otherwise.
    Raises OutputError when it cannot be written or a stream cannot live in the container, UsageError for bad options.
    """
    target = Path(path)
    drop = (drop,) if isinstance(drop, str) else drop
    if isinstance(like, ImageSource):
        given = {"codec": codec != "auto", "crf": crf is not None, "preset": preset is not None, "drop": bool(drop)}
        if any(given.values()):
            _log.warning(
                "%s is an image, which does without --%s", target, " and --".join(k for k, v in given.items() if v)
            )
        return ImageSink(target, like=like, overwrite=overwrite, tags=tags or {})
    if not isinstance(like, VideoSource):
        raise UsageError(f"no sink knows what to do with a {type(like).__name__}")
    return VideoSink(
        target,
        like=like,
        codec=codec,
        crf=crf,
        preset=preset,
        drop=drop,
        overwrite=overwrite,
        tags=tags or {},
        segments=segments,
    )
