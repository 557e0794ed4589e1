"""The shared noise: one seeded set of latents for every face and every frame.

In crop coordinates a latent pixel sticks to the same place of the face, because alignment takes the motion out. Fresh
noise per face is what makes diffusion restorers flicker on video; noise drawn in the shape of a batch would make a face
depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shared_noise(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """Standard normal float32 of `shape` (without a batch axis): the same for a seed, with one torch version.

    Drawn on the CPU in one piece; expand it over a batch, never draw per face.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)
