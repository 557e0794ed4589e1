"""Stage 2: a latent consistency model of faces, from nothing.

Easy Consistency Tuning (Geng et al. 2024, https://arxiv.org/abs/2406.14548) in the latent space and on the noise schedule
of LCM: the network's prediction of the clean latent at time t learns from its own prediction at an earlier time r, on the
same noise. The run begins with r = 0, where that is the training of a diffusion model, and r then comes closer to t in
jumps that halve the distance. No teacher is needed, and a run of minutes is never without a usable model. The distance is
the pseudo-Huber of Song and Dhariwal 2023 (https://arxiv.org/abs/2310.14189).

The image tower (CLIP's part in the published model) learns along with it: for half of the faces the UNet attends to the
tower's tokens of the clean face, for the others to null text. So attention knows what tokens of a face mean, which is what
the visual encoder of stage 3 stands on. The guidance embedding is fed with all values and means nothing: there is no
guided teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.restore.interlcm.networks import decode
from streamfix.restore.interlcm.pipeline import InterLCM, guidance_embedding
from streamfix.restore.interlcm.text import embed_prompt
from streamfix.train.learner import SmallLearner, train_small
from streamfix.train.loop import Report, RunConfig
from streamfix.train.nano import networks, release
from streamfix.train.nano.latents import Latents, read_vae

_HUBER = 0.00054
"""The distance's constant for one value, by the paper: it is multiplied by the root of their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyConfig(RunConfig):
    """A run of stage 2.

    autoencoder: release folder of stage 1. face: side of a face in pixels, as there. jumps: shares of the run at which the
    distance between the two times halves; before the first it is the whole way to 0. null: share of faces that come
    with null text.
    """

    autoencoder: Path
    face: int = 256
    jumps: tuple[float, ...] = (0.9, 0.96)
    null: float = 0.5
    network: dict[str, Any] = field(default_factory=lambda: dict(networks.UNET))


class ConsistencyLearner(SmallLearner):
    """See the module."""

    config: ConsistencyConfig

    def __init__(self, config: ConsistencyConfig) -> None:
        import diffusers

        self.folder = config.run / release.FOLDER
        self.vae = read_vae(config.autoencoder, torch.device("cpu"))
        networks.write_text_encoder(self.folder)
        torch.manual_seed(config.seed)
        self.unet_config = {**config.network, "sample_size": config.face // self.vae_factor}
        unet = networks.unet(self.unet_config).to(memory_format=torch.channels_last)
        self.tower = networks.tower()
        super().__init__(config, {"unet": unet, "tower": self.tower})
        kind: Any = diffusers.LCMScheduler
        self.scheduler = kind(**networks.SCHEDULER)
        self.signals = self.scheduler.alphas_cumprod.sqrt()
        self.null = embed_prompt("", self.folder).to(self.device)
        self.vae.to(self.device)

    @property
    def vae_factor(self) -> int:
        """Pixels of a face's side to one of its latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def plan(self, step: int) -> tuple[int, int]:
        """See SmallLearner."""
        return self.config.face, self.config.batch

    def weights(self) -> dict[str, float]:
        """See SmallLearner; `x0` is only logged."""
        return {"consistency": 1.0, "x0": 0.0}

    def gap(self) -> float:
        """Share of the way from t to 0 that lies between the two times."""
        return float(0.5 ** sum(self.progress() >= jump for jump in self.config.jumps))

    def terms(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See SmallLearner. batch: `latent`, and `face` as the tower sees it."""
        clean = batch["latent"]
        count = len(clean)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        t = torch.randint(1, len(self.signals), (count,), generator=generator)
        without = torch.rand(count, generator=generator) < self.config.null
        scale = 1 + 13 * float(torch.rand((), generator=generator))
        tokens = self.nets["tower"](batch["face"])
        rest = self.null[:, tokens.shape[1] :].expand(count, -1, -1)
        embeds = torch.where(
            without.to(self.device).view(-1, 1, 1),
            self.null,
            torch.cat((tokens, rest), 1),
        )
        prediction = self.predict(clean, noise, t, embeds, scale)
        target = clean
        gap = self.gap()
        if gap < 1:
            earlier = (t.float() * (1 - gap)).long()
            with torch.no_grad():
                target = self.predict(clean, noise, earlier, embeds, scale)
                target = torch.where((earlier < 1).view(-1, 1, 1, 1).to(self.device), clean, target)
        sigma = (1 - self.signals[t] ** 2).sqrt().to(self.device)
        c = _HUBER * math.sqrt(clean[0].numel())
        difference = (prediction - target).flatten(1).square().sum(1)
        distance = ((difference + c * c).sqrt() - c) / math.sqrt(clean[0].numel())
        return {"consistency": (distance / sigma).mean(), "x0": F.mse_loss(prediction.detach(), clean)}

    def predict(self, clean: Tensor, noise: Tensor, t: Tensor, embeds: Tensor, scale: float) -> Tensor:
        """The network's prediction of the clean latents from their noised ones at times (B,): f of the papers.

        LCM's boundary scalings differ from (0, 1) by less than a thousandth from time 1 on, and are left to the sampler.
        """
        signal = self.signals[t].view(-1, 1, 1, 1).to(clean)
        sigma = (1 - signal**2).sqrt()
        z = signal * clean + sigma * noise
        guidance = guidance_embedding(scale, self.unet_config["time_cond_proj_dim"]).to(clean).expand(len(z), -1)
        output = self.nets["unet"](
            z.contiguous(memory_format=torch.channels_last),
            t.to(self.device),
            encoder_hidden_states=embeds,
            timestep_cond=guidance,
            return_dict=False,
        )[0]
        return signal * z - sigma * output  # type: ignore[no-any-return]

    def export(self) -> Path:
        """The whole release: these networks, the autoencoder, and encoders that have learnt nothing yet."""
        folder, config = self.folder, self.config
        unet = networks.unet(self.unet_config)
        unet.load_state_dict(self.averaged("unet"))
        derived = ("block_out_channels",)  # what AutoencoderTiny writes into its configuration by itself
        arguments = {k: v for k, v in self.vae.config.items() if not k.startswith("_") and k not in derived}
        release.write_vae(folder / release.LCM / "vae", arguments, self.vae.state_dict())
        networks.write_unet(folder, self.unet_config, config.face, unet.state_dict())
        networks.write_tower(folder, self.averaged("tower"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            networks.write_encoders(folder, unet, self.tower)
        return folder

    @torch.no_grad()
    def samples(self, count: int, steps: int = 4, seed: int = 0) -> Tensor:
        """Faces (count, 3, face, face) in [-1, 1] from noise and null text, by the averaged weights."""
        unet = networks.unet(self.unet_config).eval().to(self.device)
        unet.load_state_dict(self.averaged("unet"))
        model = InterLCM(
            unet=unet, spatial_encoder=None, vae=self.vae, visual_encoder=None, scheduler=self.scheduler,
            face_size=self.config.face,
        )  # fmt: skip
        shape = model.latent_shape(self.config.face, self.config.face)
        noise = torch.randn((steps, count, *shape), generator=torch.Generator().manual_seed(seed))
        latent = torch.zeros((count, *shape), device=self.device)
        restored = model.denoise(latent, latent, self.null, noise, num_inference_steps=steps, start_step=1)
        return decode(self.vae, restored).float().clamp(-1, 1)


def train_consistency(config: ConsistencyConfig, *, report: Report | None = None) -> Path:
    """Train stage 2, or go on with it; returns the folder of the whole release."""
    learner = ConsistencyLearner(config)
    kept = config.run / "latents.safetensors"
    latents = Latents(config.data, learner.vae, face=config.face, tower=learner.tower, seed=config.seed, kept=kept)
    return train_small(learner, latents, report)
