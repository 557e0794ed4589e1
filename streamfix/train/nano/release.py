"""A folder in the layout of a release, which `streamfix models pull interlcm --from RUN/release` installs.

RUN/release/
  SimianLuo/LCM_Dreamshaper_v7/{unet,vae,scheduler,text_encoder,tokenizer}/
  openai/clip-vit-base-patch16/
  InterLCM/{visual,spatial}_encoder_3step.pth
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER = "release"
LCM, CLIP, ENCODERS = "SimianLuo/LCM_Dreamshaper_v7", "openai/clip-vit-base-patch16", "InterLCM"
TAESD = "madebyollin/taesd"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A configuration."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """A text."""
    with whole(path) as part:
        part.write_text(content, encoding="utf-8")


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Tensors as safetensors."""
    with whole(path) as part:
        save_file({k: v.contiguous() for k, v in state.items()}, part)


def write_pickle(path: Path, content: dict[str, Any]) -> None:
    """Tensors as torch.save writes them, for what is released so; what was known of files of that folder is forgotten."""
    (path.parent / "SHA256SUMS").unlink(missing_ok=True)  # of the file before, if somebody has loaded it from here
    with whole(path) as part:
        torch.save(content, part)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside the file's own to write to; it is moved into place when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    yield part
    os.replace(part, path)


def write_vae(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """An AutoencoderTiny: its arguments and tensors."""
    write_json(folder / "config.json", {"_class_name": "AutoencoderTiny", **config})
    write_weights(folder / WEIGHTS, state)
