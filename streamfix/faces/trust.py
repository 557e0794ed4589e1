"""How far the landmarks of a small face can be believed: they are not when they waver, or do not form a face."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from streamfix.faces.align import TEMPLATE, Matrix, apply, fit_similarity, ramp
from streamfix.faces.track import Hit
from streamfix.types import CROP_SIZE, Face, FloatArray

SCATTER_RAMP = (0.007, 0.016)
"""Scatter of the landmarks in shares of the face's size, up to which they are believed, and from which not at all.

Measured against the truth on 16 to 64 px faces made from sharp ones, three clips, with and without JPEG artefacts: below
0.005 the landmarks are off by 0.3 to 3 % of the face, up to 0.010 by 2 to 6 %, from 0.014 on by 9 to 16 %."""
MISFIT_RAMP = (0.12, 0.17)
"""The same for their distance from the template's shape. A frontal face has 0.02 to 0.06, half a profile up to 0.14; seen from
above at 30 to 50 px, where nothing fits, 0.15 to 0.18."""
SMALL = (40.0, 56.0)
"""Source pixels: below the first all of this counts, above the second none. Larger faces are seen well enough."""
_FACE = 0.6 * CROP_SIZE
_FRAMES = 4.0


def landmark_trust(hits: Mapping[int, Hit], position: int, *, every: float = 1.0) -> float:
    """0 (do not align by them) .. 1 of one track's landmarks around a frame.

    hits: the track's faces within a window by position, each found by a detector: what optical flow carries on does not waver.
    every: frames from one detection to the next. Up to 3 the figures above hold; over 6 a face that talks wavers
    as much as one that is not to be believed. Scatter is read off the shape of the five points, wherever the face
    goes and however it is shaken: how far each lies from the middle between the frames before and after. The median
    over the frames counts, so that one slip, which the smoothing leaves out as well, does not.
    """
    seen: list[Hit] = []
    for hit in (hits[p] for p in sorted(hits)):
        if not seen or hit.face is not seen[-1].face:  # a picture that repeats says nothing new
            seen.append(hit)
    if not seen:
        return 0.0
    size = float(np.median([hit.sample.size for hit in seen]))
    larger = ramp(size, *SMALL)
    if larger >= 1:
        return 1.0
    weights = np.exp(-0.5 * ((np.array([hit.position for hit in seen]) - position) / (_FRAMES * every)) ** 2)
    misfit = _median(np.array([_misfit(hit.face.landmarks, hit.sample.similarity.matrix()) for hit in seen]), weights)
    trust = 1 - ramp(misfit, *MISFIT_RAMP)
    if len(seen) > 2:
        trust *= 1 - ramp(_median(_scatter(seen, size), weights[1:-1]), *SCATTER_RAMP)
    return larger + (1 - larger) * trust


def still_trust(face: Face) -> float:
    """The same for a face that is seen once: its shape is all that can be judged."""
    larger = ramp(face.size, *SMALL)
    return larger + (1 - larger) * (1 - ramp(_misfit(face.landmarks, fit_similarity(face.landmarks)), *MISFIT_RAMP))


def _misfit(landmarks: FloatArray, matrix: Matrix) -> float:
    """Distance of the landmarks from the template's, in shares of the face's size."""
    placed = apply(matrix, landmarks)
    return float(np.sqrt(np.square(placed - TEMPLATE).sum(axis=1).mean())) / _FACE


def _scatter(seen: list[Hit], size: float) -> npt.NDArray[np.float64]:
    """Of each face but the first and last: distance of its shape from that between its neighbours, per point of noise."""
    points = np.array([hit.face.landmarks for hit in seen], np.float64) / size
    points -= points.mean(axis=1, keepdims=True)
    times = np.array([hit.position for hit in seen], np.float64)
    share = ((times[1:-1] - times[:-2]) / (times[2:] - times[:-2]))[:, None, None]
    off = points[1:-1] - (1 - share) * points[:-2] - share * points[2:]
    # noise of each of the three adds up in the difference
    gain = 1 + np.square(1 - share[:, 0, 0]) + np.square(share[:, 0, 0])
    return np.asarray(np.sqrt(np.square(off).sum(axis=2).mean(axis=1) / gain), np.float64)


def _median(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Weighted median, interpolated."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(np.interp(total[-1] / 2, total - weights[order] / 2, values[order]))
