"""What the samples of a picture mean, told with it: a receiver that is told nothing takes BT.709, whatever was sent.

Codes are those of ITU-T H.273.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from streamfix.media.color import is_full_range, usual_matrix

_UNTAGGED = (0, 2)
_BT709, _BT601 = 1, 6
_CONVERTS_TO = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7}
"""H.273 matrix code -> that of PyAV, of those that it converts to."""


@dataclass(frozen=True, slots=True)
class Colors:
    """How to read a picture's samples. range: 1 for 16..235, 2 for 0..255."""

    matrix: int
    range: int
    primaries: int
    transfer: int


STANDARD = Colors(_BT601, 1, _BT601, _BT601)
"""BT.601 in 16..235: what VP8 always is, and WebRTC's pictures where they say nothing (a browser's camera, in HD too)."""


def tag(picture: av.VideoFrame, *, matrix: int | None = None) -> None:
    """Write down what is taken of a picture that does not say it. matrix: of an untagged one; by its size (HD is BT.709) where None."""
    if picture.format.is_rgb:
        return
    picture.color_range = 2 if is_full_range(picture) else 1
    if int(picture.colorspace) in _UNTAGGED:
        picture.colorspace = usual_matrix(picture.width, picture.height) if matrix is None else matrix


def colors_of(picture: av.VideoFrame) -> Colors:
    """A picture's colours in Y'CbCr; STANDARD for one in RGB. What it leaves open is filled in."""
    if picture.format.is_rgb:
        return STANDARD
    tag(picture)
    matrix, primaries, transfer = int(picture.colorspace), int(picture.color_primaries), int(picture.color_trc)
    usual = _BT709 if matrix == _BT709 else _BT601
    return Colors(
        matrix,
        int(picture.color_range),
        usual if primaries in _UNTAGGED else primaries,
        usual if transfer in _UNTAGGED else transfer,
    )


def even(width: int, height: int) -> tuple[int, int]:
    """The size without what 4:2:0 cannot halve."""
    return max(2, width // 2 * 2), max(2, height // 2 * 2)


def plain(picture: av.VideoFrame, size: tuple[int, int], colors: Colors) -> av.VideoFrame:
    """The picture as yuv420p of that size, its samples in that matrix and range; itself where it is so already."""
    own = colors_of(picture)
    if (
        picture.format.name == "yuv420p"
        and size == (picture.width, picture.height)
        and (own.matrix, own.range) == (colors.matrix, colors.range)
    ):
        return picture
    return picture.reformat(
        *size,
        format="yuv420p",
        interpolation="BILINEAR" if size == (picture.width, picture.height) else "AREA",
        dst_colorspace=_CONVERTS_TO.get(colors.matrix),
        dst_color_range=colors.range,
    )


def turned(picture: av.VideoFrame, clockwise: int) -> av.VideoFrame:
    """The picture (yuv420p, even sizes where it was not) turned clockwise by 90, 180 or 270 degrees."""
    if not clockwise:
        return picture
    colors = colors_of(picture)
    picture = plain(picture, even(picture.width, picture.height), colors)
    width, height = picture.width, picture.height
    samples = picture.to_ndarray().reshape(-1)
    luma, u, v = np.split(samples, (width * height, width * height * 5 // 4))
    planes = [luma.reshape(height, width), *(c.reshape(height // 2, width // 2) for c in (u, v))]
    planes = [np.rot90(plane, -clockwise // 90) for plane in planes]
    across = planes[0].shape[1]
    out = av.VideoFrame.from_ndarray(np.concatenate([p.reshape(-1) for p in planes]).reshape(-1, across), "yuv420p")
    write_tags(out, colors)
    return out


def write_tags(target: av.VideoFrame | VideoCodecContext, colors: Colors) -> None:
    """Have a picture, or an encoder in its stream, say how the samples are to be read."""
    target.colorspace, target.color_range = colors.matrix, colors.range
    target.color_primaries, target.color_trc = colors.primaries, colors.transfer
