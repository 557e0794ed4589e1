"""Patterns of 2 and 4 pixels, which pixel shuffling leaves in skin: how strong they are, in 8-bit levels."""

from __future__ import annotations

import numpy as np
import torch

from streamfix._cv2 import cv2
from streamfix.evaluate.metrics import Picture
from streamfix.train.losses import grid_amplitude

SKIN = slice(96, 416)
"""Rows and columns of the template that show the face and little else; a multiple of 64, so that all periods fit."""


def local_grid(image: Picture) -> float:
    """Amplitude of the waves of period 2 and 4 within windows of 64 pixels, averaged over the face.

    Natural detail has a share in it: compare with real photographs.
    """
    part = torch.from_numpy(np.ascontiguousarray(_luma(image)))[None, None]
    return 255 * float(grid_amplitude(part, torch.zeros_like(part)))


def lasting_grid(image: Picture) -> float:
    """Standard deviation of the mean 4x4 tile of the face's fine detail: a pattern that keeps its phase all over.

    Detail averages out over 6,400 tiles, so 0.1 level can be told from nothing. Period 2 is part of period 4.
    """
    luma = _luma(image)
    fine = luma - cv2.blur(luma, (8, 8))  # whole periods: nothing of them is in the blur
    side = luma.shape[0] // 4
    return 255 * float(fine.reshape(side, 4, side, 4).mean(axis=(0, 2)).std())


def _luma(image: Picture) -> Picture:
    grey = cv2.cvtColor(np.asarray(image, np.float32), cv2.COLOR_RGB2GRAY)
    return np.asarray(grey[SKIN, SKIN], np.float32)
