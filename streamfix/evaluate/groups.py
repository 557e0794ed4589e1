"""Whether groups of faces fare alike, and how far they would lie apart by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FEWEST = 5
"""Faces that a group must have to count as the best or the worst: fewer say more about chance than about the group."""
_SHUFFLES = 5000

Figures = npt.NDArray[np.float64]


def worst_to_best(
    before: Sequence[float], after: Sequence[float], sizes: Sequence[int]
) -> tuple[Figures, Figures, Figures]:
    """The largest mean of a group over the smallest, for the input, the restored faces, and restored over input.

    before, after: a positive score of every face, group by group. sizes: faces of each group. Gives three arrays of three: the
    ratios; their medians when the same faces are shuffled among the groups; and p, the share of shuffles in which groups lie as
    far apart or further (a permutation test). The shuffles are the same each time.
    """
    scores = np.stack([before, after]).astype(np.float64)
    rng = np.random.default_rng(0)
    found = _spread(scores, sizes)
    chance = np.stack([_spread(rng.permutation(scores, axis=1), sizes) for _ in range(_SHUFFLES)])
    as_far = (chance >= found - 1e-9).sum(axis=0)
    return found, np.median(chance, axis=0), (as_far + 1) / (_SHUFFLES + 1)


def _spread(scores: Figures, sizes: Sequence[int]) -> Figures:
    """Largest over smallest mean of scores (2, faces), and of their ratio."""
    sums = np.add.reduceat(scores, np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=1)
    figures = np.stack([*(sums / np.asarray(sizes)), sums[1] / sums[0]])
    spread: Figures = figures.max(axis=1) / figures.min(axis=1)
    return spread
