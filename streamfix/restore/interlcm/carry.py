"""Detail carried from frame to frame: the prediction before the last step leans on that of the frame before.

Crops are registered by alignment, so a latent pixel stays on its part of the face. Only the high frequencies are mixed,
and only where the input itself has hardly changed: a mouth that opens is the current frame's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SAME = (0.04, 0.16)
"""Mean change of the input around a latent pixel, in [-1, 1], up to which detail is carried in full, and from which not."""
_COARSE = 4


@dataclass(slots=True)
class Carry:
    """Mixes one batch.

    share: of the detail that comes from before, 0..1. seen: (B, 3, h, w), the inputs at the size of the latents.
    before: for each face the prediction and the input of the frame before, (C + 3, h, w), or None.
    """

    share: float
    seen: Tensor
    before: Sequence[Tensor | None]
    mixed: Tensor | None = None

    def __call__(self, prediction: Tensor) -> Tensor:
        """What the last step begins from: (B, C, h, w) in and out; kept for `states`."""
        rows = []
        for now, seen, old in zip(prediction, self.seen, self.before, strict=True):
            rows.append(
                now if old is None else now + self._gate(seen, old[-3:].to(now)) * _detail(old[:-3].to(now) - now)
            )
        # in the layout of the prediction, so that a face with nothing before it comes out as without this
        self.mixed = torch.empty_like(prediction).copy_(torch.stack(rows))
        return self.mixed

    def states(self) -> list[Tensor]:
        """What the next frame is given as `before`."""
        assert self.mixed is not None
        return list(torch.cat((self.mixed, self.seen), dim=1))

    def _gate(self, seen: Tensor, before: Tensor) -> Tensor:
        change = F.avg_pool2d((seen - before).abs().amax(0)[None, None], 3, 1, 1)[0]
        t = ((SAME[1] - change) / (SAME[1] - SAME[0])).clamp(0, 1)
        return self.share * t * t * (3 - 2 * t)


def at_latent_size(crops: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, H, W) averaged down to (B, 3, height, width)."""
    return F.interpolate(crops, (height, width), mode="area")


def _detail(latent: Tensor) -> Tensor:
    coarse = F.avg_pool2d(latent[None], _COARSE, ceil_mode=True, count_include_pad=False)
    return latent - F.interpolate(coarse, latent.shape[1:], mode="bilinear", align_corners=False)[0]
