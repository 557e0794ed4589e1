"""The few things that travel through the pipeline: Frame, Face, Placement and Crop.

Geometry is always in the coordinates of the *stored* picture (before any display rotation), x to the right, y down,
in pixels, with the centre of the top left pixel at (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import av

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
"""uint8 (H, W, 3), RGB."""

CROP_SIZE = 512
"""Side of an aligned face crop, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One decoded picture with its exact place in time.

    picture: the decoder's own av.VideoFrame (its pixel format, colour tags and side data).
    index: number of the frame in its source, from 0, counting every decoded frame.
    pts: presentation time in units of time_base.
    rotation: degrees (0, 90, 180, 270) to turn the stored picture *clockwise* so that it stands upright.
    chroma_location: where subsampled chroma lies, by FFmpeg's names ("left", "center", "topleft" ...); None where the stream does
    not say.
    """

    picture: av.VideoFrame
    index: int
    pts: int
    time_base: Fraction
    rotation: int = 0
    chroma_location: str | None = None

    @property
    def time(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)

    @property
    def width(self) -> int:
        """Stored width in pixels."""
        return int(self.picture.width)

    @property
    def height(self) -> int:
        """Stored height in pixels."""
        return int(self.picture.height)


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One detection.

    box: float32 (4,), x1 y1 x2 y2. landmarks: float32 (5, 2): the eye on the left of an upright picture, the other
    eye, nose, the two mouth corners likewise. score: 0..1. embedding: float32 (D,) of unit length, or None where the detector gives none.
    """

    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    score: float
    embedding: npt.NDArray[np.float32] | None = None

    @property
    def size(self) -> float:
        """Square root of the area of the box, in source pixels."""
        x1, y1, x2, y2 = (float(v) for v in self.box)
        return math.sqrt(max(x2 - x1, 0.0) * max(y2 - y1, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one tracked face lies in one frame, after smoothing.

    matrix: float64 (2, 3), stored frame -> 512x512 FFHQ crop, a similarity.
    strength: 0 (leave the input) .. 1 (restored); carries the fades at birth and death of the track.
    face: the detection of this very frame, or None where the track is interpolated or coasts.
    embedding: float32 (D,) of unit length, of the face over its neighbouring frames, or None where the detector gives none.
    trust: 0..1, how far the landmarks are believed (faces/trust.py); strength has it in it.
    """

    track_id: int
    matrix: npt.NDArray[np.float64]
    strength: float
    face: Face | None = None
    embedding: npt.NDArray[np.float32] | None = None
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """An aligned face cut out of a frame: image float32 (512, 512, 3), RGB in [0, 1]."""

    frame_index: int
    placement: Placement
    image: npt.NDArray[np.float32]


RestoredFrame = tuple[Frame, list[tuple[Crop, npt.NDArray[np.float32]]]]
"""A frame, and each of its crops with what the restorer made of it: float32 (512, 512, 3), RGB in [0, 1]."""


Facts = dict[str, Any]
"""Plain JSON-able facts, as reports carry them."""
