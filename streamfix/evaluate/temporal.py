"""How steady a restored face is over a track: in who it is, and in where its features lie.

The names are those of the papers; where a paper gives no code, the formula stands here (and in docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streamfix.evaluate.landmarks import Points, landmark_distance
from streamfix.faces.embedding import Embedding


@dataclass(slots=True)
class FaceTrace:
    """One restored face over its track: by frame number its embedding and points, and those of the truth."""

    embeddings: dict[int, tuple[Embedding, Embedding]] = field(default_factory=dict)
    points: dict[int, tuple[Points, Points]] = field(default_factory=dict)

    def similarity(self) -> npt.NDArray[np.float64]:
        """Cosine to the truth by frame: KEEP's IDS (Feng et al. 2024, arXiv 2408.05205)."""
        return np.array([float(e @ truth) for e, truth in self.embeddings.values()])

    def keypoint_distance(self) -> npt.NDArray[np.float64]:
        """Mean distance of the points to the truth's, by frame, in pixels of the crop: KEEP's AKD."""
        return np.array([landmark_distance(p, truth) for p, truth in self.points.values()])

    def landmark_motion(self) -> npt.NDArray[np.float64]:
        """How far the points move otherwise than the truth's between neighbouring frames, pixels of the crop.

        TLME of PGTFormer (Xu et al. 2024, arXiv 2404.13640): mean |(l_t - l_t-1) - (g_t - g_t-1)| over the points.
        """
        pairs = ((self.points[n], self.points[n - 1]) for n in self.points if n - 1 in self.points)
        return np.array([landmark_distance(p - before, truth - earlier) for (p, truth), (before, earlier) in pairs])

    def identity_drift(self) -> npt.NDArray[np.float64]:
        """1 - cosine of the embeddings of neighbouring frames: VIDD, identity over time without a truth.

        Of the benchmark of Chen et al. 2024 (arXiv 2404.19500), by SVFR (arXiv 2501.01235) on ArcFace.
        """
        pairs = (
            (self.embeddings[n][0], self.embeddings[n - 1][0]) for n in self.embeddings if n - 1 in self.embeddings
        )
        return np.array([1.0 - float(now @ before) for now, before in pairs])


def summary(traces: Sequence[FaceTrace]) -> dict[str, float]:
    """Means over all frames of all tracks, and of the standard deviation over each track's frames (sigma-IDS, sigma-AKD).

    A figure without any frame to take it from is left out.
    """
    values = {
        "AKD": _joined([t.keypoint_distance() for t in traces]),
        "sigma-AKD": _spreads([t.keypoint_distance() for t in traces]),
        "TLME": _joined([t.landmark_motion() for t in traces]),
        "sigma-IDS": _spreads([t.similarity() for t in traces]),
        "VIDD": _joined([t.identity_drift() for t in traces]),
    }
    return {name: float(v.mean()) for name, v in values.items() if len(v)}


def _joined(parts: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts])


def _spreads(parts: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return np.array([part.std() for part in parts if len(part) > 1])
