"""Faces carried from one picture to the next by what moved: tracking between detections (live).

Median flow (Kalal, Mikolajczyk, Matas, ICPR 2010): a grid of points in the face is followed forth and back; those that do not
return to where they began are left out, and the rest agree on one similarity. About 1 ms a face, against 15 for a detection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.faces.align import apply
from streamfix.types import Face, Image

Grey = npt.NDArray[np.uint8]

WORK_SIZE = 640
"""Long side of the pictures in which motion is looked for, pixels."""
_GRID = 7
_INSIDE = 0.8
"""Share of the box in which points are set: its rim is background."""
_WINDOW = (15, 15)
_LEVELS = 3
_RETURN = 1.0
"""Pixels by which a point may miss its start after the way forth and back."""
_LEAST_POINTS = 10
_MOST_SCALE = 0.25
"""Natural log: a face that grows or shrinks more than this between two frames was lost, not followed."""
_LEAST_CONTRAST = 2.0


def working(image: Image) -> tuple[Grey, float]:
    """The grey picture for `carry` and its scale: working pixels per pixel of the frame (at most 1)."""
    height, width = image.shape[:2]
    scale = min(WORK_SIZE / max(height, width), 1.0)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale < 1.0:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return np.asarray(grey, dtype=np.uint8), scale


def carry(before: Grey, now: Grey, faces: Sequence[Face], *, scale: float) -> list[Face | None]:
    """Where the faces of the picture before are now; None for a face whose points disagree.

    before, now: uint8 (H, W), of one size. faces: in frame coordinates, which are `scale` times finer. A face keeps its score and
    loses its embedding.
    """
    if before.shape != now.shape:
        return [None] * len(faces)
    return [_carried(before, now, face, scale) for face in faces]


def _carried(before: Grey, now: Grey, face: Face, scale: float) -> Face | None:
    x1, y1, x2, y2 = (face.box.astype(np.float64) * scale).tolist()
    rim_x, rim_y = (x2 - x1) * (1 - _INSIDE) / 2, (y2 - y1) * (1 - _INSIDE) / 2
    xs = np.linspace(x1 + rim_x, x2 - rim_x, _GRID)
    ys = np.linspace(y1 + rim_y, y2 - rim_y, _GRID)
    points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    height, width = before.shape
    inside = (points >= 0).all(axis=1) & (points <= (width - 1, height - 1)).all(axis=1)
    start = points[inside].astype(np.float32)
    if len(start) < _LEAST_POINTS:
        return None
    region = before[max(int(y1), 0) : int(y2) + 1, max(int(x1), 0) : int(x2) + 1]
    if float(region.std()) < _LEAST_CONTRAST:  # nothing to hold on to
        return None
    there, found = _flow(before, now, start)
    back, returned = _flow(now, before, there)
    good = found & returned & (np.linalg.norm(back - start, axis=1) <= _RETURN)
    if good.sum() < max(_LEAST_POINTS, 0.4 * len(start)):
        return None
    a, b = start[good].astype(np.float64), there[good].astype(np.float64)
    if np.array_equal(a, b):  # the same picture again: the face is where it was, to the last bit
        return Face(box=face.box, landmarks=face.landmarks, score=face.score)
    motion, keep = cv2.estimateAffinePartial2D(a, b, method=cv2.RANSAC, ransacReprojThreshold=1.0)
    if motion is None or not np.isfinite(motion).all() or int(np.sum(keep)) < 0.5 * len(a):
        return None
    zoom = float(np.hypot(motion[0, 0], motion[1, 0]))
    if zoom <= 0 or abs(np.log(zoom)) > _MOST_SCALE:
        return None
    moved = np.asarray(motion, dtype=np.float64).copy()
    moved[:, 2] /= scale
    centre = apply(moved, face.box.reshape(2, 2).mean(axis=0))
    half = (face.box[2:] - face.box[:2]) / 2 * zoom
    return Face(
        box=np.concatenate([centre - half, centre + half]).astype(np.float32),
        landmarks=apply(moved, face.landmarks).astype(np.float32),
        score=face.score,
    )


def _flow(
    before: Grey, now: Grey, points: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Points (N, 2) of the first picture in the second, and which of them were found."""
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        before, now, points, points.copy(), winSize=_WINDOW, maxLevel=_LEVELS, flags=0
    )
    return np.asarray(there, dtype=np.float32), np.ravel(np.asarray(found)) > 0
