"""The restorer that changes nothing: to test the rest of the pipeline, and to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from streamfix.restore.base import check_crops


class Passthrough:
    """Crops out as they came in."""

    name = "passthrough"
    sha256: str | None = None

    def __init__(self, *, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.dtype = torch.float32

    def restore(self, crops: Tensor, noise: Tensor | None = None) -> Tensor:
        """See Restorer; noise is ignored, values are clamped to [-1, 1]."""
        check_crops(crops)
        return crops.to(torch.float32).clamp(-1, 1)
