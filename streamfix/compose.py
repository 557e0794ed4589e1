"""Masks, strength and laying back: how a restored crop becomes part of its frame."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from streamfix.media.color import lay_back
from streamfix.types import CROP_SIZE, Crop, Frame


@cache
def face_mask() -> npt.NDArray[np.float32]:
    """The feathered mask of the FFHQ crop: float32 (512, 512) in [0, 1].

    A superellipse around brows, cheeks and chin that is 1 inside, falls smoothly over a fifth of its radius, and is 0 along the rim
    of the crop, where hair and background belong to the input.
    """
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE].astype(np.float32)
    radius = (np.abs((x - 256) / 232) ** 2.5 + np.abs((y - 268) / 238) ** 2.5) ** (1 / 2.5)
    t = np.clip((1.0 - radius) / 0.28, 0.0, 1.0)
    mask: npt.NDArray[np.float32] = (t * t * (3.0 - 2.0 * t)).astype(np.float32)
    mask.setflags(write=False)
    return mask


def compose(
    frame: Frame, crop: Crop, restored: npt.NDArray[np.float32], *, weight: npt.NDArray[np.float32] | None = None
) -> Frame:
    """Lay one restored crop (float32 (512, 512, 3), RGB in [0, 1]) back at the strength of its placement.

    weight: float32 (512, 512) in [0, 1], how much of it to use where; None is 1 everywhere. Strength 0 leaves every
    sample of the frame as it was.
    """
    strength = crop.placement.strength
    if strength <= 0.0:
        return frame
    mask = face_mask() * np.float32(min(strength, 1.0))
    if weight is not None:
        mask = mask * weight
        if not mask.any():
            return frame
    return lay_back(frame, restored=restored, crop=crop.image, mask=mask, matrix=crop.placement.matrix)
