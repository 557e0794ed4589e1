"""The adversarial loss: a patch discriminator with hinge losses, made for shards of a batch on threads.

The recipe of BasicSR and VQGAN (four strided layers, 64 features, hinge) with spectral instead of batch normalisation:
a batch of one or two faces has no statistics, and shards of it must not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from streamfix.errors import ModelError

SMALLEST = 64
"""Side in pixels of the smallest window that has a score."""

_STRIDES = (2, 2, 2, 2, 1, 1)


class Discriminator(nn.Module):
    """Weights of the discriminator; `score` computes with what `normalised` gives.

    Each score sees a patch of 142x142 pixels. The inner layers are spectrally normalised, the first and last are not
    (BasicSR).
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        widths = (3, features, 2 * features, 4 * features, 8 * features, 8 * features, 1)
        layers = []
        for i, stride in enumerate(_STRIDES):
            layer = nn.Conv2d(widths[i], widths[i + 1], 4, stride, 1)
            layers.append(spectral_norm(layer) if 0 < i < len(_STRIDES) - 1 else layer)
        self.layers = nn.ModuleList(layers)

    def normalised(self) -> list[Tensor]:
        """Weight, bias, weight, bias ...; each call advances the power iteration by one, so call it once a step."""
        return [getattr(layer, name) for layer in self.layers for name in ("weight", "bias")]


def score(image: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Scores (B, 1, h, w), high for real, of images (B, 3, H, W) in [-1, 1]; float32, computed as the weights are."""
    x = image.to(weights[0].dtype).contiguous(memory_format=torch.channels_last)
    for i, stride in enumerate(_STRIDES):
        x = F.conv2d(x, weights[2 * i], weights[2 * i + 1], stride, 1)
        if i < len(_STRIDES) - 1:
            x = F.leaky_relu(x, 0.2)
    return x.float()


def generator_loss(output: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The hinge loss of the network that is judged: minus the mean score; gradients flow into `output`."""
    return -score(output, [w.detach() for w in weights]).mean()


def discriminator_gradients(
    output: Tensor, truth: Tensor, weights: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, float]]:
    """Gradients of the discriminator's hinge loss for `weights`, and the loss in its parts `d_real` and `d_fake`."""
    real, fake = score(torch.cat((truth, output.detach().to(truth.dtype))), weights).chunk(2)
    d_real, d_fake = F.relu(1 - real).mean(), F.relu(1 + fake).mean()
    gradients = torch.autograd.grad(0.5 * (d_real + d_fake), list(weights))
    return list(gradients), {"d_real": float(d_real.detach()), "d_fake": float(d_fake.detach())}


class Adversary:
    """The discriminator with its optimiser. A step is `begin`, then the two functions above on any threads, then `update`."""

    def __init__(self, *, rate: float, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.net = Discriminator().to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate, betas=(0.9, 0.99))
        self._exact: list[Tensor] = []

    def begin(self) -> list[Tensor]:
        """Weights of this step in the computing precision, to be read by all shards; leaves of their own graph."""
        self._exact = self.net.normalised()
        weights = [w.detach().to(self.dtype) for w in self._exact]
        return [
            (w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w).requires_grad_() for w in weights
        ]

    def update(self, gradients: Sequence[Tensor]) -> None:
        """Take float32 gradients for what `begin` gave back through the normalisation, and step."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self._exact, list(gradients))
        self._exact = []
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumption needs."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; ModelError when it is of another discriminator."""
        try:
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelError("the checkpoint holds another discriminator; choose another run folder") from error
