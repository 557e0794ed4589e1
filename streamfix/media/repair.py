"""Pictures that a damaged file leaves outside of their own format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av


def limit(picture: av.VideoFrame) -> bool:
    """Bring samples back that lie above what the depth holds (10 bits in words of 16 ...); True where there were any.

    FFmpeg's decoders leave such words in pictures that they could not finish, and x264 ends the process on meeting one.
    """
    parts = picture.format.components
    bits = parts[0].bits
    planar = len({c.plane for c in parts}) == len(parts) == len(picture.planes)
    if not 8 < bits < 16 or not planar or picture.format.name.endswith("be") or any(c.bits != bits for c in parts):
        return False
    peak, found = 2**bits - 1, False
    for index in range(len(picture.planes)):
        if _words(picture, index).max(initial=0) > peak:
            picture.make_writable()
            words = _words(picture, index)
            np.minimum(words, peak, out=words)
            found = True
    return found


def _words(picture: av.VideoFrame, index: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    """The samples of a plane without the padding of its rows, writable where the picture is."""
    plane = picture.planes[index]
    width = next(c.width for c in picture.format.components if c.plane == index)
    flat = np.frombuffer(memoryview(plane), "<u2", count=plane.height * plane.line_size // 2)
    return flat.reshape(plane.height, plane.line_size // 2)[:, :width]
