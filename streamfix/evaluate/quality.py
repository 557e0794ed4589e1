"""MUSIQ, the quality of a picture without a reference (Ke et al. 2021, arXiv 2108.05997), by pyiqa where that is installed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from streamfix.errors import DependencyError, ModelError
from streamfix.evaluate.metrics import Picture, tensor

WEIGHTS = "musiq_koniq_ckpt-e95806b9.pth"
"""pyiqa's file of the weights trained on KonIQ-10k: what `pyiqa.create_metric("musiq")` loads, and what papers report."""


class Musiq:
    """0 to about 100, higher is better. path: WEIGHTS. Raises DependencyError without pyiqa, ModelError for another file."""

    def __init__(self, path: Path, *, device: torch.device | None = None) -> None:
        if not path.is_file():  # pyiqa would go looking for it on the net
            raise ModelError(f"there is no file {path}; bring {WEIGHTS} of pyiqa")
        try:
            import pyiqa
        except Exception as error:  # a torchvision that does not fit raises RuntimeError, and more
            raise DependencyError(
                f"pyiqa cannot be loaded ({type(error).__name__}: {error}); pip install pyiqa, with a torchvision that fits"
            ) from error
        self._metric: Any = pyiqa.create_metric("musiq", device=device or torch.device("cpu"), pretrained=False)
        try:  # not by pyiqa, which would run what a pickle says
            self._metric.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            raise ModelError(f"{path} does not hold the weights of MUSIQ; bring {WEIGHTS} of pyiqa") from error

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> float:
        """Of a picture, float32 (H, W, 3), RGB in [0, 1]."""
        return float(self._metric(tensor(picture)))
