"""Perceptual distance (LPIPS v0.1) and the strength of the patterns that pixel shuffling leaves.

LPIPS runs over AlexNet and VGG16 features, from weight files that the user brings.
"""

from __future__ import annotations

import math
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.files import check_file

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# (index in torchvision's `features`, stride, padding); a pool comes before the layers named in _POOLED; taps after the
# ReLU of _TAPS
_ALEX = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
_VGG = dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1))
_POOLED = {"alex": {3, 6}, "vgg": {5, 10, 17, 24}}
_TAPS = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}


class Lpips(nn.Module):
    """LPIPS v0.1 between images in [-1, 1]: (B, 3, H, W) x 2 -> (B,).

    The file is a state dict with `features.N.weight`, `features.N.bias` (torchvision's numbering) and
    `linN.model.1.weight`; which of the two nets it is shows in the first kernel. Frozen; runs in `dtype`, distances are
    summed up in float32.
    """

    def __init__(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        check_file(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            kernel = state["features.0.weight"].shape[-1]
        except (OSError, RuntimeError, KeyError, AttributeError, pickle.UnpicklingError, EOFError) as error:
            raise ModelError(f"{path} is not an LPIPS weight file (features.N and linN.model.1 tensors)") from error
        self.kind = "alex" if kernel == 11 else "vgg"
        self.dtype = dtype
        self._layers = _ALEX if self.kind == "alex" else _VGG
        for i in self._layers:
            for part in ("weight", "bias"):
                value = state[f"features.{i}.{part}"].to(dtype)
                value = value.contiguous(memory_format=torch.channels_last) if part == "weight" else value
                self.register_buffer(f"{part}{i}", value, persistent=False)
        for k in range(5):
            self.register_buffer(f"lin{k}", state[f"lin{k}.model.1.weight"].float().flatten(), persistent=False)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def features(self, image: Tensor) -> list[Tensor]:
        """The five tapped feature maps."""
        x = ((image.float() - self.shift) / self.scale).to(self.dtype).contiguous(memory_format=torch.channels_last)
        taps = []
        for i, (stride, padding) in self._layers.items():
            if i in _POOLED[self.kind]:
                x = F.max_pool2d(x, 3, 2) if self.kind == "alex" else F.max_pool2d(x, 2)
            x = F.relu_(F.conv2d(x, getattr(self, f"weight{i}"), getattr(self, f"bias{i}"), stride, padding))
            if i in _TAPS[self.kind]:
                taps.append(x)
        return taps

    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        """Distance per pair; gradients flow into `image` only."""
        with torch.no_grad():
            wanted = self.features(truth)
        total = image.new_zeros(image.shape[0], dtype=torch.float32)
        for k, (a, b) in enumerate(zip(self.features(image), wanted, strict=True)):
            total = total + _TapDistance.apply(a, b, getattr(self, f"lin{k}"))  # type: ignore[no-untyped-call]
        return total


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(1e-5)
    return x / norm, norm


class _TapDistance(torch.autograd.Function):
    """Weighted squared distance of unit feature vectors, (B, C, H, W) x 2 -> (B,).

    Autograd's own graph of these few lines took half of a training step on a CPU: it is memory traffic, so it is
    written out.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, lin: Tensor) -> Tensor:
        unit, norm = _unit(a)
        difference = unit - _unit(b)[0]
        weighted = difference * lin.to(a.dtype).view(1, -1, 1, 1)
        ctx.save_for_backward(unit, weighted, norm)
        return difference.mul_(weighted).sum((1, 2, 3), dtype=torch.float32) / a[0, 0].numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, weighted, norm = ctx.saved_tensors
        along = (unit * weighted).sum(1, keepdim=True)
        gain = (grads[0].view(-1, 1, 1, 1) * (2 / unit[0, 0].numel())).to(unit.dtype) / norm
        return torch.addcmul(weighted, unit, along, value=-1).mul_(gain), None, None


def grid_amplitude(image: Tensor, truth: Tensor) -> Tensor:
    """Strength of the 2- and 4-pixel pattern in image - truth: (B, C, H, W) x 2 -> (B,), in units of the images.

    The residual in overlapping windows of 64 pixels (of the whole side in smaller images) is projected on the waves of
    period 2 and 4 along either axis and both; the root of their energy is averaged over windows and channels. Detail
    has no fixed phase and averages out within a window; a lasting pattern does not. The root, not the energy: what
    shows are faint patterns in flat skin, and their squares have no gradient worth having.
    """
    side = min(64, *(s - s % 4 for s in image.shape[-2:]))
    residual = (image.float() - truth.float()).flatten(0, 1)[:, None]
    waves = F.conv2d(residual, _waves(side, residual.device), stride=max(1, side // 2))
    energy = waves.square().sum(1)
    return (energy + 1e-8).sqrt().mean((1, 2)).view(image.shape[:2]).mean(1)


@lru_cache(maxsize=4)
def _waves(side: int, device: torch.device) -> Tensor:
    """(15, 1, side, side): what a residual is weighted with to give the amplitude of each wave, Hann-windowed."""
    # without the window's soft ends slow drifts of the residual would leak into every wave
    n = torch.arange(side, dtype=torch.float64)
    window = torch.sin(math.pi * (n + 0.5) / side) ** 2
    quarter = n * (math.pi / 2)
    root = math.sqrt(2.0)
    line = torch.stack((torch.ones_like(n), torch.cos(2 * quarter), root * quarter.cos(), root * quarter.sin()))
    line = line * (window / window.sum())
    planes = line[:, None, :, None] * line[None, :, None, :]
    return planes.flatten(0, 1)[1:, None].float().to(device)  # without the constant
