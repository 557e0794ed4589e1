"""What a detection network proposes, before it is a Face: many overlapping candidates, merged here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NMS_IOU = 0.4
_VOTE_IOU = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """boxes float64 (N, 4) x1 y1 x2 y2, landmarks float64 (N, 5, 2), scores float64 (N,) in 0..1."""

    boxes: npt.NDArray[np.float64]
    landmarks: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def mapped(self, matrix: npt.NDArray[np.float64]) -> Candidates:
        """The same candidates after an axis-aligned map (2, 3) of their coordinates."""
        scale, shift = np.diag(matrix[:, :2]), matrix[:, 2]
        return Candidates(
            boxes=self.boxes * np.tile(scale, 2) + np.tile(shift, 2),
            landmarks=self.landmarks * scale + shift,
            scores=self.scores,
        )


def joined(parts: list[Candidates]) -> Candidates:
    """All candidates of several passes over one picture."""
    return Candidates(
        boxes=np.concatenate([p.boxes for p in parts]),
        landmarks=np.concatenate([p.landmarks for p in parts]),
        scores=np.concatenate([p.scores for p in parts]),
    )


def iou(box: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of one box (4,) with many (N, 4)."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(overlap, 0.0), axis=1)
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    area = float(np.prod(np.maximum(box[2:] - box[:2], 0.0)))
    return np.asarray(common / np.maximum(area + areas - common, 1e-12), dtype=np.float64)


def merged(found: Candidates) -> Candidates:
    """One candidate a face, best first: non-maximum suppression, then a vote of the suppressed ones.

    Landmarks and box are averaged over all candidates that lie on the winner, weighted by score: which prior wins
    changes from frame to frame and would make the landmarks jump.
    """
    order = np.argsort(-found.scores, kind="stable")
    boxes, landmarks, scores = found.boxes[order], found.landmarks[order], found.scores[order]
    alive = np.ones(len(order), dtype=bool)
    kept_boxes, kept_landmarks, kept_scores = [], [], []
    for i in range(len(order)):
        if not alive[i]:
            continue
        overlaps = iou(boxes[i], boxes)
        voters = alive & (overlaps >= _VOTE_IOU)
        voters[i] = True
        weights = scores[voters] ** 2
        weights /= weights.sum()
        kept_boxes.append(weights @ boxes[voters])
        kept_landmarks.append(np.tensordot(weights, landmarks[voters], axes=1))
        kept_scores.append(scores[i])
        alive &= overlaps < _NMS_IOU
        alive[i] = False
    return Candidates(
        boxes=np.array(kept_boxes).reshape(-1, 4),
        landmarks=np.array(kept_landmarks).reshape(-1, 5, 2),
        scores=np.array(kept_scores),
    )
