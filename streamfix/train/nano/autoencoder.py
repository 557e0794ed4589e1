"""Stage 1: the autoencoder, shaped as TAESD (https://github.com/madebyollin/taesd) and half as wide.

Loss: L1 + LPIPS on the decoded windows, and a pull of every latent channel to mean 0 and deviation 1, which is what the
consistency model's noise is scaled for. The decoder gets latents with a little noise, because what it will be given are
predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.train.data import SmallFaces
from streamfix.train.learner import train_small
from streamfix.train.loop import Report
from streamfix.train.nano import release
from streamfix.train.pictures import PictureConfig, PictureLearner

LIMIT = 3.0
"""TAESD's decoder squeezes latents into this range (a soft clamp), so they have to fit it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig(PictureConfig):
    """A run of stage 1. moments: weight of the pull to mean 0 and deviation 1. noise: deviation of what is added to the latents."""

    moments: float = 0.02
    noise: float = 0.05


class AutoencoderLearner(PictureLearner):
    """See the module."""

    config: AutoencoderConfig

    def weights(self) -> dict[str, float]:
        """See SmallLearner."""
        c = self.config
        return {"l1": c.l1, "lpips": c.perceptual, "moments": c.moments}

    def terms(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See SmallLearner. batch: `clean`."""
        truth = batch["clean"].contiguous(memory_format=torch.channels_last)
        latent = self.vae.encoder(truth)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        output = self.vae.decoder(latent + self.config.noise * noise)
        deviation, mean = torch.std_mean(latent, dim=(0, 2, 3))
        beyond = F.relu(latent.abs() - LIMIT).mean()
        moments = mean.square().mean() + (deviation - 1).square().mean() + beyond
        return {**self.distance(output, truth, generator), "moments": moments}

    def export(self) -> Path:
        """The autoencoder in the folder of the release."""
        folder = self.config.run / release.FOLDER
        release.write_vae(folder / release.LCM / "vae", self.config.network, self.averaged("vae"))
        return folder


def train_autoencoder(config: AutoencoderConfig, *, report: Report | None = None) -> Path:
    """Train stage 1, or go on with it; returns the folder of the release, with its autoencoder."""
    faces = SmallFaces(config.data, seed=config.seed, face=config.face)
    return train_small(AutoencoderLearner(config), faces, report)
