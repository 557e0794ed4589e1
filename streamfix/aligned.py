"""Pictures that *are* an aligned face (FFHQ, 512x512): no detection, and the whole restored face comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import InputError, UsageError
from streamfix.faces import Detected
from streamfix.faces.align import template
from streamfix.media.color import to_rgb
from streamfix.media.images import read_picture
from streamfix.pipeline import Pipeline, Report
from streamfix.restore.base import Restorer
from streamfix.types import CROP_SIZE, Crop, Face, Frame, Image, Placement, RestoredFrame

Mask = npt.NDArray[np.bool_]


def read_mask(path: Path) -> Mask:
    """What to fill: bool (512, 512), True where the picture is light (or opaque, where it has an alpha channel).

    Raises InputError where it cannot be read or marks nothing.
    """
    pixels = read_picture(path).pixels
    light = pixels if pixels.ndim == 2 else pixels[..., 3] if pixels.shape[2] == 4 else pixels.mean(axis=2)
    whole = (light > np.iinfo(pixels.dtype).max / 2).astype(np.uint8)
    mask = cv2.resize(whole, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_NEAREST).astype(bool)
    if not mask.any():
        raise InputError(f"the mask {path} marks nothing; paint white what is to be filled")
    return mask


class WholePicture:
    """A Detector for which every picture is one aligned face."""

    name = "aligned"

    def detect(self, image: Image) -> list[Face]:
        """The face that fills the picture. Raises InputError unless it is square."""
        height, width = image.shape[:2]
        if width != height:
            raise InputError(
                f"an aligned face is square, and this picture has {width}x{height} pixels; leave --aligned out"
            )
        box = np.array([0, 0, width, height], np.float32)
        return [Face(box=box, landmarks=template(width).astype(np.float32), score=1.0)]


class AlignedPipeline(Pipeline):
    """A Pipeline whose frames are aligned faces of any square size; it gives restored faces of 512x512, RGB.

    mask: bool (512, 512), what is painted white before the restorer sees it (for the inpainting model), or None.
    """

    def __init__(
        self, *, restorer: Restorer, mask: Mask | None = None, strength: float = 1.0, batch_size: int = 4
    ) -> None:
        super().__init__(
            restorer=restorer,
            detector=WholePicture(),
            strength=strength,
            lookahead=0,
            batch_size=batch_size,
            protect=False,
        )
        if mask is not None and mask.shape != (CROP_SIZE, CROP_SIZE):
            raise UsageError(f"a mask has 512x512 pixels, not {mask.shape[1]}x{mask.shape[0]}")
        self.mask = mask
        self.told["mask"] = None if mask is None else hashlib.sha256(mask.tobytes()).hexdigest()[:16]

    def detect(self, frames: Iterable[Frame]) -> Iterator[Detected]:
        """One face that fills each frame."""
        for frame in frames:
            size = np.empty((frame.height, frame.width, 3), np.uint8)
            yield Detected(frame=frame, faces=self.detector.detect(size), cut=False)

    def place(self, detected: Iterable[Detected]) -> Iterator[tuple[Frame, list[Placement]]]:
        """As place_still: there is nothing to follow, and nothing to fade."""
        return self.place_still(detected)

    def cut_out(self, placed: Iterable[tuple[Frame, list[Placement]]]) -> Iterator[tuple[Frame, list[Crop]]]:
        """The upright picture at 512x512 as the crop, painted white where the mask says so."""
        for frame, placements in placed:
            rgb: Image = np.rot90(to_rgb(frame), -(frame.rotation // 90))
            if rgb.shape[0] != CROP_SIZE:
                rgb = np.asarray(cv2.resize(rgb, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_LINEAR), np.uint8)
            image = rgb.astype(np.float32) / np.float32(255)
            if self.mask is not None:
                image[self.mask] = 1.0
            yield frame, [Crop(frame_index=frame.index, placement=p, image=image) for p in placements]

    def lay_back(
        self, restored: Iterable[RestoredFrame], *, compare: bool = False, report: Report | None = None
    ) -> Iterator[Frame]:
        """The restored faces as frames; with compare, input and output side by side."""
        for frame, ((crop, face),) in restored:
            face = crop.image + np.float32(crop.placement.strength) * (face - crop.image)
            shown = np.concatenate((crop.image, face), axis=1) if compare else face
            pixels = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)), format="rgb24"
            )
            picture.pts, picture.time_base = frame.pts, frame.time_base
            if report is not None:
                report.count(frame, [(crop.placement, crop.placement.strength)])
            yield replace(frame, picture=picture, chroma_location=None)
