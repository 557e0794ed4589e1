"""Muon, for the kernels of convolutions: steps along the momentum with all its directions made equally long.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). torch.optim.Muon takes matrices only
and iterates on them as they are; kernels are nine times as wide as high, so here the iteration runs on their small Gram
matrix, for a third of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """(M, N) float32 -> (M, N), the same singular vectors with all singular values near 1 (0.7 to 1.2).

    Five quintic Newton-Schulz steps; directions far below the largest stay shorter.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    x = matrix / (matrix.norm() * 1.01 + 1e-12)
    gram, total = x @ x.T, None
    for step in range(_STEPS):
        factor = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal().add_(_A)
        total = factor if total is None else factor @ total
        if step < _STEPS - 1:
            gram = factor @ gram @ factor
    assert total is not None
    return torch.mm(total, x)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised over (outputs, inputs x taps), of the size that AdamW's steps have.

    So the rates and the decay of AdamW can be used for it.
    """

    def __init__(
        self, kernels: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients that the kernels hold; those without one stay."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is not None:
                    self._move(kernel, kernel.grad, group)
        return loss

    def _move(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"]).contiguous().flatten(1)
        change = orthogonalised(ahead).mul_(0.2 * max(ahead.shape) ** 0.5)  # 0.2: root mean square of AdamW's steps
        kernel.mul_(1 - group["lr"] * group["weight_decay"]).add_(change.view(kernel.shape), alpha=-group["lr"])
