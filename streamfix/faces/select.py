"""Which of the followed faces to restore: all, the largest, the one in the centre, or one person by a reference photo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import InputError, ModelError, UsageError
from streamfix.faces.align import Similarity
from streamfix.faces.detect import DEFAULT_PACK, Detector
from streamfix.types import CROP_SIZE, Frame, Placement

_NOBODY: frozenset[int] = frozenset()
_MARGIN = 1.25
"""A rival must be so many times larger, or nearer to the centre, to take the place of the face that has been chosen."""
_SIZE_MARGIN = 0.9
FACE_SHARE = 0.6
"""Size of a detected face (square root of its box's area) as a share of its crop's side."""
_SAME = 0.35
_STILL_SAME = 0.2
"""Cosines of ArcFace embeddings: above the first it is the person; a face that has been stays down to the second."""


class Selector(Protocol):
    """Decides whom to restore. It holds no state: what was chosen before comes in."""

    def choose(
        self, frame: Frame, placements: Sequence[Placement], *, current: frozenset[int] = _NOBODY
    ) -> list[Placement]:
        """Those of the placements to restore, in their order.

        current: ids chosen in the previous frame, which are favoured so that the choice does not flip to and fro; empty
        for a picture that stands alone.
        """


def size_of(placement: Placement) -> float:
    """Size of the face in source pixels (about the square root of its box's area)."""
    return float(np.exp(Similarity.of(placement.matrix).log_scale)) * CROP_SIZE * FACE_SHARE


class SelectAll:
    """Every face of at least min_size source pixels."""

    def __init__(self, *, min_size: float = 0.0) -> None:
        if not (np.isfinite(min_size) and min_size >= 0):
            raise UsageError(f"the smallest face to restore must be 0 or more source pixels, not {min_size:g}")
        self.min_size = min_size

    def choose(
        self, frame: Frame, placements: Sequence[Placement], *, current: frozenset[int] = _NOBODY
    ) -> list[Placement]:
        """See Selector."""
        return [p for p in placements if size_of(p) >= self.min_size * (_SIZE_MARGIN if p.track_id in current else 1.0)]


class SelectOne(SelectAll):
    """The one face with the highest merit."""

    def choose(
        self, frame: Frame, placements: Sequence[Placement], *, current: frozenset[int] = _NOBODY
    ) -> list[Placement]:
        """See Selector."""
        large = super().choose(frame, placements, current=current)
        if not large:
            return []
        return [max(large, key=lambda p: self.merit(frame, p) * (_MARGIN if p.track_id in current else 1.0))]

    def merit(self, frame: Frame, placement: Placement) -> float:
        """Positive; higher is better."""
        raise NotImplementedError


class SelectLargest(SelectOne):
    """The largest face."""

    def merit(self, frame: Frame, placement: Placement) -> float:
        """Size in pixels."""
        return size_of(placement)


class SelectCenter(SelectOne):
    """The face nearest to the middle of the frame."""

    def merit(self, frame: Frame, placement: Placement) -> float:
        """Inverse distance; within a twentieth of the diagonal all are equally central."""
        place = Similarity.of(placement.matrix)
        distance = float(np.hypot(place.cx - (frame.width - 1) / 2, place.cy - (frame.height - 1) / 2))
        return 1.0 / (distance + 0.05 * float(np.hypot(frame.width, frame.height)))


class SelectPerson(SelectAll):
    """The person of a reference photo: in each frame at most one face, the likest.

    embedding: float32 (D,) of unit length.
    """

    def __init__(self, embedding: npt.NDArray[np.float32], *, min_size: float = 0.0) -> None:
        super().__init__(min_size=min_size)
        self.embedding = embedding

    def choose(
        self, frame: Frame, placements: Sequence[Placement], *, current: frozenset[int] = _NOBODY
    ) -> list[Placement]:
        """See Selector. A face that is interpolated has no embedding: it stays what it was."""
        best: tuple[float, Placement] | None = None
        for placement in super().choose(frame, placements, current=current):
            was = placement.track_id in current
            face = placement.face
            likeness = _SAME if was else -1.0
            if face is not None and face.embedding is not None:
                likeness = float(self.embedding @ face.embedding)
            if likeness >= (_STILL_SAME if was else _SAME):
                likeness += _SAME - _STILL_SAME if was else 0.0
                if best is None or likeness > best[0]:
                    best = likeness, placement
        return [] if best is None else [best[1]]


def parse_select(spec: str, detector: Detector, *, min_size: float = 0.0) -> Selector:
    """The selector of that name: "all", "largest", "center", or the path of a photo of the person to restore.

    min_size: leave faces smaller than this many source pixels. A photo needs a detector that gives embeddings (an insightface
    pack). Raises UsageError for an unknown name, InputError for an unreadable photo or one without a face, ModelError
    where the detector gives no embeddings.
    """
    match spec:
        case "all":
            return SelectAll(min_size=min_size)
        case "largest":
            return SelectLargest(min_size=min_size)
        case "center" | "centre":
            return SelectCenter(min_size=min_size)
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UsageError(f"faces must be all, largest, center or the path of a photo, and there is no file {spec!r}")
    return SelectPerson(_reference(path, detector), min_size=min_size)


def _reference(path: Path, detector: Detector) -> npt.NDArray[np.float32]:
    """The embedding of the largest face of a photo."""
    if not getattr(detector, "has_embeddings", False):
        raise ModelError(
            f"telling people apart by a photo needs an insightface pack with a recognition model, and {detector.name} has none; "
            f"run `streamfix models pull {DEFAULT_PACK}` and choose --detector insightface"
        )
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise InputError(f"{path} is not a picture that can be read; give a JPEG or PNG photo of the person")
    faces = [f for f in detector.detect(np.ascontiguousarray(image[..., ::-1])) if f.score >= 0.5]
    if not faces:
        raise InputError(f"no face is found in {path}; give a photo that shows the person's face clearly")
    embedding = max(faces, key=lambda f: f.size).embedding
    if embedding is None:
        raise InputError(f"the face in {path} gives no embedding; give a sharper photo of the person")
    return embedding
