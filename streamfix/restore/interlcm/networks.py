"""The other networks: the spatial encoder, the CLIP tower and what differs between the two kinds of VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def spatial_encoder(unet_config: Mapping[str, Any]) -> Any:
    """The spatial encoder that belongs to a UNet: a diffusers ControlNetModel without the guidance condition.

    unet_config: of the LCM's UNet2DConditionModel, which is that of Stable Diffusion 1.5 but for `time_cond_proj_dim`.
    The weights are random, or absent when built on the meta device.
    """
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):  # only the completed configuration is of interest
        unet = UNet2DConditionModel.from_config({**unet_config, "time_cond_proj_dim": None})  # type: ignore[no-untyped-call]
    return ControlNetModel.from_unet(unet, load_weights_from_unet=False)


def start_from_unet(encoder: Any, unet: Any) -> None:
    """Give a spatial encoder the weights of the half of the UNet that it is a copy of, as ControlNets are begun.

    diffusers' own `from_unet` does not load from a UNet with a guidance condition, which the encoder lacks.
    """
    for part in ("conv_in", "time_embedding", "class_embedding", "add_embedding", "down_blocks", "mid_block"):
        theirs, ours = getattr(unet, part, None), getattr(encoder, part, None)
        if theirs is not None and ours is not None:
            state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("cond_proj.")}
            ours.load_state_dict(state)


class ClipTokens(nn.Module):
    """All tokens of a CLIP image tower, each through the post layer norm, as OpenAI's code gives them.

    tower: transformers' CLIPVisionModel (whose last_hidden_state is before that norm) with QuickGELU.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def prepare(self, faces: Tensor) -> Tensor:
        """RGB in [-1, 1], (B, 3, H, W), to the tower's own input: bicubic without antialiasing, CLIP's mean and std."""
        size = self.tower.config.image_size
        mean, std = (
            faces.new_tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD)
        )  # no buffers: `to` would round them
        pixels = (faces + 1) / 2
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False, antialias=False)
        return (pixels - mean) / std

    def forward(self, faces: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1 + patches, width): (B, 197, 768) for ViT-B/16."""
        # transformers before 5 keeps the parts one level deeper
        parts = getattr(self.tower, "vision_model", self.tower)
        pixels = self.prepare(faces.float()).to(parts.post_layernorm.weight.dtype)
        tokens: Tensor = parts.post_layernorm(self.tower(pixel_values=pixels).last_hidden_state)
        return tokens


def encode(vae: Any, faces: Tensor) -> Tensor:
    """Latents of faces (B, 3, H, W) in [-1, 1], scaled as the UNet knows them: the mean, never a sample.

    vae: AutoencoderKL, or AutoencoderTiny (whose latents come scaled; its scaling_factor is 1).
    """
    encoded = vae.encode(faces)
    latent = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    return latent * vae.config.scaling_factor  # type: ignore[no-any-return]


def decode(vae: Any, latent: Tensor) -> Tensor:
    """Faces (B, 3, H, W), nominally in [-1, 1], of scaled latents."""
    return vae.decode(latent / vae.config.scaling_factor).sample  # type: ignore[no-any-return]
