"""The visual encoder: CLIP's tokens of the degraded face become the text embedding that the UNet expects."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (256, 512, 768)
"""Widths that the feature axis takes in turn: 768 -> 256 -> 512 -> 768."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Resize(nn.Module):
    """Nearest interpolation of the feature axis to the next width of the cycle, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, W) -> (B, C, next W)."""
        width = _WIDTHS[(_WIDTHS.index(x.shape[-1]) + 1) % len(_WIDTHS)]
        resized: Tensor = self.conv(F.interpolate(x, size=width, mode="nearest"))
        return resized


class Res(nn.Module):
    """Two normalised convolutions with a skip, projected where the number of channels changes."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv1d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv1d(out, out, 3, padding=1)
        self.conv_out = nn.Conv1d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, W) -> (B, out, W)."""
        h = self.conv1(_swish(self.norm1(x)))
        h = self.conv2(_swish(self.norm2(h)))
        skip = x if self.conv_out is None else self.conv_out(x)
        return skip + h  # type: ignore[no-any-return]


class Attn(nn.Module):
    """Self-attention with one head along the feature axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, W) -> (B, C, W)."""
        h = self.norm(x)
        q, k, v = (layer(h).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # its scale is 1 / sqrt(channels)
        return x + self.proj_out(h.transpose(1, 2))  # type: ignore[no-any-return]


class VisualEncoder(nn.Module):
    """Tokens (B, 197, 768) of CLIP ViT-B/16 -> (B, 77, 768) in place of the text embedding; 12.96 M parameters.

    The tokens are the channels of 1-D convolutions over the feature axis.
    """

    def __init__(self) -> None:
        super().__init__()
        tokens, prompt, top = 197, 77, 512
        blocks: list[nn.Module] = [nn.Conv1d(tokens, top, 3, padding=1), Resize(top), Res(top, top), Attn(top)]
        blocks.append(Res(top, top))
        for before, after in pairwise((top, 512, 256, 128)):
            for channels in (before, after):
                blocks.append(Res(channels, after))
                if after == top:
                    blocks.append(Attn(after))
            if after != 128:
                blocks.append(Resize(after))
        self.blocks = nn.ModuleList([*blocks, _norm(128), nn.Conv1d(128, prompt, 3, padding=1)])

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
