"""Figures of an aligned face: how sharp it is, and what it is recognised by when it comes again."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.compose import face_mask

Picture = npt.NDArray[np.float32]
Hash = npt.NDArray[np.uint8]
"""uint8 (32,): 255 bits, and a last one that is 0."""

HASH_BITS = 255
_FINE, _COARSE = 1.5, 6.0
_HASH = 16


def sharpness(crop: Picture) -> float:
    """Fine detail of a face in percent of its coarser detail, whatever its contrast; white noise is not counted.

    crop: float32 (512, 512, 3), RGB in [0, 1], on the FFHQ template. Detail is what a Gaussian of 1.5 pixels takes away,
    weighted by the face mask, without the variance of the noise that its median betrays: detail is sparse, noise is everywhere.
    Of 80 sharp portraits 2 % lie below 29 and half below 47; blurred by 1 pixel half lie below 27, by 2 pixels 90 % below 19;
    enlarged three times half lie below 24; noise of 8/255 on the blurred ones does not raise it.
    """
    luma = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(luma, (0, 0), _FINE)
    fine, coarse = luma - smooth, smooth - cv2.GaussianBlur(smooth, (0, 0), _COARSE)
    mask = face_mask()
    noise = float(np.median(np.abs(fine[mask > 0.5]))) / 0.6745  # of a normal distribution
    detail = max(float((np.square(fine) * mask).sum() / mask.sum()) - noise * noise, 0.0)
    return 100 * math.sqrt(detail / max(float((np.square(coarse) * mask).sum() / mask.sum()), 1e-9))


def picture_hash(crop: Picture) -> Hash:
    """Perceptual hash of an aligned face (512, 512, 3): the signs of 255 low frequencies about their median (pHash).

    Compressed, blurred and noisy copies of a face differ in up to 2 % of the bits, alignment that is off by 3 pixels makes 9 %;
    among 80 people no two differed in less than 27 %.
    """
    luma = cv2.cvtColor(cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    low = cv2.dct(luma)[:_HASH, :_HASH].ravel()[1:]  # without the mean
    return np.packbits(low > np.median(low))


def hash_distance(hashes: Hash, one: Hash) -> npt.NDArray[np.float64]:
    """Share of bits, 0..1, in which each of (N, 32) differs from one (32,)."""
    return np.asarray(np.bitwise_count(hashes ^ one).sum(axis=-1, dtype=np.int64) / HASH_BITS, np.float64)
