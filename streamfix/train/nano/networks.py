"""The sizes of nano, and its networks as they begin. Small in width alone: every part of the published model is there."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from streamfix.restore.interlcm.checkpoint import FACE_SIZE
from streamfix.restore.interlcm.networks import ClipTokens, spatial_encoder, start_from_unet
from streamfix.restore.interlcm.visual_encoder import VisualEncoder
from streamfix.train.nano.release import (
    CLIP,
    ENCODERS,
    LCM,
    WEIGHTS,
    write_json,
    write_pickle,
    write_text,
    write_weights,
)

WIDTH = 192
"""Of the tokens, and so of what the UNet attends to."""
UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 96],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "time_cond_proj_dim": 32,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "rescale_betas_zero_snr": False,
    "timestep_scaling": 10.0,
    "prediction_type": "v_prediction",
}
"""The schedule of the published model, but for what the UNet predicts."""
TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "image_size": 64,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}
TEXT: dict[str, Any] = {
    "vocab_size": 514,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 8,
    "bos_token_id": 512,
    "eos_token_id": 513,
}


def tower() -> ClipTokens:
    """The image tower, with random weights: of the torch seed."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return ClipTokens(CLIPVisionModel(CLIPVisionConfig(**TOWER)))


def unet(config: dict[str, Any]) -> Any:
    """A UNet with random weights."""
    import diffusers

    kind: Any = diffusers.UNet2DConditionModel
    return kind(**config)


def write_encoders(release: Path, unet: Any, tower: ClipTokens) -> None:
    """Untrained encoders, of the torch seed. The spatial one begins as a copy of the UNet whose answers are nought."""
    spatial = spatial_encoder(unet.config)
    start_from_unet(spatial, unet)
    for name, network in (("visual_encoder", VisualEncoder.of(tower.tower.config)), ("spatial_encoder", spatial)):
        write_pickle(release / ENCODERS / f"{name}_3step.pth", {"params_ema": network.state_dict()})


def write_tower(release: Path, state: dict[str, torch.Tensor]) -> None:
    """The image tower (the state of a `ClipTokens`), named as in OpenAI's file."""
    write_json(release / CLIP / "config.json", {"vision_config": TOWER, "projection_dim": 8})
    names = {k: k.removeprefix("tower.").removeprefix("vision_model.") for k in state}
    write_pickle(release / CLIP / "pytorch_model.bin", {f"vision_model.{names[k]}": v for k, v in state.items()})


def write_text_encoder(release: Path) -> None:
    """A text encoder of fixed random weights and a tokenizer of bytes, so that null text has an embedding.

    The UNet learns null text and no other: prompts mean nothing to nano.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(**TEXT)
    write_json(release / LCM / "text_encoder" / "config.json", {"architectures": ["CLIPTextModel"], **config.to_dict()})
    write_weights(release / LCM / "text_encoder" / "model.safetensors", CLIPTextModel(config).state_dict())
    folder = release / LCM / "tokenizer"
    symbols = _byte_symbols()
    words = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    write_text(folder / "merges.txt", "#version: 0.2\n")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json", {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    )


@cache
def _byte_symbols() -> list[str]:
    """The 256 letters by which byte-level BPE writes bytes: printable ones as they are, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printable)
    return [chr(b) for b in printable] + [chr(256 + i) for i, _ in enumerate(others)]


def write_unet(release: Path, config: dict[str, Any], face: int, state: dict[str, torch.Tensor]) -> None:
    """The UNet, with the size of faces that it is for, and its scheduler."""
    folder = release / LCM
    write_json(folder / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", **config, FACE_SIZE: face})
    write_weights(folder / "unet" / WEIGHTS, state)
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "LCMScheduler", **SCHEDULER})
