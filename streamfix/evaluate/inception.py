"""The Inception-v3 by which FID is measured: TensorFlow's network of 2015-12-05, as pytorch-fid and BasicSR run it.

pytorch-fid, torch-fidelity and pyiqa have the same network, but none of them imports without torchvision. The weights are
theirs: pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or weights-inception-2015-12-05-6726825d.pth of
torch-fidelity (Apache-2.0, the same tensors). Architecture: Szegedy et al. 2015, arXiv 1512.00567.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.evaluate.frechet import Features
from streamfix.files import check_file

_SIDE = 299
_Size = int | tuple[int, int]


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: _Size, stride: int = 1, padding: _Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)  # TensorFlow's average leaves the border out


class _A(nn.Module):
    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(inputs, 48, 1), _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 64, 1), _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), five, three, self.branch_pool(_pooled(x))), 1)


class _B(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 64, 1), _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), three, F.max_pool2d(x, 3, 2)), 1)


class _C(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        wide, high = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, width, 1)
        self.branch7x7_2 = _Conv(width, width, wide[0], padding=wide[1])
        self.branch7x7_3 = _Conv(width, 192, high[0], padding=high[1])
        self.branch7x7dbl_1 = _Conv(768, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, high[0], padding=high[1])
        self.branch7x7dbl_3 = _Conv(width, width, wide[0], padding=wide[1])
        self.branch7x7dbl_4 = _Conv(width, width, high[0], padding=high[1])
        self.branch7x7dbl_5 = _Conv(width, 192, wide[0], padding=wide[1])
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat((self.branch1x1(x), seven, twice, self.branch_pool(_pooled(x))), 1)


class _D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(768, 192, 1), _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(768, 192, 1), _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat((self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)), 1)


class _E(nn.Module):
    def __init__(self, inputs: int, *, largest: bool) -> None:
        super().__init__()
        wide, high = ((1, 3), (0, 1)), ((3, 1), (1, 0))
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, wide[0], padding=wide[1])
        self.branch3x3_2b = _Conv(384, 384, high[0], padding=high[1])
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(inputs, 448, 1), _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, wide[0], padding=wide[1])
        self.branch3x3dbl_3b = _Conv(384, 384, high[0], padding=high[1])
        self.branch_pool = _Conv(inputs, 192, 1)
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        # the last block of the published graph takes the largest value where the paper has the average
        pooled = F.max_pool2d(x, 3, 1, 1) if self.largest else _pooled(x)
        parts = (self.branch3x3_2a(three), self.branch3x3_2b(three), self.branch3x3dbl_3a(twice))
        return torch.cat((self.branch1x1(x), *parts, self.branch3x3dbl_3b(twice), self.branch_pool(pooled)), 1)


class InceptionNet(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 2048); tensors are named as in the published files, without `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Conv(3, 32, 3, stride=2), _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = _Conv(64, 80, 1), _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _C(128), _C(160), _C(160), _C(192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _D(), _E(1280, largest=False), _E(2048, largest=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for name, layer in self.named_children():  # in order; the stem is pooled twice on the way
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean((2, 3))


class Inception:
    """FID's features of pictures. path: the weight file (see the module). Raises ModelError for another file."""

    def __init__(self, path: Path, *, device: torch.device | None = None) -> None:
        with torch.device("meta"):
            self._net = InceptionNet()
        check_file(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            kept = {key: state[key] for key in self._net.state_dict() if key in state}
            if len(kept) < sum(1 for key in self._net.state_dict() if not key.endswith("num_batches_tracked")):
                raise KeyError("tensors are missing")
            kept |= {k: torch.zeros((), dtype=torch.long) for k in self._net.state_dict() if k not in kept}
            self._net.load_state_dict(kept, assign=True)
        except (OSError, RuntimeError, KeyError, AttributeError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ModelError(
                f"{path} is not the Inception of FID; give pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
            ) from error
        self._device = device or torch.device("cpu")
        self._net.to(self._device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Features:
        """(B, 3, H, W), RGB in [0, 1] -> float64 (B, 2048). Resized to 299x299 bilinearly, as pytorch-fid does."""
        x = pictures.to(self._device, torch.float32)
        if x.shape[2:] != (_SIDE, _SIDE):
            x = F.interpolate(x, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
        return np.asarray(self._net(2 * x - 1).double().cpu().numpy())
