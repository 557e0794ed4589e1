"""How a frame is shown to a detection network: at a size where its faces are large enough to be found, at bounded cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.types import Image

WORK_SIZE = 640
"""Long side of the frame in the first pass, canvas pixels."""
LARGE_SIZE = 1440
"""Long side in the second pass, for frames that lose small faces at WORK_SIZE: 24 px at 1080p are 18 px there."""
_LARGE_FROM = 960
_MAX_ZOOM = 4.0
_OVERLAP = 64
_GRAIN = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One canvas. canvas: uint8 RGB. to_frame: float64 (2, 3), canvas -> frame, axis aligned, pixel centres at integers."""

    canvas: Image
    to_frame: npt.NDArray[np.float64]


def views(image: Image, *, fixed: tuple[int, int] | None = None) -> list[View]:
    """The canvases in which the faces of one frame are looked for.

    image: upright RGB. fixed: (width, height) where the network takes one size only; large frames are then cut into
    overlapping tiles. Small frames are magnified by up to 4: the network misses faces below about 12 px, and its
    landmarks are poor below 30.
    """
    height, width = image.shape[:2]
    long_side = max(width, height)
    sizes = [WORK_SIZE] if long_side <= _LARGE_FROM else [WORK_SIZE, min(LARGE_SIZE, long_side)]
    result = []
    for number, size in enumerate(sizes):
        zoom = min(size / long_side, _MAX_ZOOM)
        if fixed is not None and number == 0:
            zoom = min(fixed[0] / width, fixed[1] / height, _MAX_ZOOM)
        scaled = _resized(image, zoom)
        to_frame = _unscale(scaled, image)
        if fixed is None:
            result.append(View(canvas=_padded(scaled, None), to_frame=to_frame))
        else:
            result.extend(_tiles(scaled, to_frame, fixed))
    return result


def _resized(image: Image, zoom: float) -> Image:
    height, width = image.shape[:2]
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    if size == (width, height):
        return image
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def _unscale(scaled: Image, image: Image) -> npt.NDArray[np.float64]:
    """The map from the resized picture back, with the sizes as they came out after rounding to whole pixels."""
    fx, fy = image.shape[1] / scaled.shape[1], image.shape[0] / scaled.shape[0]
    return np.array([[fx, 0.0, (fx - 1) / 2], [0.0, fy, (fy - 1) / 2]])


def _padded(image: Image, size: tuple[int, int] | None) -> Image:
    """Grey added at the right and below, up to the size or the next multiple of the coarsest stride."""
    height, width = image.shape[:2]
    to_width, to_height = size or (-(-width // _GRAIN) * _GRAIN, -(-height // _GRAIN) * _GRAIN)
    if (to_width, to_height) == (width, height):
        return np.ascontiguousarray(image)
    canvas = np.full((to_height, to_width, 3), 118, dtype=np.uint8)
    canvas[:height, :width] = image
    return canvas


def _tiles(image: Image, to_frame: npt.NDArray[np.float64], size: tuple[int, int]) -> list[View]:
    height, width = image.shape[:2]
    result = []
    for top in _starts(height, size[1]):
        for left in _starts(width, size[0]):
            part = image[top : top + size[1], left : left + size[0]]
            shift = to_frame.copy()
            shift[:, 2] += to_frame[:, :2] @ np.array([left, top], dtype=np.float64)
            result.append(View(canvas=_padded(part, size), to_frame=shift))
    return result


def _starts(length: int, tile: int) -> list[int]:
    """First pixels of tiles that cover a length, overlapping by at least _OVERLAP."""
    if length <= tile:
        return [0]
    count = -(-(length - _OVERLAP) // (tile - _OVERLAP))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]
