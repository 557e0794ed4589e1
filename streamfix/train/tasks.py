"""What an encoder learns from: pairs of a degraded and a clean face, for restoration, colourisation and inpainting."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamfix.restore.interlcm.restorer import resized
from streamfix.train.codecs import Rng
from streamfix.train.data import FacePairs, Item
from streamfix.train.interlcm_config import InterLCMConfig
from streamfix.types import CROP_SIZE

_LUMA = (0.299, 0.587, 0.114)


class TaskPairs(FacePairs):
    """Item (i, size, _): pair i of this seed at size x size: `clean` and `degraded`, float32 (3, size, size) in [-1, 1]."""

    def __init__(self, config: InterLCMConfig) -> None:
        faces = config.faces
        super().__init__(config.data, seed=config.seed, mixture=faces.mixture, augmentation=faces.augmentation)
        self.task, self.fit = faces.task, faces.fit

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        """See the class."""
        index, size, *_ = item
        side = size if self.fit == "window" else CROP_SIZE
        pair = super().__getitem__(Item(index, side))
        clean, degraded = (resized(pair[name], size)[0].clamp(-1, 1) for name in ("clean", "degraded"))
        if self.task == "colorize":
            degraded = grey(degraded)
        elif self.task == "inpaint":
            painted = strokes(size, np.random.default_rng([self.seed, index, 1]))
            degraded = torch.where(torch.from_numpy(painted), torch.ones(()), degraded)
        return {"clean": clean, "degraded": degraded}


def grey(face: Tensor) -> Tensor:
    """Luma in all three channels of (3, H, W)."""
    luma = (face * face.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    return luma.expand(3, -1, -1).contiguous()


def strokes(size: int, rng: Rng) -> npt.NDArray[np.bool_]:
    """Mask (size, size) of one to four wide strokes of a brush that wanders over a face."""
    mask = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(1, 5))):
        width = max(1, round(size * rng.uniform(0.02, 0.09)))
        at, heading = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, 2 * math.pi)
        for _ in range(int(rng.integers(4, 13))):
            heading += rng.normal(0, 0.9)
            step = rng.uniform(0.05, 0.2) * size
            to = np.clip(at + step * np.array([math.cos(heading), math.sin(heading)]), 0, size - 1)
            ends = [(int(x), int(y)) for x, y in (at.round(), to.round())]
            cv2.line(mask, ends[0], ends[1], 1, width)
            at = to
    return mask.astype(bool)
