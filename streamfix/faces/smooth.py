"""Zero-phase smoothing of the similarity parameters of one track over a finite window (files)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamfix.faces.align import Similarity, wrapped

WINDOW = 8
"""Frames to each side that may bear on a smoothed frame."""
_POSITION_SIGMA = 0.10
_SHAPE_SIGMA = 0.15
"""Seconds: standard deviations of the Gaussian weights; scale and angle are smoothed harder than position."""
_CURVATURE_PENALTY = 0.3
_ROUNDS = 4
_TUKEY = 4.685
_MOST_SPREAD = 2.5
_POSITION_BOUND = 0.03
_SHAPE_BOUND = 0.03
"""How far the smoothed crop may stray from a trusted measurement: shares of the face's size; radians, and natural log of scale."""
_SURE_SIZE = 40.0
"""Pixels: faces below this are smoothed harder, by at most _MOST_STRETCH."""
_MOST_STRETCH = 1.6
# Residuals below these are never outliers. In shares of the face's size; log scale and radians in the second and third.
_OFFSET_FLOOR = 0.01
_SCALE_FLOOR = 0.02
_ANGLE_FLOOR = 0.02
_POSITION_FLOOR = 0.04

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One detection of a track as the smoother sees it.

    time: seconds. box: its box's centre in the frame, pixels. size: of the face, pixels. trust: weight, 0 (exclusive) .. 1.
    """

    time: float
    similarity: Similarity
    box: tuple[float, float]
    size: float
    trust: float = 1.0


def smooth(samples: Sequence[Sample], *, time: float, measured: Sample | None) -> Similarity:
    """The smoothed similarity at one moment.

    samples: the detections within WINDOW frames of that moment, at least one. measured: the one at that very moment,
    None in a gap. Local polynomial regression (Savitzky-Golay for uneven times) on the differences from the measurement,
    so that equal samples come out bit for bit and a steady motion has no lag, at the ends of a track too; the curvature
    is penalised, or the ends would be noisy. Samples that disagree with their neighbours (Tukey's biweight on the
    residuals) count for nothing. Where the measurement itself is not such an outlier, the result stays close
    to it: real sudden motion is followed.
    """
    origin = measured.similarity if measured is not None else _between(samples, time)
    size = math.exp(float(np.mean([math.log(max(s.size, 1e-3)) for s in samples])))
    values = np.array([_difference(s.similarity, origin) for s in samples]) / (size, size, 1.0, 1.0)
    times = np.array([s.time - time for s in samples])
    trust = np.array([s.trust for s in samples])
    # landmarks that leave the box they came with, or change shape, are a slip of the network; both moving is motion
    first = samples[0]
    offsets = values[:, :2] - np.array([(s.box[0] - first.box[0], s.box[1] - first.box[1]) for s in samples]) / size
    keep = _inliers(times, np.concatenate([values, offsets], axis=1), trust)
    # landmarks of tiny faces are worth little: lean on more of the track, and let it stray further from them
    stretch = min(max(_SURE_SIZE / size, 1.0), _MOST_STRETCH)
    estimate = np.concatenate(
        [
            _local(times, values[:, :2], trust * keep, _POSITION_SIGMA * stretch),
            _local(times, values[:, 2:], trust * keep, _SHAPE_SIGMA * stretch),
        ]
    )
    if measured is not None:
        here = float(keep[int(np.argmin(np.abs(times)))]) * measured.trust
        estimate[:2] = _bounded(estimate[:2], _POSITION_BOUND * stretch, here)
        estimate[2:] = _bounded(estimate[2:], _SHAPE_BOUND * stretch, here)
    return Similarity(
        cx=origin.cx + float(estimate[0]) * size,
        cy=origin.cy + float(estimate[1]) * size,
        log_scale=origin.log_scale + float(estimate[2]),
        angle=origin.angle + float(estimate[3]),
    )


def _difference(one: Similarity, origin: Similarity) -> tuple[float, float, float, float]:
    """The first minus the second, the angle unwrapped."""
    return (
        one.cx - origin.cx,
        one.cy - origin.cy,
        one.log_scale - origin.log_scale,
        wrapped(one.angle - origin.angle),
    )


def _between(samples: Sequence[Sample], time: float) -> Similarity:
    """Linear interpolation between the neighbours in time; before the first and after the last, the nearest."""
    before = [s for s in samples if s.time <= time]
    after = [s for s in samples if s.time > time]
    if not before or not after:
        return (before[-1] if before else after[0]).similarity
    left, right = before[-1], after[0]
    share = (time - left.time) / (right.time - left.time)
    cx, cy, log_scale, angle = _difference(right.similarity, left.similarity)
    start = left.similarity
    return Similarity(
        cx=start.cx + share * cx,
        cy=start.cy + share * cy,
        log_scale=start.log_scale + share * log_scale,
        angle=start.angle + share * angle,
    )


def _design(times: Vector, sigma: float) -> tuple[Vector, Vector]:
    """Columns 1, u, u^2 with u in units of sigma, and the Gaussian weights."""
    # in a gap of a slow time lapse even the nearest sample is far away
    u = times / max(sigma, float(np.min(np.abs(times))))
    return np.stack([np.ones_like(u), u, u * u], axis=1), np.exp(-0.5 * u * u)


def _fit(design: Vector, values: Vector, weights: Vector) -> Vector:
    """Coefficients (3, D) of the weighted fit with penalised curvature; the slope is dropped where one sample must do."""
    total = float(weights.sum())
    weighted = design * weights[:, None]
    normal = design.T @ weighted
    # a slope needs two moments in time: the tiny penalty decides where there is one, and bears on nothing else
    normal[1, 1] += 1e-12 * total
    normal[2, 2] += _CURVATURE_PENALTY * total
    return np.asarray(np.linalg.solve(normal, weighted.T @ values), dtype=np.float64)


def _local(times: Vector, values: Vector, weights: Vector, sigma: float) -> Vector:
    """Value (D,) at time 0 of a local fit."""
    design, gauss = _design(times, sigma)
    return np.asarray(_fit(design, values, gauss * weights)[0], dtype=np.float64)


def _inliers(times: Vector, values: Vector, trust: Vector) -> Vector:
    """Weights (N,) in 0..1: how well each sample agrees with a robust fit through the others.

    values: (N, 6): position, log scale, angle, position relative to the box.
    """
    keep = np.ones(len(times))
    if len(times) < 5:  # too few to outvote one of them
        return keep
    design, gauss = _design(times, _SHAPE_SIGMA)
    # shape and offset change slowly, so their medians start the search even where many samples are wrong
    residual = np.abs(values - np.median(values, axis=0))
    residual[:, :2] = 0.0
    for _ in range(_ROUNDS):
        channels = np.stack(
            [
                _scaled(np.hypot(residual[:, 0], residual[:, 1]), _POSITION_FLOOR),
                _scaled(residual[:, 2], _SCALE_FLOOR),
                _scaled(residual[:, 3], _ANGLE_FLOOR),
                _scaled(np.hypot(residual[:, 4], residual[:, 5]), _OFFSET_FLOOR),
            ]
        )
        worst = channels.max(axis=0) / _TUKEY
        # a floor keeps the equations solvable where everything disagrees with everything
        keep = np.maximum(np.where(worst < 1, (1 - np.minimum(worst, 1) ** 2) ** 2, 0.0), 1e-4)
        residual = np.abs(values - design @ _fit(design, values, gauss * trust * keep))
    return keep


def _scaled(residual: Vector, floor: float) -> Vector:
    """Residuals in units of their own spread, which is taken to lie between the floor and a small multiple of it."""
    spread = min(max(1.4826 * float(np.median(residual)), floor), _MOST_SPREAD * floor)
    return np.asarray(residual / spread, dtype=np.float64)


def _bounded(step: Vector, bound: float, trust: float) -> Vector:
    """A step shortened smoothly to less than bound / trust; small steps stay nearly whole."""
    length = float(np.hypot(*step))
    return step / math.sqrt(1.0 + (length * trust / bound) ** 2)
