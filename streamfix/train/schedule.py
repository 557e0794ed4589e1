"""What every trainer does alike beside its steps: the learning rate, averaged weights, whole checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamfix.errors import ModelError


def cosine(first: float, last: float, done: float) -> float:
    """The learning rate on its way from `first` to `last` along half a cosine; done: share of the run, 0..1."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def follow(average: Mapping[str, Tensor], state: Mapping[str, Tensor], *, decay: float, step: int) -> None:
    """Move averaged weights towards those of `step` (from 0), in place; the first steps count more than the decay says."""
    keep = min(decay, (1 + step) / (10 + step))
    moving = [k for k, v in average.items() if v.is_floating_point()]
    torch._foreach_lerp_([average[k] for k in moving], [state[k] for k in moving], 1 - keep)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save whole or not at all: a kill in between leaves the old file."""
    part = path.with_suffix(".part")
    torch.save(dict(state), part)
    os.replace(part, path)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What `write_checkpoint` wrote; ModelError where it cannot be read."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a broken file
        raise ModelError(f"the checkpoint {path} cannot be read; remove it to start afresh") from error
    return state
