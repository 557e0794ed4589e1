"""Muon: what the iteration makes of singular values, the length of a step, and that it leads downhill."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamfix.train.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(32, 288), (48, 20), (24, 24)])
def test_directions_stay_and_their_lengths_become_alike(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, lengths, v = torch.linalg.svd(matrix, full_matrices=False)
    # singular vectors as they were: in their basis the result is diagonal
    inside = u.T @ orthogonalised(matrix) @ v.T
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 2e-3
    strong = inside.diagonal()[lengths > 0.05 * lengths[0]]
    assert strong.min() > 0.6
    assert strong.max() < 1.25


def test_the_step_on_the_gram_matrix_is_newton_schulz_on_the_matrix() -> None:
    matrix = torch.randn(16, 100, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = matrix / (matrix.norm() * 1.01)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalised(matrix), x)


def test_nothing_to_go_by_is_no_step() -> None:
    kernel = nn.Parameter(torch.ones(8, 4, 3, 3))
    kernel.grad = torch.zeros_like(kernel)
    other = nn.Parameter(torch.ones(8, 4, 3, 3))
    Muon([kernel, other], lr=0.1).step()
    assert torch.equal(kernel, torch.ones_like(kernel))
    assert torch.equal(other, torch.ones_like(other))


def test_a_step_is_as_long_as_adamws_whatever_the_gradient() -> None:
    """Root mean square of a step: rate x 0.2, up to the spread of the singular values."""
    for scale in (1e-6, 1e3):
        kernel = nn.Parameter(torch.zeros(32, 16, 3, 3).contiguous(memory_format=torch.channels_last))
        kernel.grad = scale * torch.randn(kernel.shape, generator=torch.Generator().manual_seed(3))
        Muon([kernel], lr=0.5).step()
        assert float(kernel.detach().square().mean().sqrt()) == pytest.approx(0.5 * 0.2, rel=0.25)
        assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_it_fits_a_badly_scaled_convolution_sooner_than_adamw() -> None:
    generator = torch.Generator().manual_seed(4)
    wanted = torch.randn(8, 8, 3, 3, generator=generator)
    # inputs that mostly say the same: few directions have almost all of the gradient
    common = torch.randn(16, 1, 12, 12, generator=generator)
    pictures = common + 0.1 * torch.randn(16, 8, 12, 12, generator=generator)
    truth = F.conv2d(pictures, wanted)

    def left(make: type[Muon] | type[torch.optim.AdamW]) -> float:
        kernel = nn.Parameter(torch.zeros_like(wanted))
        optimizer = make([kernel], lr=0.3, weight_decay=0.0)
        for step in range(100):
            optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 100)
            (kernel.grad,) = torch.autograd.grad(F.mse_loss(F.conv2d(pictures, kernel), truth), kernel)
            optimizer.step()
        return float((kernel.detach() - wanted).norm() / wanted.norm())

    assert left(Muon) < 0.5 * left(torch.optim.AdamW)
