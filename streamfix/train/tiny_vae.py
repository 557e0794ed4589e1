"""A tiny VAE for faces alone, distilled from that of a release: what `--vae tiny` decodes with in a tenth of the time.

TAESD, which stands there else, is made for all pictures and ruins eyes (fastsdcpu#83). This one has its layout and sees nothing
but aligned faces: the encoder learns the teacher's latents, the decoder learns the teacher's pictures from the teacher's
latents (L1 + LPIPS), and pays once more for the band of the eyes, whose place alignment gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.errors import UsageError
from streamfix.restore.interlcm.checkpoint import load_vae
from streamfix.restore.interlcm.networks import decode, encode
from streamfix.train.data import SmallFaces
from streamfix.train.learner import train_small
from streamfix.train.loop import Report
from streamfix.train.nano import release
from streamfix.train.pictures import SMALLEST, PictureConfig, PictureLearner, tiny_config
from streamfix.types import CROP_SIZE

EYES = (slice(184, 296), slice(128, 384))
"""Rows and columns of the band of the eyes in the template of 512 pixels."""


def tiny_vae_config(width: int = 64) -> dict[str, Any]:
    """TAESD's own arguments, at that width or another."""
    return tiny_config(width, (1, 3, 3, 3), (3, 3, 3, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyVaeConfig(PictureConfig):
    """A run.

    teacher: folder of a release, None for the installed one. latent, eyes: weights of the latents' squared error and of LPIPS in
    the band of the eyes (whole faces only).
    """

    teacher: Path | None = None
    face: int = CROP_SIZE
    network: dict[str, Any] = field(default_factory=tiny_vae_config)
    latent: float = 1.0
    eyes: float = 0.25


class TinyVaeLearner(PictureLearner):
    """See the module."""

    config: TinyVaeConfig

    def __init__(self, config: TinyVaeConfig) -> None:
        super().__init__(config)
        self.teacher: Any = load_vae(folder=config.teacher, device=self.device, dtype=torch.float32)
        theirs = (int(self.teacher.config.latent_channels), len(self.teacher.config.block_out_channels))
        ours = (int(self.vae.config.latent_channels), len(self.vae.config.block_out_channels))
        if theirs != ours:
            raise UsageError(
                f"the teacher's latents have {theirs[0]} channels after {theirs[1] - 1} halvings, the tiny VAE's "
                f"{ours[0]} after {ours[1] - 1}; they have to be the same"
            )

    def weights(self) -> dict[str, float]:
        """See SmallLearner."""
        c = self.config
        return {"l1": c.l1, "lpips": c.perceptual, "latent": c.latent, "eyes": c.eyes}

    def terms(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See SmallLearner. batch: `clean`."""
        faces = batch["clean"].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latent = encode(self.teacher, faces)
            truth = decode(self.teacher, latent).clamp(-1, 1)
        output = self.vae.decoder(latent)
        terms = self.distance(output, truth, generator)
        terms["latent"] = F.mse_loss(self.vae.encoder(faces), latent)
        scale = faces.shape[-1] / CROP_SIZE
        rows, columns = (slice(round(s.start * scale), round(s.stop * scale)) for s in EYES)
        if faces.shape[-1] == self.config.face and rows.stop - rows.start >= SMALLEST // 2:
            terms["eyes"] = self.lpips(output[..., rows, columns], truth[..., rows, columns]).mean()
        return terms

    def export(self) -> Path:
        """The tiny VAE, as `streamfix models pull taesd --from` takes it."""
        folder = self.config.run / release.FOLDER
        release.write_vae(folder / release.TAESD, self.config.network, self.averaged("vae"))
        return folder


def train_tiny_vae(config: TinyVaeConfig, *, report: Report | None = None) -> Path:
    """Distil, or go on with it; returns the folder with the tiny VAE, laid out as its release."""
    faces = SmallFaces(config.data, seed=config.seed, face=config.face)
    return train_small(TinyVaeLearner(config), faces, report)
