"""The visual encoder: CLIP's tokens of the degraded face become the text embedding that the UNet expects."""

from __future__ import annotations

from itertools import cycle, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 32


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Resize(nn.Module):
    """Nearest interpolation of the feature axis to another width, then a convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, W) -> (B, C, width)."""
        resized: Tensor = self.conv(F.interpolate(x, size=self.width, mode="nearest"))
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

    The tokens are the channels of 1-D convolutions over the feature axis. tokens, width: of the tower; others than the
    published are of small models, whose channels are fewer in proportion to the width.
    """

    def __init__(self, tokens: int = 197, width: int = 768) -> None:
        super().__init__()
        prompt = 77
        channels = [max(_GROUPS, n * width // 768 // _GROUPS * _GROUPS) for n in (512, 512, 256, 128)]
        top, last = channels[0], channels[-1]
        widths = cycle((width // 3, width * 2 // 3, width))  # what the feature axis takes in turn
        blocks: list[nn.Module] = [nn.Conv1d(tokens, top, 3, padding=1), Resize(top, next(widths))]
        blocks += [Res(top, top), Attn(top), Res(top, top)]
        for level, (before, after) in enumerate(pairwise(channels)):
            for inside in (before, after):
                blocks.append(Res(inside, after))
                if level == 0:
                    blocks.append(Attn(after))
            if level < len(channels) - 2:
                blocks.append(Resize(after, next(widths)))
        self.blocks = nn.ModuleList([*blocks, _norm(last), nn.Conv1d(last, prompt, 3, padding=1)])

    @classmethod
    def of(cls, tower: Any) -> VisualEncoder:
        """The one that belongs to an image tower (transformers' CLIPVisionConfig)."""
        return cls(tokens=(tower.image_size // tower.patch_size) ** 2 + 1, width=tower.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
