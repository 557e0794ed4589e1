"""Patterns that a network leaves in skin and hair: the 2 and 4 pixels of its shuffles, and weaves of any other period.

A weave comes from a feature net in the loss that does not see it: it stands at the same frequency in every face, whatever
is in the picture, and no photograph does that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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


def weaves(images: Sequence[Picture], real: Sequence[Picture], *, most: int = 6) -> list[tuple[float, float, float]]:
    """The frequencies at which `images` stand out most: (period in y, period in x, power over its surroundings).

    Power is the median over many windows of 128 pixels, against that of `real` faces, and against its own median over
    all directions at that frequency. Eight photographs against eight others stay below 6, sixteen below 3; a visible
    weave reaches 30 and more. Periods in pixels, infinite along its stripes.
    """
    side = 128
    ratio = _spectrum(images, side) / _spectrum(real, side)
    y, x = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    radius = np.hypot(y, x)
    for low in np.arange(0, 0.72, 0.03):
        ring = (radius >= low) & (radius < low + 0.03)
        if ring.any():
            ratio[ring] /= np.median(ratio[ring])
    ratio[radius < 0.08] = 0  # what is broader than 12 pixels is shading
    found: list[tuple[float, float, float]] = []
    for index in np.argsort(ratio, axis=None)[::-1]:
        fy, fx = abs(y.flat[index]), abs(x.flat[index])
        if all(max(abs(fy - a), abs(fx - b)) > 0.025 for a, b, _ in found):
            found.append((fy, fx, float(ratio.flat[index])))
        if len(found) == most:
            break
    return [(1 / a if a else float("inf"), 1 / b if b else float("inf"), power) for a, b, power in found]


def _spectrum(images: Sequence[Picture], side: int) -> npt.NDArray[np.float64]:
    window = np.outer(np.hanning(side), np.hanning(side))
    powers = []
    for image in images:
        luma = _luma(image) * 255
        starts = range(0, luma.shape[0] - side + 1, side // 2)
        for part in (luma[y : y + side, x : x + side] for y in starts for x in starts):
            powers.append(np.abs(np.fft.fft2((part - part.mean()) * window)) ** 2)
    return np.asarray(np.median(powers, axis=0) + 1e-3, np.float64)


def _luma(image: Picture) -> Picture:
    grey = cv2.cvtColor(np.asarray(image, np.float32), cv2.COLOR_RGB2GRAY)
    return np.asarray(grey[SKIN, SKIN], np.float32)
