"""Coding errors for training: pictures through real encoders, in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import av
import cv2
import numpy as np
import numpy.typing as npt

from streamfix.media.encoder import X264_PARAMS

Picture: TypeAlias = npt.NDArray[np.float32]
"""float32 (H, W, 3), RGB in [0, 1]."""
Clip: TypeAlias = list[Picture]
Rng: TypeAlias = np.random.Generator

_CODECS = ("libx264",) * 5 + ("libx265", "mpeg2video", "mpeg2video", "mpeg4", "mjpeg")
_LEAST = {"libx265": 64}
"""Smallest side that an encoder takes; x265 corrupts memory below."""


def jpeg(image: Picture, quality: int) -> Picture:
    """One JPEG round trip (4:2:0) at a quality of 1 to 100."""
    bgr = cv2.cvtColor(_bytes(image), cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.float32) / np.float32(255)


def video(frames: Sequence[Picture], rng: Rng) -> Clip:
    """The frames as the end of a clip that drifts towards them, after a real encoder at a low rate.

    H.264, HEVC, MPEG-2, MPEG-4 part 2 or Motion JPEG. What comes back are predicted frames, with the smear and blocks
    that stills never show.
    """
    height, width = frames[0].shape[:2]
    codec = str(rng.choice(_CODECS))
    if min(height, width) < _LEAST.get(codec, 0):
        codec = "libx264"
    count = int(rng.integers(1, 4))
    step = rng.normal(0, 1.5, 2)
    clip = []
    for back in range(count, 0, -1):  # before the first frame, which is drawn where it is
        shift = np.array([[1, 0, step[0] * back], [0, 1, step[1] * back]], np.float32)
        moved = cv2.warpAffine(frames[0], shift, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        clip.append(np.asarray(moved, np.float32))
    clip += frames
    options: dict[str, str]
    if codec == "libx264":
        options = {"crf": str(rng.integers(22, 39)), "preset": "veryfast", "bf": "0"}
    elif codec == "libx265":
        options = {
            "crf": str(rng.integers(24, 40)),
            "preset": "ultrafast",
            "x265-params": "bframes=0:pools=none:frame-threads=1:log-level=none",
        }
    else:
        quantizer = str(rng.integers(3, 17))
        options = {"qmin": quantizer, "qmax": quantizer}
    return coded(clip, codec, options)[count:]


def coded(frames: Sequence[Picture], codec: str, options: dict[str, str]) -> Clip:
    """The frames after an encoder (FFmpeg's name and options) in 4:2:0, one for one."""
    height, width = frames[0].shape[:2]
    even = (height + height % 2, width + width % 2)  # 4:2:0 has no odd sizes
    if codec == "libx264":
        options = {"x264-params": ":".join(X264_PARAMS), **options}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=Fraction(25), options={"threads": "1", **options})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = even
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            padded = np.pad(_bytes(frame), ((0, even[0] - height), (0, even[1] - width), (0, 0)), mode="edge")
            out.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as source:
        decoded = [f.to_ndarray(format="rgb24")[:height, :width] for f in source.decode(video=0)]
    if len(decoded) != len(frames):
        raise RuntimeError(f"{codec} gave {len(decoded)} frames for {len(frames)}")
    return [np.asarray(f, np.float32) / np.float32(255) for f in decoded]


def _bytes(image: Picture) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)
