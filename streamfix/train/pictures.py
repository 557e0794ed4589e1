"""What trainings of small autoencoders share: windows first and whole faces then, L1 and LPIPS on what is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.errors import UsageError
from streamfix.train.learner import SmallLearner
from streamfix.train.loop import RunConfig
from streamfix.train.losses import Lpips

SMALLEST = 64
"""Side of the smallest window that LPIPS can look at wherever it is cut."""


def tiny_config(width: int, encoder: tuple[int, ...], decoder: tuple[int, ...], channels: int = 4) -> dict[str, Any]:
    """AutoencoderTiny's arguments: one width throughout, blocks from the picture's size down, or from the latent's up."""
    return {
        "encoder_block_out_channels": [width] * len(encoder),
        "decoder_block_out_channels": [width] * len(decoder),
        "num_encoder_blocks": list(encoder),
        "num_decoder_blocks": list(decoder),
        "latent_channels": channels,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureConfig(RunConfig):
    """A run on windows of faces.

    face: side of a face in pixels, a multiple of 32. window: of the windows that the run begins with, until the share
    `whole` is done; the networks are convolutions alone, and more faces a second teach more. lpips: LPIPS weight file. l1,
    perceptual: weights of the terms. network: arguments of AutoencoderTiny.
    """

    lpips: Path
    face: int = 256
    window: int = 128
    whole: float = 0.75
    l1: float = 1.0
    perceptual: float = 0.5
    network: dict[str, Any] = field(default_factory=lambda: tiny_config(32, (0, 0, 3, 4), (4, 3, 1, 0)))


class PictureLearner(SmallLearner):
    """A learner with one AutoencoderTiny, `vae`."""

    config: PictureConfig

    def __init__(self, config: PictureConfig) -> None:
        import diffusers

        if config.face % 32 or config.window % 32 or not SMALLEST <= config.window <= config.face:
            raise UsageError(
                f"faces and windows have sides that are multiples of 32, windows from {SMALLEST} to a whole face"
            )
        torch.manual_seed(config.seed)
        kind: Any = diffusers.AutoencoderTiny
        self.vae = kind(**config.network).to(memory_format=torch.channels_last)
        super().__init__(config, {"vae": self.vae})
        self.lpips = Lpips(config.lpips).to(self.device)

    def plan(self, step: int) -> tuple[int, int]:
        """Windows first; then whole faces, as many as have the same pixels."""
        c = self.config
        if self.progress(step) < c.whole:
            return c.window, c.batch
        count = round(c.batch * (c.window / c.face) ** 2 / self.ranks.count)
        return c.face, max(1, count) * self.ranks.count

    def distance(self, output: Tensor, truth: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`l1` and `lpips` between pictures (B, 3, H, W) in [-1, 1]."""
        y, x = (int(v) for v in torch.randint(0, 8, (2,), generator=generator))  # no fixed phase for LPIPS' strides
        return {
            "l1": F.l1_loss(output, truth),
            "lpips": self.lpips(output[..., y:, x:], truth[..., y:, x:]).mean(),
        }
