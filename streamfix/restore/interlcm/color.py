"""The colour rules of the published model: wavelet and AdaIN against the degraded face, and greyness."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.errors import UsageError

COLOR_FIXES = ("wavelet", "adain", "none")
_LEVELS = 5
GREY_LIMIT = 10.0
"""Mean variance of R-G, G-B and B-R, in (1/255)^2, up to which a picture counts as grey."""


def fix_colors(restored: Tensor, lq: Tensor, how: str | None) -> Tensor:
    """The restored faces in the colours of the degraded ones. how: "wavelet", "adain", or "none".

    restored, lq: (B, 3, H, W), same range; nothing is clamped.
    """
    if how in (None, "none"):
        return restored
    if how == "wavelet":
        return (restored - low_frequencies(restored)) + low_frequencies(lq)
    if how == "adain":
        return match_statistics(restored, lq)
    raise UsageError(f"there is no colour fix called {how!r}; choose one of {', '.join(COLOR_FIXES)}")


def low_frequencies(picture: Tensor) -> Tensor:
    """What five levels of an undecimated wavelet leave: a 3x3 binomial blur with taps 1, 2, 4, 8 and 16 pixels apart.

    Written as sums of shifted rows and columns: dilated convolutions of single channels are slow on CPUs.
    """
    height, width = picture.shape[-2:]
    for level in range(_LEVELS):
        gap = 2**level
        padded = F.pad(picture, (gap,) * 4, mode="replicate")
        rows = padded[..., :height, :] + 2 * padded[..., gap : gap + height, :] + padded[..., 2 * gap :, :]
        picture = (rows[..., :width] + 2 * rows[..., gap : gap + width] + rows[..., 2 * gap :]) / 16
    return picture


def match_statistics(picture: Tensor, like: Tensor) -> Tensor:
    """Mean and standard deviation of every channel of every picture made those of `like` (AdaIN)."""
    variance, mean = torch.var_mean(picture, dim=(2, 3), keepdim=True)
    wanted_variance, wanted_mean = torch.var_mean(like, dim=(2, 3), keepdim=True)
    return (picture - mean) / (variance + 1e-5).sqrt() * (wanted_variance + 1e-5).sqrt() + wanted_mean


def is_grey(faces: Tensor) -> Tensor:
    """Which faces (B, 3, H, W) in [-1, 1] have no colour, by the published rule: bool (B,)."""
    levels = faces.float() * 127.5
    differences = levels - levels.roll(-1, dims=1)  # R-G, G-B, B-R
    return differences.var(dim=(2, 3), correction=0).mean(dim=1) <= GREY_LIMIT


def keep_published_grey(restored: Tensor, lq: Tensor) -> Tensor:
    """Faces whose input is grey become grey, with the mean and contrast of their input; others stay as they are.

    restored, lq: (B, 3, H, W), RGB in [-1, 1].
    """
    grey = is_grey(lq)
    if not bool(grey.any()):
        return restored
    weights = restored.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    toneless = (restored * weights).sum(1, keepdim=True).expand_as(restored)
    return torch.where(grey.view(-1, 1, 1, 1), match_statistics(toneless, lq).clamp(-1, 1), restored)
