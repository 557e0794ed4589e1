"""Does the restored face still look like the same person: a loss over a face embedding that the user brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.faces.align import ARCFACE_BLUR, ARCFACE_SIZE, apply, arcface_matrix, invert
from streamfix.faces.embedding import NORMS, check_norm
from streamfix.train.onnx_net import OnnxNet
from streamfix.types import CROP_SIZE


class IdentityLoss(nn.Module):
    """1 - cosine of face embeddings between aligned 512x512 images in [-1, 1]: (B, 3, 512, 512) x 2 -> (B,), 0..2.

    path: ONNX with input (1 or any, 3, 112, 112), RGB, ArcFace alignment. norm: a key of NORMS. The alignment is the
    fixed matrix, blur and sampling that `evaluate` measures identity with. Frozen, float32. Raises what OnnxNet does,
    UsageError for another norm, and ModelError for a network that does not make one vector of such an input.
    """

    def __init__(self, path: Path, *, norm: str = "arcface") -> None:
        super().__init__()
        check_norm(norm)
        self.net = OnnxNet(path)
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), NORMS[norm], strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.rows: Tensor
        self.columns: Tensor
        middle = np.full(ARCFACE_SIZE, ARCFACE_SIZE // 2)
        line = np.arange(ARCFACE_SIZE)
        # where in the crop the input's rows and columns lie: templates are turned against each other by 0.01 degrees only
        places = invert(arcface_matrix())
        for name, at in (
            ("rows", apply(places, np.stack((middle, line), -1))[:, 1]),
            ("columns", apply(places, np.stack((line, middle), -1))[:, 0]),
        ):
            self.register_buffer(name, _sampled(torch.from_numpy(at).float()), persistent=False)
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
        face = self.rows @ (image.float() * 0.5 + 0.5) @ self.columns.T
        return (face - self.mean) / self.std

    def _embed(self, image: Tensor) -> Tensor:
        faces = self.align(image)
        if self.net.batch == 1:  # as most are exported; one by one a GPU would spend more time on them than on all else
            one_by_one = torch.func.vmap(lambda face: self.net(face[None])[0])
            return one_by_one(faces)  # type: ignore[no-any-return]
        return torch.cat([self.net(face) for face in torch.split(faces, self.net.batch or len(faces))])

    def embed(self, image: Tensor) -> Tensor:
        """Unit embeddings (B, D) of crops (B, 3, 512, 512) in [-1, 1]."""
        return F.normalize(self._embed(image), dim=1)

    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        """Distance per pair; gradients flow into `image` only."""
        with torch.no_grad():
            wanted = self.embed(truth)
        return 1 - (self.embed(image) * wanted).sum(1)


def _sampled(places: Tensor) -> Tensor:
    """(N,) places along a side of a crop -> (N, 512): blur, mirrored at the border, and linear interpolation, as one matrix."""
    reach = round(ARCFACE_BLUR * 4)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / ARCFACE_BLUR) ** 2)
    padded = F.pad(torch.eye(CROP_SIZE)[:, None], (reach, reach), "reflect")
    blurred = F.conv1d(padded, (taps / taps.sum()).view(1, 1, -1))[:, 0].T  # row i: what the blurred pixel i is made of
    places = places.clamp(0, CROP_SIZE - 1)
    below = places.floor().clamp(max=CROP_SIZE - 2)
    share = (places - below)[:, None]
    first = below.long()
    return blurred[first] * (1 - share) + blurred[first + 1] * share
