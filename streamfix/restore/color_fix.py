"""What a restorer may not change: the colour of a picture that has none."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Shares of R, G and B in brightness (BT.601)."""
_GREY, _COLOURED = 30.0, 60.0
"""Mean square of the colour differences that brightness does not explain, in (1/255)^2. Measured on aligned faces: black and white
photos lie at 0..5, sepia and scratched ones at 15..60, colour photos from 150 up."""


def keep_grey(restored: Tensor, crops: Tensor) -> Tensor:
    """Grey and toned crops keep their tone: the restorer's change is taken over in brightness alone.

    restored, crops: (B, 3, H, W), RGB in [-1, 1]. A crop counts as grey when R-G, G-B and B-R are (up to noise) a linear function of
    its luma, which holds for sepia too; between clearly grey and clearly coloured the answer goes over smoothly, so that nothing pops.
    After the rule of the published model (INTERLCM: variance of R-G, G-B, B-R of at most 10), which knows neutral grey only.
    """
    pixels = crops[:, :, ::4, ::4].flatten(2) * 127.5  # a sixteenth of the pixels tells as much
    weights = pixels.new_tensor(LUMA)
    luma = torch.einsum("bcn,c->bn", pixels, weights)[:, None]
    differences = pixels - pixels.roll(-1, dims=1)
    luma, differences = (v - v.mean(-1, keepdim=True) for v in (luma, differences))
    slope = (differences * luma).sum(-1, keepdim=True) / luma.square().sum(-1, keepdim=True).clamp_min(1e-6)
    unexplained = (differences - slope * luma).square().mean((1, 2))
    share = ((_COLOURED - unexplained) / (_COLOURED - _GREY)).clamp(0, 1).view(-1, 1, 1, 1)
    if not bool(share.any()):
        return restored
    change = torch.einsum("bchw,c->bhw", restored - crops, weights)[:, None]
    return torch.lerp(restored, (crops + change).clamp(-1, 1), share)
