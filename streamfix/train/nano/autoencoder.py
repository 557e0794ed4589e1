"""Stage 1: the autoencoder, shaped as TAESD (https://github.com/madebyollin/taesd) and a tenth as wide.

Loss: L1 + LPIPS on the decoded windows, and a pull of every latent channel to mean 0 and deviation 1, which is what the
consistency model's noise is scaled for. The decoder gets latents with a little noise, because what it will be given are
predictions. Windows first, whole faces last: the network is convolutions alone, and more faces a second teach more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.errors import UsageError
from streamfix.train.data import SmallFaces
from streamfix.train.learner import SmallLearner, train_small
from streamfix.train.loop import Report, RunConfig
from streamfix.train.losses import Lpips
from streamfix.train.nano import release

SMALLEST = 64
"""Side of the smallest window that LPIPS can look at wherever it is cut."""
LIMIT = 3.0
"""TAESD's decoder squeezes latents into this range (a soft clamp), so they have to fit it."""


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
class AutoencoderConfig(RunConfig):
    """A run of stage 1.

    face: side of a face in pixels, a multiple of 32. window: of the windows that the run begins with, until the share
    `whole` is done. lpips: LPIPS weight file. l1, perceptual, moments: weights of the terms. noise: deviation of what
    is added to the latents, whose own is 1.
    """

    face: int = 256
    window: int = 128
    whole: float = 0.75
    lpips: Path
    l1: float = 1.0
    perceptual: float = 0.5
    moments: float = 0.02
    noise: float = 0.05
    network: dict[str, Any] = field(default_factory=lambda: tiny_config(32, (0, 0, 3, 4), (4, 3, 1, 0)))


class AutoencoderLearner(SmallLearner):
    """See the module."""

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
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

    def weights(self) -> dict[str, float]:
        """See SmallLearner."""
        c = self.config
        return {"l1": c.l1, "lpips": c.perceptual, "moments": c.moments}

    def terms(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See SmallLearner."""
        truth = batch["clean"].contiguous(memory_format=torch.channels_last)
        latent = self.vae.encoder(truth)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        output = self.vae.decoder(latent + self.config.noise * noise)
        deviation, mean = torch.std_mean(latent, dim=(0, 2, 3))
        beyond = F.relu(latent.abs() - LIMIT).mean()
        y, x = (int(v) for v in torch.randint(0, 8, (2,), generator=generator))  # no fixed phase for LPIPS' strides
        return {
            "l1": F.l1_loss(output, truth),
            "lpips": self.lpips(output[..., y:, x:], truth[..., y:, x:]).mean(),
            "moments": mean.square().mean() + (deviation - 1).square().mean() + beyond,
        }

    def export(self) -> Path:
        """The autoencoder in the folder of the release."""
        folder = self.config.run / release.FOLDER
        release.write_vae(folder, self.config.network, self.averaged("vae"))
        return folder


def train_autoencoder(config: AutoencoderConfig, *, report: Report | None = None) -> Path:
    """Train stage 1, or go on with it; returns the folder of the release, with its autoencoder."""
    faces = SmallFaces(config.data, seed=config.seed, face=config.face)
    return train_small(AutoencoderLearner(config), faces, report)
