"""What trainings are tested on: made-up faces, and LPIPS weights of noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch


def made_up_faces(folder: Path, sides: tuple[int, ...] = (512, 512, 640, 640, 400, 400)) -> Path:
    """Pictures of the known layouts, coarse enough to be learnt within seconds."""
    rng = np.random.default_rng(0)
    for i, side in enumerate(sides):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    return folder


def lpips_of_noise(path: Path) -> Path:
    """A file in the layout of LPIPS with AlexNet."""
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for k, (i, (o, c, side)) in enumerate(shapes.items()):
        state[f"features.{i}.weight"] = torch.randn(o, c, side, side, generator=generator) / (c * side * side) ** 0.5
        state[f"features.{i}.bias"] = torch.zeros(o)
        state[f"lin{k}.model.1.weight"] = torch.rand(1, o, 1, 1, generator=generator)
    torch.save(state, path)
    return path
