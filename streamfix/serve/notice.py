"""The held frame: the last picture, dimmed, with one line that says what is going on."""

from __future__ import annotations

import av
import numpy as np

from streamfix._cv2 import cv2
from streamfix.serve.colors import STANDARD, colors_of, plain, write_tags
from streamfix.types import Image

_DIM = 0.35
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def held_picture(last: av.VideoFrame | None, text: str) -> av.VideoFrame:
    """A picture (yuv420p) to show while none comes. last: the latest one, None where there was none."""
    image: Image
    colors = STANDARD if last is None else colors_of(last)  # others would begin the encoders anew
    if last is None:
        image = np.full((360, 640, 3), 24, dtype=np.uint8)
    else:
        image = np.asarray(last.to_ndarray(format="rgb24") * _DIM, dtype=np.uint8)
    height, width = image.shape[:2]
    scale = height / 600
    (wide, high), _ = cv2.getTextSize(text, _FONT, scale, 1)
    if wide > 0.9 * width:
        scale *= 0.9 * width / wide
        (wide, high), _ = cv2.getTextSize(text, _FONT, scale, 1)
    thick = max(1, round(2 * scale))
    place = ((width - wide) // 2, (height + high) // 2)
    cv2.putText(image, text, place, _FONT, scale, (235, 235, 235), thick, cv2.LINE_AA)
    held = plain(av.VideoFrame.from_ndarray(image, format="rgb24"), (width, height), colors)
    write_tags(held, colors)
    return held
