"""Synthetic detections for the tests of tracking: faces at chosen places, in frames without a picture worth looking at."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

import av
import numpy as np

from streamfix.faces import Detected, follow
from streamfix.faces.align import TEMPLATE, Similarity, apply, invert
from streamfix.types import Face, Frame, Placement

FPS = 25


def similarity(x: float, y: float, size: float = 100.0, angle: float = 0.0) -> Similarity:
    """The crop of a face of that size (square root of its box's area)."""
    return Similarity(cx=x, cy=y, log_scale=float(np.log(size / 0.6 / 512)), angle=angle)


def face(
    x: float,
    y: float,
    size: float = 100.0,
    *,
    angle: float = 0.0,
    score: float = 0.98,
    embedding: Sequence[float] | None = None,
    slip: tuple[float, float] = (0.0, 0.0),
) -> Face:
    """A face with its crop centred at (x, y). slip: landmarks displaced from where they should be, pixels."""
    landmarks = apply(invert(similarity(x, y, size, angle).matrix()), TEMPLATE) + slip
    half = size / 2
    return Face(
        box=np.array([x - half, y - half, x + half, y + half], dtype=np.float32),
        landmarks=landmarks.astype(np.float32),
        score=score,
        embedding=None if embedding is None else np.array(embedding, dtype=np.float32),
    )


def scene(
    faces: Iterable[Sequence[Face]], *, cuts: Sequence[int] = (), pts: Sequence[int] | None = None, fps: int = FPS
) -> list[Detected]:
    """One frame for each list of faces."""
    picture = av.VideoFrame(640, 480, "gray")
    return [
        Detected(
            frame=Frame(picture=picture, index=i, pts=i if pts is None else pts[i], time_base=Fraction(1, fps)),
            faces=list(present),
            cut=i in cuts,
        )
        for i, present in enumerate(faces)
    ]


def placed(detected: Iterable[Detected], **options) -> list[list[Placement]]:
    """Placements of every frame; the frames must come through unchanged and in order."""
    entries = list(detected)
    result = list(follow(entries, **options))
    assert [frame for frame, _ in result] == [entry.frame for entry in entries]
    assert all(a is b.frame for (a, _), b in zip(result, entries, strict=True))
    return [placements for _, placements in result]


def by_id(frames: Sequence[Sequence[Placement]]) -> dict[int, dict[int, Placement]]:
    """id -> frame -> placement."""
    result: dict[int, dict[int, Placement]] = {}
    for number, placements in enumerate(frames):
        for placement in placements:
            assert number not in result.get(placement.track_id, {}), "two placements of one id in a frame"
            result.setdefault(placement.track_id, {})[number] = placement
    return result


def centre(placement: Placement) -> np.ndarray:
    """Of the crop, in the frame."""
    found = Similarity.of(placement.matrix)
    return np.array([found.cx, found.cy])
