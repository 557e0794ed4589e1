"""Where the aligned crop of a face lies: the FFHQ template, the similarity that fits it, and exact inverses."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamfix.types import CROP_SIZE, FloatArray

Matrix = npt.NDArray[np.float64]
"""float64 (2, 3): an affine map of column vectors (x, y, 1)."""

TEMPLATE: npt.NDArray[np.float64] = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
"""float64 (5, 2): eyes, nose and mouth corners in a 512x512 crop, as FFHQ-trained restorers publish them (facexlib)."""
TEMPLATE.flags.writeable = False


ARCFACE_TEMPLATE: npt.NDArray[np.float64] = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""float64 (5, 2): the same points in the 112x112 input of ArcFace-trained face embeddings (insightface)."""
ARCFACE_TEMPLATE.flags.writeable = False

ARCFACE_SIZE = 112
"""Side of that input in pixels."""

ARCFACE_BLUR = 1.8
"""Sigma in pixels of the Gaussian that a 512x512 crop needs before it is sampled for that input, against aliasing."""


def template(size: int = CROP_SIZE) -> npt.NDArray[np.float64]:
    """The template in a crop of another size; the picture's edges, not its pixel centres, are scaled."""
    if size == CROP_SIZE:
        return TEMPLATE
    return (TEMPLATE + 0.5) * (size / CROP_SIZE) - 0.5


def fit_similarity(landmarks: FloatArray, *, size: int = CROP_SIZE) -> Matrix:
    """The similarity (2, 3) from the frame to the crop that brings five landmarks (5, 2) nearest to the template.

    Least squares in closed form (Umeyama 1991, without reflection): deterministic, and smooth in the landmarks. The
    published pipelines take OpenCV's LMEDS, which fits to a subset of the five points and changes its mind from frame
    to frame: on panned stills the scale then varied by up to 3 % instead of 0.7 %. Raises ValueError where all landmarks coincide.
    """
    points = _complex(np.asarray(landmarks, dtype=np.float64))
    target = _complex(template(size))
    return _fit(points, target)


def arcface_matrix() -> Matrix:
    """The similarity (2, 3) from an aligned 512x512 crop to ArcFace's 112x112 input: a constant, no detector needed."""
    return _fit(_complex(TEMPLATE), _complex(ARCFACE_TEMPLATE))


def _complex(points: npt.NDArray[np.float64]) -> npt.NDArray[np.complex128]:
    return np.asarray(points[:, 0] + 1j * points[:, 1])


def _fit(points: npt.NDArray[np.complex128], target: npt.NDArray[np.complex128]) -> Matrix:
    # a similarity of the plane is w = a z + b over the complex numbers, and so is its least-squares solution
    middle, goal = complex(points.mean()), complex(target.mean())
    spread = float(np.sum(np.abs(points - middle) ** 2))
    a = complex(np.sum(np.conj(points - middle) * (target - goal))) / spread if spread > 0 else 0j
    if not cmath.isfinite(a) or a == 0:
        raise ValueError(f"five distinct finite landmarks are needed to align a face, got {points.tolist()}")
    return _matrix(a, goal - a * middle)


def _matrix(a: complex, b: complex) -> Matrix:
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], dtype=np.float64)


def invert(matrix: Matrix) -> Matrix:
    """The inverse of an affine map (2, 3), in closed form. Raises ValueError where there is none."""
    (a, b, tx), (c, d, ty) = np.asarray(matrix, dtype=np.float64).tolist()
    determinant = a * d - b * c
    if determinant == 0 or not math.isfinite(determinant):
        raise ValueError(f"the matrix {matrix!r} has no inverse")
    ia, ib, ic, id_ = d / determinant, -b / determinant, -c / determinant, a / determinant
    return np.array([[ia, ib, -(ia * tx + ib * ty)], [ic, id_, -(ic * tx + id_ * ty)]], dtype=np.float64)


def then(first: Matrix, second: Matrix) -> Matrix:
    """The affine map (2, 3) that does the first and after it the second."""
    turned = second[:, :2] @ first
    turned[:, 2] += second[:, 2]
    return np.asarray(turned, dtype=np.float64)


def apply(matrix: Matrix, points: FloatArray) -> npt.NDArray[np.float64]:
    """Points (..., 2) mapped by an affine map (2, 3)."""
    return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """The place of a crop in its frame, in parameters that may be averaged over time.

    cx, cy: the crop's centre in the frame, pixels. log_scale: natural logarithm of frame pixels per crop pixel.
    angle: radians by which the crop's x axis is turned in the frame, clockwise as seen (y points down); unwrapped in time
    by whoever compares two of them.
    """

    cx: float
    cy: float
    log_scale: float
    angle: float

    @classmethod
    def of(cls, matrix: Matrix, *, size: int = CROP_SIZE) -> Similarity:
        """The parameters of a similarity (2, 3) from the frame to a crop of that size."""
        a = complex(matrix[0, 0], matrix[1, 0])
        centre = (complex(1, 1) * ((size - 1) / 2) - complex(matrix[0, 2], matrix[1, 2])) / a
        return cls(cx=centre.real, cy=centre.imag, log_scale=-math.log(abs(a)), angle=-cmath.phase(a))

    def matrix(self, *, size: int = CROP_SIZE) -> Matrix:
        """The similarity (2, 3) from the frame to a crop of that size."""
        a = cmath.rect(math.exp(-self.log_scale), -self.angle)
        return _matrix(a, complex(1, 1) * ((size - 1) / 2) - a * complex(self.cx, self.cy))


def wrapped(angle: float) -> float:
    """The same direction within (-pi, pi]; zero stays exactly zero."""
    turned = math.remainder(angle, math.tau)
    return math.pi if turned == -math.pi else turned


YAW_RAMP = (52.0, 75.0)
"""Degrees up to which a turned face is restored in full, and from which on it is left: the template is frontal."""


def yaw(landmarks: npt.NDArray[np.float32]) -> float:
    """How far a face is turned from frontal, degrees, 0 to 90, from where the nose lies between the eyes.

    landmarks: (5, 2) as in Face. Seen from far away, the distance of the eyes shrinks with the cosine and the tip of
    the nose, half of that distance in front of them, moves with the sine.
    """
    left, right, nose = (landmarks[i].astype(np.float64) for i in range(3))
    eyes = right - left
    across = float(eyes @ eyes)
    if across <= 1e-6:
        return 90.0
    return math.degrees(math.atan(abs(2 * float((nose - (left + right) / 2) @ eyes) / across)))


def frontal(landmarks: npt.NDArray[np.float32]) -> float:
    """Share of the strength that a face keeps for not being turned away, 0..1."""
    return 1 - ramp(yaw(landmarks), *YAW_RAMP)


def ramp(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, smooth between."""
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return share * share * (3 - 2 * share)
