"""Small InterLCM networks with weights by a rule, for tests: a few channels, the real structure."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, LCMScheduler, UNet2DConditionModel

from streamfix.restore.interlcm.networks import ClipTokens, spatial_encoder
from streamfix.restore.interlcm.pipeline import InterLCM
from streamfix.restore.interlcm.visual_encoder import VisualEncoder

DATA = Path(__file__).parent / "data"
CONFIGS: dict[str, Any] = json.loads((DATA / "interlcm_configs.json").read_text())
CLIP_CONFIG = {
    "hidden_size": 768,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
}


def by_rule(module: torch.nn.Module, prefix: str) -> Any:
    """The module with weights drawn from the crc32 of their names, ready to run."""
    state = module.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            seed = zlib.crc32((prefix + key).encode())
            r = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
            if value.ndim >= 2:
                state[key] = r / math.sqrt(math.prod(value.shape[1:]))
            else:
                state[key] = 0.05 * r + (1 if key.endswith("weight") else 0)
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def small_clip() -> ClipTokens:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return ClipTokens(by_rule(CLIPVisionModel(CLIPVisionConfig(**CLIP_CONFIG)), "clip."))


def small_modules(*, clip: bool = False, tiny_vae: bool = False) -> dict[str, Any]:
    vae: Any = AutoencoderTiny() if tiny_vae else AutoencoderKL(**CONFIGS["vae"])
    return {
        "unet": by_rule(UNet2DConditionModel(**CONFIGS["unet"]), "unet."),
        "spatial_encoder": by_rule(spatial_encoder(CONFIGS["unet"]), "se."),
        "vae": by_rule(vae, "vae."),
        "visual_encoder": by_rule(VisualEncoder(), "ve."),
        "scheduler": LCMScheduler(**CONFIGS["scheduler"]),
        "clip": small_clip() if clip else None,
    }


def small_interlcm(*, clip: bool = False, tiny_vae: bool = False) -> InterLCM:
    return InterLCM(**small_modules(clip=clip, tiny_vae=tiny_vae))
