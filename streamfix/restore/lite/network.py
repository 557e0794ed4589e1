"""The embedded network: a residual U-Net on aligned 512x512 faces that knows where in the face it looks.

Four decisions carry it:

* the input is unshuffled by 4, so that the first convolutions are dense matrix products on a 128x128 grid;
* no normalisation layer, so that a face never depends on its neighbours in a batch nor on the contrast of its
background;
* position: faces are aligned, so the 32x32 level is told where each cell lies in the FFHQ template;
* the head climbs back through 256 to real convolutions at 512, because a bare pixel shuffle leaves its grid in skin.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamfix.types import CROP_SIZE

_FREQUENCIES = (1, 2, 4, 8)
_SLOPE = 0.1
_MOST = 0.87
"""Share of the answer before that the memory's gate lets through at most: what was invented from a worse frame fades."""
_ALIKE, _UNLIKE = 0.12, 0.3
"""Difference of 8x8 patches in [-1, 1] up to which the memory's gate is free, and from which it is shut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteConfig:
    """Shape of the network; it travels in the metadata of the weight file.

    widths: channels at strides 4, 8, 16 and 32. encoder, decoder: residual blocks at strides 4, 8, 16. middle: at
    stride 32. head: channels at strides 2 and 1. detail: residual blocks at stride 2. memory: channels of the gate that
    lets detail of the frame before through; 0 for a network that does not look back.
    """

    widths: tuple[int, int, int, int] = (64, 112, 224, 256)
    encoder: tuple[int, int, int] = (1, 2, 2)
    middle: int = 3
    decoder: tuple[int, int, int] = (1, 2, 2)
    head: tuple[int, int] = (32, 8)
    detail: int = 0
    memory: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LiteConfig:
        """The inverse of to_dict, also after JSON has turned tuples into lists."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        known.pop("in_channels", None)  # of files from before the memory; it was always 3
        return cls(**known)


class Conv(nn.Conv2d):
    """A convolution that keeps the size (or divides it by `stride`), then leaky ReLU where it is `active`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, active: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, 0 if stride > 1 else kernel // 2)
        self._active = active
        self._packed: tuple[Tensor, Tensor] | None = None  # weights and offsets
        nn.init.kaiming_normal_(self.weight, a=1.0 if stride > 1 else _SLOPE)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight.mul_(gain)

    def pack(self) -> None:
        """Lay the weights out as the CPU's kernels want them, for good: inference alone, of this device and dtype.

        Raises RuntimeError or AttributeError where this CPU or this torch does not have it.
        """
        assert not isinstance(self.padding, str)
        self._how = list(self.padding), list(self.stride), list(self.dilation), self.groups
        fused = torch.ops.mkldnn._convolution_pointwise  # what torch.compile calls; not public
        self._fused, self._fused_sum = fused.default, fused.binary
        assert self.bias is not None
        weight, offset = self._laid_out(self.weight.detach()), self._laid_out(self.bias.detach())
        self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *self._how), offset

    def _laid_out(self, rows: Tensor) -> Tensor:
        """Weights or offsets, (outputs, ...), in the order in which packed ones give their channels."""
        return rows

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride); `plus` is added to the sum, before the activation."""
        after = ("leaky_relu", [_SLOPE]) if self._active else (None, [])
        if self._packed is not None and plus is not None:
            return self._fused_sum(x, plus, *self._packed, *self._how, "add", 1.0, *after, None)  # type: ignore[no-any-return]
        if self._packed is not None:
            return self._fused(x, *self._packed, *self._how, after[0] or "none", after[1], "")  # type: ignore[no-any-return]
        y = super().forward(x)
        if plus is not None:
            y = y.add_(plus)
        return F.leaky_relu(y, _SLOPE, inplace=True) if self._active else y


class SubpixelConv(Conv):
    """A convolution and a pixel shuffle to twice the grid (ESPCN). Its four phases start equal (ICNR), so without a pattern."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs * 4, active=True)
        with torch.no_grad():
            self.weight.copy_(self.weight[::4].repeat_interleave(4, dim=0))

    def _laid_out(self, rows: Tensor) -> Tensor:
        # packed, the phases come before the channels: then the shuffle moves runs of channels, five times as fast
        return rows.view(-1, 4, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, 2H, 2W), with the channels of `beside` (B, C, 2H, 2W) after them."""
        y = super().forward(x)
        if self._packed is None:
            y = F.pixel_shuffle(y, 2)
            return y if beside is None else torch.cat((y, beside), dim=1)
        b, channels, h, w = y.shape
        more = 0 if beside is None else beside.shape[1]
        out = y.new_empty(b, 2 * h, 2 * w, channels // 4 + more)
        own, others = out.tensor_split([channels // 4], dim=-1)
        own.view(b, h, 2, w, 2, -1).copy_(y.permute(0, 2, 3, 1).view(b, h, w, 2, 2, -1).transpose(2, 3))
        if beside is not None:
            others.copy_(beside.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class Block(nn.Module):
    """x + conv(act(conv(x))), all at one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv(width, width, active=True)
        self.second = Conv(width, width, gain=0.1)  # starts near the identity: no norm is needed

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.second(self.first(x), plus=x)  # type: ignore[no-any-return]


class LiteNet(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, 3, H, W), restored; H and W are multiples of 32."""

    def __init__(self, config: LiteConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LiteConfig()
        w0, w1, w2, w3 = c.widths
        half, full = c.head
        self.stem = Conv(48, w0, active=True)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(Block(w) for _ in range(n))) for w, n in zip(c.widths[:3], c.encoder, strict=True)
        )
        self.down = nn.ModuleList(_Down(a, b) for a, b in ((w0, w1), (w1, w2), (w2, w3)))
        self.place = nn.Sequential(nn.Linear(2 + 4 * len(_FREQUENCIES), 96), nn.GELU(), nn.Linear(96, w2))
        self.middle = nn.Sequential(*(Block(w3) for _ in range(c.middle)))
        self.up = nn.ModuleList(Conv(b, a, 1) for a, b in ((w0, w1), (w1, w2), (w2, w3)))
        self.decoder = nn.ModuleList(
            nn.Sequential(*(Block(w) for _ in range(n))) for w, n in zip(c.widths[:3], c.decoder, strict=True)
        )
        self.to_half = SubpixelConv(w0, half)
        self.fuse = Conv(half + 12, half, active=True)
        self.detail = nn.Sequential(*(Block(half) for _ in range(c.detail)))
        self.to_full = SubpixelConv(half, full)
        self.out = Conv(full, 3, gain=0.1)
        self.memory = Memory(w0, c.memory) if c.memory else None

    def pack(self) -> bool:
        """Make ready for inference alone, on this CPU and in this dtype (see Conv.pack); False, and as before, where it cannot."""
        try:
            for module in self.modules():
                if isinstance(module, Conv):
                    module.pack()
        except (AttributeError, RuntimeError):  # at the first of them
            return False
        return True

    def position(self, height: int, width: int, origin: Tensor | None = None) -> Tensor:
        """Embedding of where each stride-16 cell lies in the template: float32 (B or 1, C, height/16, width/16).

        origin: (B, 2), y and x in pixels of the input's top left corner within the 512x512 template; None is (0, 0).
        """
        device = next(self.place.parameters()).device
        origin = torch.zeros(1, 2) if origin is None else origin
        start = origin.to(device, torch.float32)  # also where the caller's torch.get_default_dtype() is another
        y = (torch.arange(height // 16, device=device) * 16 + 8)[None] + start[:, :1]
        x = (torch.arange(width // 16, device=device) * 16 + 8)[None] + start[:, 1:]
        grid = (
            torch.stack((y[:, :, None].expand(-1, -1, x.shape[1]), x[:, None, :].expand(-1, y.shape[1], -1)), dim=-1)
            * (2 / CROP_SIZE)
            - 1
        )
        waves = torch.cat([f(grid * (math.pi / 2 * k)) for k in _FREQUENCIES for f in (torch.sin, torch.cos)], dim=-1)
        embedded: Tensor = self.place(torch.cat((grid, waves), dim=-1))
        return embedded.permute(0, 3, 1, 2)

    def forward(
        self,
        x: Tensor,
        previous: Tensor | None = None,
        origin: Tensor | None = None,
        *,
        position: Tensor | None = None,
    ) -> Tensor:
        """Restore; x may be of more precision than the weights, and its own is kept.

        previous: (B, 3, H, W), the restored crops of the frames before; all 0, or None, is none. Ignored by a network
        without memory. origin: see position(). position: the embedding itself where the caller has it at hand
        (inference keeps it).
        """
        if position is None:
            position = self.position(x.shape[-2], x.shape[-1], origin)
        # bfloat16 alone would quantise bright skin to half an 8-bit level
        return x + self.change(x, previous, position)

    def change(self, x: Tensor, previous: Tensor | None, position: Tensor) -> Tensor:
        """What restoring adds to x, in its precision; see forward. Its mean over each picture is 0: a face keeps its colour."""
        inner = x.to(self.stem.weight.dtype)
        y = self.stem(_unshuffle(inner, 4))
        skips = []
        for level, (blocks, down) in enumerate(zip(self.encoder, self.down, strict=True)):
            if level == 2:
                y = y + position.to(y.dtype)
            y = blocks(y)
            skips.append(y)
            y = down(y)
        y = self.middle(y)
        for up, blocks, skip in zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True):
            y = blocks(F.interpolate(up(y), scale_factor=2.0, mode="nearest") + skip)
        features = y
        y = self.fuse(self.to_half(y, beside=_unshuffle(inner, 2)))
        y = self.to_full(self.detail(y))
        residual: Tensor = self.out(y).to(x.dtype)
        if self.memory is not None and previous is not None:
            residual = residual + self.memory(x + residual, x, previous.to(x.dtype), features)
        return residual - residual.mean((2, 3), keepdim=True)


class Memory(nn.Module):
    """Carries detail of the frame before into the answer, where it still belongs there.

    What is carried is the difference to the answer before without its low frequencies, which always come from the frame
    itself. A gate decides how much of it, from what changed in the picture and in the answer: at first the same
    everywhere, then as trained, and never where the answer before looks unlike the frame at the scale of features (a
    cut, a mouth that opens). Averaged so over frames, noise and coding errors fade, and with them flicker.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.first = Conv(features + 96, width, active=True)
        self.block = Block(width)
        self.gate = Conv(width, 1, gain=0.1)

    def forward(self, answer: Tensor, x: Tensor, previous: Tensor, features: Tensor) -> Tensor:
        """What to add to the answer, (B, 3, H, W).

        answer, x, previous: (B, 3, H, W); 0 for a sample whose `previous` is 0 throughout. features: (B, C,
        H/4, W/4).
        """
        change = previous - answer
        seen = torch.cat([_unshuffle(d.to(features.dtype), 4) for d in (change, previous - x)], dim=1)
        y = self.first(torch.cat((features, seen), dim=1))
        gate = _MOST * torch.sigmoid(self.gate(self.block(y))).to(answer.dtype)
        unlike = F.avg_pool2d(previous - x, 8).abs().amax(dim=1, keepdim=True)
        alike = ((_UNLIKE - unlike) / (_UNLIKE - _ALIKE)).clamp(0, 1)
        gate = gate * F.interpolate(alike, scale_factor=2.0, mode="bilinear", align_corners=False)
        gate = F.interpolate(gate, scale_factor=4.0, mode="bilinear", align_corners=False)
        coarse = F.interpolate(F.avg_pool2d(change, 32), scale_factor=32.0, mode="bilinear", align_corners=False)
        there = (previous != 0).flatten(1).any(dim=1).to(answer.dtype).view(-1, 1, 1, 1)
        return there * gate * (change - coarse)


class _Down(nn.Module):
    """Halve the grid: unshuffle by 2, then mix; no pixel is skipped as a strided 3x3 convolution would."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = Conv(inputs, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)  # type: ignore[no-any-return]


def _unshuffle(x: Tensor, factor: int) -> Tensor:
    """pixel_unshuffle as a convolution by ones: the same values in half the time."""
    channels = x.shape[1] * factor**2
    ones = torch.eye(channels, dtype=x.dtype, device=x.device).view(channels, x.shape[1], factor, factor)
    return F.conv2d(x, ones.contiguous(memory_format=torch.channels_last), stride=factor)
