"""Short clips out of stills: a head that moves in front of a camera, and what alignment and light leave of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from streamfix.train.codecs import Picture, Rng


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How one frame of a clip differs from the still.

    residue: float64 (2, 3), still -> aligned crop, what alignment left over. motion: float64 (2, 3), aligned crop ->
    where the face was when the camera and the codec saw it. warp: float32 (H, W, 2), pixels by which expression moves
    the face, or None. gain: float32 (3,), light.
    """

    residue: npt.NDArray[np.float64]
    motion: npt.NDArray[np.float64]
    warp: npt.NDArray[np.float32] | None
    gain: npt.NDArray[np.float32]

    def face(self, still: Picture) -> Picture:
        """The aligned crop of this frame, undamaged."""
        height, width = still.shape[:2]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        inverse = cv2.invertAffineTransform(self.residue).astype(np.float32)
        at_x = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
        at_y = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
        if self.warp is not None:
            warp = cv2.resize(self.warp, (width, height), interpolation=cv2.INTER_CUBIC)
            at_x, at_y = at_x + warp[..., 0], at_y + warp[..., 1]
        moved = cv2.remap(still, at_x, at_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(np.clip(moved * self.gain, 0, 1), np.float32)

    def seen(self, face: Picture) -> Picture:
        """The aligned crop put where the camera saw it."""
        return self._moved(face, cv2.INTER_CUBIC)

    def aligned(self, picture: Picture) -> Picture:
        """The inverse of `seen`, as alignment cuts faces out."""
        return self._moved(picture, cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)

    def _moved(self, picture: Picture, flags: int) -> Picture:
        height, width = picture.shape[:2]
        moved = cv2.warpAffine(picture, self.motion, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(np.clip(moved, 0, 1), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """How lively clips are; sigmas of normal distributions, per frame.

    pan: pixels, turn: degrees, zoom: log of a factor: steady motion of the head. shake: pixels, of a hand-held camera.
    residue: pixels, what alignment misses (turn and scale in proportion). expression: pixels. light: relative.
    spread: log of a factor by which a clip as a whole is livelier than all that, or calmer. still: chance of a clip in
    which nothing moves but the noise. cut: chance that the frames before the last are another face's.
    """

    pan: float = 2.0
    turn: float = 0.3
    zoom: float = 0.003
    shake: float = 0.4
    residue: float = 0.15
    expression: float = 0.7
    light: float = 0.01
    spread: float = 0.0
    still: float = 0.25
    cut: float = 0.08

    def draw(self, count: int, rng: Rng) -> list[Pose]:
        """Poses of the frames of a clip, for square windows of any size."""
        lively = 0.0 if rng.random() < self.still else 1.0
        if lively and self.spread:  # a draw of its own: without spread a seed gives the clips that it always gave
            lively = math.exp(rng.normal(0, self.spread))
        pan, turn, zoom = rng.normal(0, self.pan, 2), rng.normal(0, self.turn), rng.normal(0, self.zoom)
        light = rng.normal(0, self.light, 3) + rng.normal(0, self.light)
        bend = rng.normal(0, self.expression, (6, 6, 2)) if rng.random() < 0.5 else None
        poses = []
        for t in range(count):
            shift = lively * (pan * t + rng.normal(0, self.shake, 2))
            wrong = lively * rng.normal(0, self.residue, 4)  # x, y; and at a radius of 200 pixels: turn, scale
            poses.append(
                Pose(
                    residue=_similarity(wrong[2] / 200, wrong[3] / 200, wrong[:2]),
                    motion=_similarity(lively * math.radians(turn) * t, lively * zoom * t, shift),
                    warp=None if bend is None or not lively else (lively * bend * (t / count)).astype(np.float32),
                    gain=np.exp(lively * light * t).astype(np.float32),
                )
            )
        return poses


def _similarity(angle: float, log_scale: float, shift: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """About the middle of a window of any size, as far as small angles care: the middle of 512."""
    c, s = math.cos(angle) * math.exp(log_scale), math.sin(angle) * math.exp(log_scale)
    linear = np.array([[c, -s], [s, c]])
    centre = np.array([255.5, 255.5])
    return np.hstack([linear, (centre - linear @ centre + shift)[:, None]])
