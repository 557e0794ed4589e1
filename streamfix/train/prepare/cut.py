"""A face as training reads it: aligned as inference aligns, in the largest layout that its source fills."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.faces.align import Matrix, apply, fit_similarity, invert
from streamfix.media.color import cut_out
from streamfix.train.layouts import LAYOUTS
from streamfix.train.prepare.measure import Picture
from streamfix.types import CROP_SIZE, FloatArray, Frame

ENLARGED = 1.25
"""Crop pixels for one source pixel up to which a face fills the template; beyond, it goes into the smaller layout."""
_WHOLE = 0.98
_EDGE = 4.0
"""Source pixels along the picture's edge that a crop blends with what lies outside (two samples of halved chroma)."""


def layout_matrix(landmarks: FloatArray, side: int) -> Matrix:
    """The similarity (2, 3) from the stored frame to the picture of that layout."""
    scale, margin = LAYOUTS[side]
    matrix = fit_similarity(landmarks, size=round(CROP_SIZE * scale))
    matrix[:, 2] += margin
    return matrix


def enlargement(landmarks: FloatArray) -> float:
    """Pixels of the 512x512 template for one source pixel; above 1 the source is smaller."""
    return float(np.hypot(*fit_similarity(landmarks)[:, 0]))


def inside(landmarks: FloatArray, side: int, width: int, height: int) -> float:
    """Share of that layout's square that lies in a picture of that size, 0..1."""
    points = _source(layout_matrix(landmarks, side), np.linspace(0, side - 1, 64))
    return float(np.mean(np.all((points >= 0) & (points <= (width - 1, height - 1)), axis=-1)))


def best_side(landmarks: FloatArray, width: int, height: int) -> int:
    """The layout for a face: 640 where the margin lies in the picture, else 512; 400 where the source has too few pixels."""
    if enlargement(landmarks) > ENLARGED:
        return 400
    return 640 if inside(landmarks, 640, width, height) >= _WHOLE else 512


def cut_face(frame: Frame, landmarks: FloatArray, side: int) -> Picture:
    """The face in that layout: float32 (side, side, 3), RGB in [0, 1], by the sampling of inference.

    What lies outside the frame is mirrored, as FFHQ has it, where inference has grey: training needs faces, not bars.
    """
    matrix = layout_matrix(landmarks, side)
    crop = np.empty((side, side, 3), np.float32)
    starts = sorted({0, max(side - CROP_SIZE, 0)})
    for y in starts:
        for x in starts:
            part = matrix.copy()
            part[:, 2] -= (x, y)
            tile = cut_out(frame, part)
            crop[y : y + CROP_SIZE, x : x + CROP_SIZE] = tile[: side - y, : side - x]
    return _mirrored(crop, matrix, frame.width, frame.height)


def _source(matrix: Matrix, ticks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the grid of those ticks in the crop lies in the frame: (N, N, 2)."""
    x, y = np.meshgrid(ticks, ticks)
    return apply(invert(matrix), np.stack([x, y], axis=-1))


def _mirrored(crop: Picture, matrix: Matrix, width: int, height: int) -> Picture:
    points = _source(matrix, np.arange(crop.shape[0], dtype=np.float64))
    low, high = np.array([_EDGE, _EDGE]), np.array([width - 1 - _EDGE, height - 1 - _EDGE])
    outside = np.any((points < low) | (points > high), axis=-1)
    if not outside.any() or (high <= low).any():
        return crop
    span = high - low
    folded = low + span - np.abs((points - low) % (2 * span) - span)
    back = apply(matrix, folded).astype(np.float32)
    filled = cv2.remap(crop, back[..., 0], back[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(np.where(outside[..., None], np.clip(filled, 0, 1), crop), np.float32)
