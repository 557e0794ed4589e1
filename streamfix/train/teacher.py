"""A restorer whose answers are learnt from, in place of the truth that it never saw."""

from __future__ import annotations

import torch
from torch import Tensor

from streamfix.errors import UsageError
from streamfix.restore.base import load_restorer


class Teacher:
    """What `train lite` imitates: any restorer by its name and options, such as "interlcm" or "interlcm-1step:guidance=6".

    It has to give the same answer to the same face, so its noise is the shared one.
    """

    def __init__(self, spec: str, *, device: torch.device) -> None:
        self.restorer = load_restorer(spec, device=str(device))
        if not getattr(self.restorer, "pure", True):
            raise UsageError(f"the teacher {spec} draws other noise for every face; leave out noise=fresh")

    @torch.no_grad()
    def answer(self, degraded: Tensor) -> Tensor:
        """Targets for whole crops (B, 3, 512, 512) in [-1, 1]; the same shape, float32, on the device of `degraded`."""
        return self.restorer.restore(degraded.contiguous())
