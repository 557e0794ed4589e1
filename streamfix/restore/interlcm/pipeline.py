"""The step loop of InterLCM on given networks and given noise.

The latent of the degraded face stands in for the first prediction of a latent consistency model; from there the model
walks its remaining steps, guided by the face itself through two encoders:

    face -> CLIP tokens -> visual encoder  -> in place of the text embedding
    face ---------------> spatial encoder -> residuals for the UNet at every step
    face -> VAE --------> latent          -> prediction of the steps that are replaced

Nothing is drawn inside: the noise is an argument, and the same arguments give the same face.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.restore.interlcm import networks
from streamfix.restore.interlcm.color import fix_colors
from streamfix.types import CROP_SIZE

PUBLISHED_START = 2
PREDICTIONS = ("epsilon", "v_prediction")
"""What a UNet may predict: the noise, as published, or v = signal * noise - sigma * x0 (small models learn that sooner)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the schedule. signal, sigma: z = signal * x0 + sigma * noise; skip, out: the consistency boundary."""

    timestep: int
    signal: float
    sigma: float
    skip: float
    out: float


def noises_needed(num_inference_steps: int, start_step: int = PUBLISHED_START) -> int:
    """How many noise tensors a run takes: one for every step that follows a prediction, one to begin from noise alone."""
    return num_inference_steps - start_step + 1


def guidance_embedding(scale: float, size: int) -> Tensor:
    """Sines and cosines of w = scale - 1, as latent consistency models are conditioned on guidance: (size,) float32."""
    half = size // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angles = (scale - 1) * 1000.0 * rates
    return nn.functional.pad(torch.cat((angles.sin(), angles.cos())), (0, size % 2))


class InterLCM:
    """The published model, built from modules that are ready to run (on one device, in evaluation mode).

    unet: UNet2DConditionModel of an LCM. spatial_encoder: ControlNetModel (`networks.spatial_encoder`), or None to run
    without. vae: AutoencoderKL or AutoencoderTiny. visual_encoder: VisualEncoder, or None where embeddings are given.
    scheduler: LCMScheduler. clip: `networks.ClipTokens`, or None where tokens are given. face_size: side in pixels of the
    faces that the networks were trained on.

        model = InterLCM(unet=..., spatial_encoder=..., vae=..., visual_encoder=..., scheduler=..., clip=None)
        face = model.restore_from_tokens(lq, clip_tokens, noise, num_inference_steps=4, guidance_scale=8.0, color_fix="wavelet")

    The stages on their own, all differentiable: `tokens`, `visual`, `latent`, `denoise`, `decode`; and
    `restore_from_tokens(..., color_fix="none")` gives the face before the colour fix.
    """

    def __init__(
        self,
        *,
        unet: Any,
        spatial_encoder: Any,
        vae: Any,
        visual_encoder: Any,
        scheduler: Any,
        clip: Any = None,
        face_size: int = CROP_SIZE,
    ) -> None:
        if scheduler.config.prediction_type not in PREDICTIONS:
            raise ModelError(
                f"InterLCM needs a UNet that predicts {' or '.join(PREDICTIONS)}, not {scheduler.config.prediction_type!r}"
            )
        self.face_size = face_size
        self.predicts_v = scheduler.config.prediction_type == "v_prediction"
        self.unet, self.vae, self.scheduler = unet, vae, scheduler
        self.spatial_encoder, self.visual_encoder, self.clip = spatial_encoder, visual_encoder, clip
        self._schedules: dict[int, list[Step]] = {}
        if spatial_encoder is not None:
            if spatial_encoder.config.controlnet_conditioning_channel_order != "rgb":
                raise ModelError("the spatial encoder must take RGB pictures (controlnet_conditioning_channel_order)")
            # the same weights without the stage that embeds the face, which is run once a face and not once a step
            self._steps_only = copy.copy(spatial_encoder)
            self._steps_only._modules = {**spatial_encoder._modules, "controlnet_cond_embedding": nn.Identity()}

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return next(self.unet.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """In what the networks compute; the latents between the steps are float32."""
        return next(self.unet.parameters()).dtype  # type: ignore[no-any-return]

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, h, w) of the latent of a face of that size."""
        halvings = len(self.vae.config.block_out_channels) - 1
        return int(self.vae.config.latent_channels), height >> halvings, width >> halvings

    def compile(self) -> None:
        """Compile the networks with torch.compile, in place; each batch size is compiled when it first comes."""
        for network in (self.unet, self.vae.encoder, self.vae.decoder):
            network.compile(dynamic=False)
        if self.spatial_encoder is not None:
            self._steps_only.compile(dynamic=False)

    def schedule(self, num_inference_steps: int) -> list[Step]:
        """The steps of a run, first to last. Raises ModelError for a number that the schedule was not trained in."""
        most = self.scheduler.config.original_inference_steps
        if not 1 <= num_inference_steps <= most:
            raise ModelError(f"num_inference_steps must lie between 1 and {most}, not {num_inference_steps}")
        if num_inference_steps not in self._schedules:
            scheduler = copy.deepcopy(self.scheduler)  # set_timesteps changes it, and others may be using it
            scheduler.set_timesteps(num_inference_steps)
            steps = []
            for t in scheduler.timesteps.tolist():
                kept = float(scheduler.alphas_cumprod[t])
                skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t)
                steps.append(Step(t, math.sqrt(kept), math.sqrt(1 - kept), float(skip), float(out)))
            self._schedules[num_inference_steps] = steps
        return self._schedules[num_inference_steps]

    def tokens(self, lq: Tensor) -> Tensor:
        """CLIP's tokens of the faces: (B, 3, H, W) in [-1, 1] -> (B, 197, 768) float32."""
        if self.clip is None:
            raise ModelError("this InterLCM was built without CLIP; give it the tokens, or build it with clip=")
        return self.clip(lq.to(self.device)).float()  # type: ignore[no-any-return]

    def visual(self, clip_tokens: Tensor) -> Tensor:
        """The visual encoder: (B, 197, 768) -> (B, 77, 768) float32, which replaces the text embedding."""
        if self.visual_encoder is None:
            raise ModelError("this InterLCM was built without the visual encoder; give it text embeddings")
        return self.visual_encoder(clip_tokens.to(self.device, self.dtype)).float()  # type: ignore[no-any-return]

    def latent(self, lq: Tensor) -> Tensor:
        """The VAE's mean, scaled for the UNet: (B, 3, H, W) in [-1, 1] -> (B, 4, h, w) float32."""
        return networks.encode(self.vae, lq.to(self.device, self.dtype)).float()

    def denoise(
        self,
        lq: Tensor,
        latent: Tensor,
        embeds: Tensor,
        noise: Tensor,
        *,
        num_inference_steps: int = 4,
        guidance_scale: float = 8.0,
        start_step: int = PUBLISHED_START,
        before_last: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loop: the restored latents (B, 4, h, w) float32.

        lq: (B, 3, H, W) in [-1, 1], for the spatial encoder. latent: `latent(lq)`. embeds: (B or 1, 77, 768), of
        `visual` or of a text encoder. noise: (N, B or 1, 4, h, w), or (N, 4, h, w) for all faces alike, with N as
        `noises_needed` says. start_step: the first step that the network computes, 1 to num_inference_steps; the
        `start_step - 1` steps before it take the latent of the degraded face for their prediction (published: 2), and 1
        begins from the first noise alone. before_last: changes the prediction (B, 4, h, w) that the last step begins from.
        """
        schedule = self.schedule(num_inference_steps)
        if not 1 <= start_step <= num_inference_steps:
            raise ModelError(f"start_step must lie between 1 and {num_inference_steps}, not {start_step}")
        draws = iter(self._noise(noise, latent, noises_needed(num_inference_steps, start_step)))
        guidance = self._guidance(guidance_scale, latent.shape[0])
        embeds = embeds.to(self.device, self.dtype).expand(latent.shape[0], -1, -1)
        condition = self._condition(lq)

        denoised = latent
        for number, step in enumerate(schedule[start_step - 1 :], start=start_step):
            if before_last is not None and number == num_inference_steps:
                denoised = before_last(denoised)
            fresh = next(draws)
            z = fresh if number == 1 else step.signal * denoised + step.sigma * fresh
            t = torch.tensor([step.timestep], device=z.device)
            output = self._predict(z, t, embeds, condition, guidance)
            x0 = step.signal * z - step.sigma * output if self.predicts_v else (z - step.sigma * output) / step.signal
            denoised = step.out * x0 + step.skip * z
        return denoised

    def predict_noise(
        self,
        lq: Tensor,
        latent: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        embeds: Tensor,
        *,
        guidance_scale: float = 8.0,
    ) -> Tensor:
        """The noise that the UNet sees in noised latents, (B, 4, h, w) float32: what a plain ControlNet is trained on.

        lq: as for `denoise`. latent: of the clean faces, (B, 4, h, w). noise: of the same shape. timesteps: (B,) int64, 0 to
        999. embeds: (B or 1, 77, 768).
        """
        kept = self.scheduler.alphas_cumprod[timesteps.cpu()].to(self.device, torch.float32).view(-1, 1, 1, 1)
        signal, sigma = kept.sqrt(), (1 - kept).sqrt()
        z = signal * latent + sigma * noise
        embeds = embeds.to(self.device, self.dtype).expand(latent.shape[0], -1, -1)
        guidance = self._guidance(guidance_scale, latent.shape[0])
        output = self._predict(z, timesteps.to(self.device), embeds, self._condition(lq), guidance)
        return sigma * z + signal * output if self.predicts_v else output

    def _predict(
        self, z: Tensor, t: Tensor, embeds: Tensor, condition: Tensor | None, guidance: Tensor | None
    ) -> Tensor:
        z = z.to(self.dtype)
        down = mid = None
        if condition is not None:
            down, mid = self._steps_only(
                z, t, encoder_hidden_states=embeds, controlnet_cond=condition, return_dict=False
            )
        output: Tensor = self.unet(
            z,
            t,
            encoder_hidden_states=embeds,
            timestep_cond=guidance,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        return output.float()

    def _condition(self, lq: Tensor) -> Tensor | None:
        if self.spatial_encoder is None:
            return None
        return self.spatial_encoder.controlnet_cond_embedding(lq.to(self.device, self.dtype))  # type: ignore[no-any-return]

    def _guidance(self, scale: float, batch: int) -> Tensor | None:
        size = self.unet.config.time_cond_proj_dim
        if size is None:
            return None
        return guidance_embedding(scale, size).to(self.device, self.dtype).expand(batch, -1)

    def _noise(self, noise: Tensor, latent: Tensor, needed: int) -> Tensor:
        one_each = noise[:, None] if noise.ndim == 4 else noise
        if one_each.ndim != 5 or one_each.shape[0] != needed or one_each.shape[1] not in (1, latent.shape[0]):
            raise ModelError(
                f"{needed} noise tensors of shape (1 or {latent.shape[0]}, {', '.join(map(str, latent.shape[1:]))}) are "
                f"needed here, not {tuple(noise.shape)}"
            )
        if one_each.shape[2:] != latent.shape[1:]:
            raise ModelError(f"noise of shape {tuple(noise.shape)} does not fit latents of {tuple(latent.shape)}")
        return one_each.to(self.device, torch.float32).expand(-1, *latent.shape)

    def decode(self, latent: Tensor) -> Tensor:
        """Faces (B, 3, H, W) float32 of restored latents, nominally in [-1, 1], not clamped, before the colour fix."""
        return networks.decode(self.vae, latent.to(self.device, self.dtype)).float()

    @torch.no_grad()
    def restore_from_embeds(
        self,
        lq: Tensor,
        embeds: Tensor,
        noise: Tensor,
        *,
        num_inference_steps: int = 4,
        guidance_scale: float = 8.0,
        color_fix: str | None = "wavelet",
        start_step: int = PUBLISHED_START,
        before_last: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Faces restored with given embeddings (B or 1, 77, 768), such as those of a text prompt; see restore_from_tokens.

        before_last: as for `denoise`.
        """
        restored = self.decode(
            self.denoise(
                lq,
                self.latent(lq),
                embeds,
                noise,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                start_step=start_step,
                before_last=before_last,
            )
        )
        return fix_colors(restored, lq.to(restored.device, torch.float32), color_fix).to(lq.device)

    @torch.no_grad()
    def restore_from_tokens(
        self,
        lq: Tensor,
        clip_tokens: Tensor,
        noise: Tensor,
        *,
        num_inference_steps: int = 4,
        guidance_scale: float = 8.0,
        color_fix: str | None = "wavelet",
        start_step: int = PUBLISHED_START,
    ) -> Tensor:
        """Restore aligned faces.

        lq: (B, 3, H, W), RGB in [-1, 1], H and W multiples of 8 (published: 512). clip_tokens: (B, 197, 768), as
        `tokens` gives them. noise: (num_inference_steps - 1, B or 1, 4, H/8, W/8) standard normal, the same for every
        frame of a video. num_inference_steps: one more than the steps of the checkpoint (4 for the 3-step model).
        guidance_scale: published 8. color_fix: "wavelet", "adain" or "none". Returns (B, 3, H, W) float32 on the device of
        `lq`, nominally in [-1, 1], not clamped.
        """
        return self.restore_from_embeds(
            lq,
            self.visual(clip_tokens),
            noise,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            color_fix=color_fix,
            start_step=start_step,
        )
