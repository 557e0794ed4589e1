"""Does the restored face still look like the same person: a loss over a face embedding that the user brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.faces.align import ARCFACE_BLUR, ARCFACE_SIZE, apply, arcface_matrix, invert
from streamfix.faces.embedding import NORMS
from streamfix.train.onnx_net import OnnxNet
from streamfix.types import CROP_SIZE


class IdentityLoss(nn.Module):
    """1 - cosine of face embeddings between aligned 512x512 images in [-1, 1]: (B, 3, 512, 512) x 2 -> (B,), 0..2.

    path: ONNX with input (1 or any, 3, 112, 112), RGB, ArcFace alignment. norm: a key of NORMS. The alignment is the
    fixed matrix, blur and sampling that `evaluate` measures identity with. Frozen, float32. Raises what OnnxNet does,
    and ModelError for a network that does not make one vector of such an input.
    """

    def __init__(self, path: Path, *, norm: str = "arcface") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ModelError(f"there is no input scaling called {norm!r}; choose one of: {', '.join(NORMS)}")
        self.net = OnnxNet(path)
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), NORMS[norm], strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        reach = round(ARCFACE_BLUR * 4)
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / ARCFACE_BLUR) ** 2)
        self.taps: Tensor
        self.register_buffer("taps", (taps / taps.sum()).expand(3, 1, 1, -1).contiguous(), persistent=False)
        y, x = np.mgrid[:ARCFACE_SIZE, :ARCFACE_SIZE]
        places = apply(invert(arcface_matrix()), np.stack((x, y), -1))  # where in the crop each input pixel lies
        self.grid: Tensor
        grid = torch.from_numpy(places * 2 / (CROP_SIZE - 1) - 1).float()[None]
        self.register_buffer("grid", grid, persistent=False)
        try:
            with torch.no_grad():
                shape = self._embed(torch.zeros(1, 3, CROP_SIZE, CROP_SIZE)).shape
        except (RuntimeError, IndexError) as error:
            raise ModelError(
                f"{path} does not run on (1, 3, {ARCFACE_SIZE}, {ARCFACE_SIZE}) images: {error}"
            ) from error
        if len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
            raise ModelError(f"{path} gives {tuple(shape)} for one face; a face embedding gives (1, D)")

    def align(self, image: Tensor) -> Tensor:
        """Crops (B, 3, 512, 512) in [-1, 1] as scaled input (B, 3, 112, 112) of the embedding."""
        reach = self.taps.shape[-1] // 2
        x = F.pad(image.float() * 0.5 + 0.5, (reach,) * 4, "reflect")
        x = F.conv2d(F.conv2d(x, self.taps, groups=3), self.taps.transpose(2, 3), groups=3)
        face = F.grid_sample(
            x, self.grid.expand(x.shape[0], -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=True
        )
        return (face - self.mean) / self.std

    def _embed(self, image: Tensor) -> Tensor:
        faces = self.align(image)
        return torch.cat([self.net(face) for face in torch.split(faces, self.net.batch or len(faces))])

    def embed(self, image: Tensor) -> Tensor:
        """Unit embeddings (B, D) of crops (B, 3, 512, 512) in [-1, 1]."""
        return F.normalize(self._embed(image), dim=1)

    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        """Distance per pair; gradients flow into `image` only."""
        with torch.no_grad():
            wanted = self.embed(truth)
        return 1 - (self.embed(image) * wanted).sum(1)
