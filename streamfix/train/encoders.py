"""The encoders of InterLCM in training: their weights, where they begin, and the released files that come of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.models import File, record, sha256_of
from streamfix.restore.interlcm import networks
from streamfix.restore.interlcm.checkpoint import Base, fill, state_of
from streamfix.restore.interlcm.visual_encoder import VisualEncoder
from streamfix.train.interlcm_config import Chain

VISUAL, SPATIAL = "visual_encoder", "spatial_encoder"
FOLDER = "InterLCM"
"""Folder of a run with the averaged weights, named and written as the published ones."""


def new_encoders(chain: Chain, base: Base) -> nn.ModuleDict:
    """The encoders that a chain trains, in float32 on the CPU, by the names of the release.

    The random numbers are torch's own: seed them. The visual encoder begins at random; the spatial one is the UNet's copy with
    outputs of zero, as every ControlNet begins.
    """
    encoders: dict[str, Any] = {}
    if chain.embeds == "visual":
        if base.clip is None:
            raise ModelError("the visual encoder cannot be trained without CLIP's image tower")
        encoders[VISUAL] = VisualEncoder.of(base.clip.tower.config)
        if chain.visual_start is not None:
            _begin(encoders[VISUAL], chain.visual_start)
    if chain.spatial:
        encoders[SPATIAL] = networks.spatial_encoder(base.unet.config)
        if chain.spatial_start is not None:
            _begin(encoders[SPATIAL], chain.spatial_start)
        else:
            networks.start_from_unet(encoders[SPATIAL], base.unet)
        encoders[SPATIAL].to(memory_format=torch.channels_last)
    return nn.ModuleDict(encoders).float()


def _begin(encoder: nn.Module, path: Path) -> None:
    fill(encoder, read_released(path), path)


def read_released(path: Path) -> dict[str, Tensor]:
    """The tensors of a released file, a pickle of tensors or safetensors; ModelError where it cannot be read."""
    kept = None if path.suffix == ".safetensors" else path.with_suffix(".safetensors")
    return state_of(File(path=path, url="", converted=kept))


def write_released(folder: Path, name: str, average: Mapping[str, Tensor]) -> list[Path]:
    """Averaged weights as the published files: {"params_ema": tensors by name}, `visual_encoder_3step.pth` and so on.

    average: by names such as "visual_encoder.blocks.0.weight". A kill in between leaves the old files whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for encoder in (VISUAL, SPATIAL):
        start = f"{encoder}."
        state = {k.removeprefix(start): v for k, v in average.items() if k.startswith(start)}
        if state:
            path = folder / f"{encoder}_{name}.pth"
            part = path.with_suffix(".part")
            torch.save({"params_ema": {k: v.detach().cpu().contiguous() for k, v in state.items()}}, part)
            digest = sha256_of(part)
            os.replace(part, path)
            record(path, digest)  # of the file before, which may have been loaded meanwhile, there is one
            written.append(path)
    return written
