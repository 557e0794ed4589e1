"""The published degradations on whole batches, on the device that trains: each picture by its own random choices.

The same as degradations.published to within what a JPEG codec in floating point changes. Images are float32
(B, 3, S, S), RGB in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.train.codecs import Rng
from streamfix.train.degradations import KERNEL, Recipe

# from RGB: luma, and both differences of colour; and back (JFIF)
YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
# quantisation at quality 50, in rows (ITU-T T.81, annex K)
_BRIGHT = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


def published(recipes: Sequence[Recipe], x: Tensor, rng: Rng, noise: torch.Generator) -> Tensor:
    """Blur, bilinear downscale, noise, JPEG, bilinear back up, each picture by its own recipe: (B, 3, S, S) in [0, 1].

    As degradations.published; noise: on the device of x.
    """

    def uniform(ranges: Sequence[tuple[float, float]]) -> npt.NDArray[np.float64]:
        low, high = np.array(ranges).T
        return np.asarray(rng.uniform(low, high))

    sigmas = np.stack([uniform([r.sigma for r in recipes]) for _ in range(2)], -1)
    angles = rng.uniform(-math.pi, math.pi, len(recipes))
    sigmas[:, 1] = np.where(rng.random(len(recipes)) < 0.5, sigmas[:, 0], sigmas[:, 1])
    scale = uniform([r.scale for r in recipes])
    strength = uniform([r.noise for r in recipes]).astype(np.float32) / 255
    quality = np.array([rng.integers(r.jpeg[0], r.jpeg[1] + 1) for r in recipes])
    small = torch.from_numpy(np.maximum(2, (x.shape[-1] / scale).astype(np.int64))).to(x.device)
    whole = torch.full_like(small, x.shape[-1])
    x = resized(blurred(x, sigmas, angles), whole, small)
    grain = torch.randn(x.shape, generator=noise, device=x.device)
    x = (x + grain * torch.from_numpy(strength).to(x.device).view(-1, 1, 1, 1)).clamp_(0, 1)
    return resized(jpeg(x, small, quality), small, whole).clamp_(0, 1)


def blurred(x: Tensor, sigmas: npt.NDArray[np.float64], angles: npt.NDArray[np.float64]) -> Tensor:
    """Each picture through its own 41-tap Gaussian; sigmas (B, 2) along axes turned by angles (B,)."""
    c, s = np.cos(angles), np.sin(angles)
    turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    inverse = turn @ (turn.transpose(0, 2, 1) * (sigmas**-2.0)[..., None])
    axis = np.arange(KERNEL) - KERNEL // 2
    u, v = np.meshgrid(axis, axis)
    xx, xy, yy = (inverse[:, i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    weight = np.exp(-0.5 * (xx * u * u + 2 * xy * u * v + yy * v * v))
    taps = torch.from_numpy((weight / weight.sum((1, 2), keepdims=True)).astype(np.float32)).to(x.device)
    reach, side = KERNEL // 2, x.shape[-1]
    size = -(-(side + 2 * reach) // 64) * 64  # a length that FFTs like; what wraps around lies outside of what is kept
    spectrum = torch.fft.rfft2(F.pad(x, (reach,) * 4, "reflect"), s=(size, size))
    spectrum *= torch.fft.rfft2(taps, s=(size, size))[:, None]
    full: Tensor = torch.fft.irfft2(spectrum, s=(size, size))
    return full[..., 2 * reach : 2 * reach + side, 2 * reach : 2 * reach + side]


def resized(x: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Bilinear from before x before to after x after pixels, both (B,) and in the top left corner of (B, C, S, S)."""
    line = torch.arange(x.shape[-1], device=x.device)[None] + 0.5
    at = (line * (before / after)[:, None] - 0.5).clamp(min=0).minimum((before - 1)[:, None]).float()
    at = at * (2 / (x.shape[-1] - 1)) - 1
    grid = torch.stack((at[:, None, :].expand(-1, x.shape[-1], -1), at[:, :, None].expand(-1, -1, x.shape[-1])), -1)
    return F.grid_sample(x, grid, "bilinear", "border", align_corners=True)


def jpeg(x: Tensor, side: Tensor, quality: npt.NDArray[np.int64]) -> Tensor:
    """One JPEG round trip (4:2:0) of the top left side x side pixels of each of (B, 3, S, S) in [0, 1], at its own quality.

    side, quality: (B,), quality from 1 to 100. S divides by 16; what comes back beyond `side` means nothing. Rounds about
    where libjpeg does, whose integer transforms are less exact.
    """
    pixels = (_extended(x, side) * 255 + 0.5).floor_().clamp_(0, 255)
    ycc = torch.einsum("ij,bjhw->bihw", x.new_tensor(YCC), pixels).round_()
    bright = _coded(ycc[:, :1] - 128, _table(_BRIGHT, quality, x)).add_(128).round_().clamp_(0, 255)
    colour = _coded(F.avg_pool2d(ycc[:, 1:], 2).round_(), _table(_COLOUR, quality, x)).round_().clamp_(-128, 127)
    colour = F.interpolate(_extended(colour, (side + 1) // 2), scale_factor=2.0, mode="bilinear")
    decoded = torch.cat((bright, colour.round_()), 1)
    return torch.einsum("ij,bjhw->bihw", x.new_tensor(_RGB), decoded).round_().clamp_(0, 255).div_(255)


def _extended(x: Tensor, side: Tensor) -> Tensor:
    # the last row and column repeated to the end, as codecs pad
    line = torch.arange(x.shape[-1], device=x.device)[None].minimum((side - 1)[:, None])
    x = x.gather(3, line[:, None, None, :].expand(-1, x.shape[1], x.shape[2], -1))
    return x.gather(2, line[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _table(base: Sequence[Sequence[int]], quality: npt.NDArray[np.int64], like: Tensor) -> Tensor:
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None]
    return like.new_tensor(np.clip((np.array(base) * scale + 50) // 100, 1, 255))


def _coded(x: Tensor, table: Tensor) -> Tensor:
    """(B, C, H, W) after quantising the cosine transforms of its 8x8 blocks by table (B, 8, 8)."""
    n = torch.arange(8, device=x.device, dtype=torch.float32)
    cosine = torch.cos((2 * n + 1) * n[:, None] * (math.pi / 16)) / 2
    cosine[0] /= math.sqrt(2)
    b, c, h, w = x.shape
    blocks = x.view(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    steps = table.view(b, 1, 1, 1, 8, 8)
    levels = (cosine @ blocks @ cosine.T).div_(steps).round_().mul_(steps)
    return (cosine.T @ levels @ cosine).transpose(3, 4).reshape(b, c, h, w)
