"""Several processes, usually one per GPU, on one run: `accelerate launch --num_processes N -m streamfix train ...`.

On processors alone: `torchrun --standalone --nproc_per_node N -m streamfix train ...`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from streamfix.errors import UsageError
from streamfix.restore.base import device_of


class Ranks:
    """Where this process stands among those of the run. All hold the same weights; each computes its share of every batch.

    rank: from 0. count: of processes. device: of this one, None where the run has only one process.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        self.device: torch.device | None = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise UsageError("several processes need accelerate: pip install 'streamfix[train]'") from error
            # without a GPU accelerate has to be told, or every process takes itself for the only one
            state = PartialState(cpu=not torch.cuda.is_available())
            if state.num_processes != int(os.environ["WORLD_SIZE"]):
                raise UsageError(
                    f"{os.environ['WORLD_SIZE']} processes were launched, but accelerate sees {state.num_processes}; launch them "
                    "with `accelerate launch` or `torchrun`"
                )
            self.rank, self.count = int(state.process_index), int(state.num_processes)
            self.device = state.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that logs and saves."""
        return self.rank == 0

    def device_of(self, name: str) -> torch.device:
        """Where this process trains. name: as load_restorer takes it, where "auto" is its own among several. Raises ModelError."""
        return self.device if name == "auto" and self.device is not None else device_of(name)

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each float32 tensor over all processes, laid out in memory as that tensor is."""
        if self.count == 1:
            return list(tensors)
        from accelerate.utils import reduce

        flat = reduce(torch.cat([t.flatten() for t in tensors]), reduction="mean")  # one message, not hundreds
        parts = flat.split([t.numel() for t in tensors])
        # fused optimisers go through memory in order and would mix up the values of another layout without a word
        return [torch.empty_like(t).copy_(part.view_as(t)) for part, t in zip(parts, tensors, strict=True)]

    def mean_values(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all processes, which must have the same keys."""
        if self.count == 1:
            return values
        mean = self.mean([torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)])[0]
        return dict(zip(values, mean.tolist(), strict=True))
