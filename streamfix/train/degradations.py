"""What cameras, codecs and years do to a face: clean RGB in, degraded RGB of the same size out.

`paper` and `heavy` are the published InterLCM recipe (blur, downscale, noise, JPEG, back up) with its two ranges; the
others are what real video has. They work on clips: the choices are made once, as a camera or a tape keeps its faults,
while noise, scratches and the codec's errors are new in every frame. Every random choice comes from the numpy Generator
that is passed in, so one seed gives one result. Images are float32 (H, W, 3), RGB in [0, 1]; H and W are any size from
32 up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from streamfix.errors import UsageError
from streamfix.media.color import BORDER_RGB
from streamfix.train.codecs import Clip, Picture, Rng, coded, jpeg, video
from streamfix.train.motion import Pose


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Ranges of the published degradation; each value is drawn uniformly.

    sigma: of the Gaussian blur in pixels. scale: factor of the bilinear downscale. noise: sigma in 1/255. jpeg:
    quality.
    """

    sigma: tuple[float, float]
    scale: tuple[float, float]
    noise: tuple[float, float]
    jpeg: tuple[int, int]


PAPER = Recipe(sigma=(0.1, 10.0), scale=(1.0, 12.0), noise=(0.0, 15.0), jpeg=(60, 100))
HEAVY = Recipe(sigma=(1.0, 15.0), scale=(4.0, 30.0), noise=(0.0, 20.0), jpeg=(30, 80))
MILD = Recipe(sigma=(0.1, 1.0), scale=(1.0, 2.0), noise=(0.0, 4.0), jpeg=(80, 100))


KERNEL = 41
"""Taps of the published Gaussian along a side."""


def alike(operation: Callable[[Picture, Rng], Picture], frames: Sequence[Picture], rng: Rng) -> Clip:
    """Apply an operation with the same random choices to every frame."""
    state = rng.bit_generator.state
    changed = []
    for frame in frames:
        rng.bit_generator.state = state
        changed.append(operation(frame, rng))
    return changed


def published(frames: Sequence[Picture], recipe: Recipe, rng: Rng) -> Clip:
    """Blur, bilinear downscale, noise, JPEG, bilinear back up: the recipe of GFPGAN, CodeFormer and InterLCM."""
    height, width = frames[0].shape[:2]
    x = alike(lambda f, r: gaussian_blur(f, recipe.sigma, r), frames, rng)
    factor = rng.uniform(*recipe.scale)
    small = (max(2, int(width / factor)), max(2, int(height / factor)))
    x = [_float(cv2.resize(f, small, interpolation=cv2.INTER_LINEAR)) for f in x]
    sigma = rng.uniform(*recipe.noise)
    x = [sensor_noise(f, sigma, rng) for f in x]
    quality = int(rng.integers(recipe.jpeg[0], recipe.jpeg[1] + 1))
    return [_unit(cv2.resize(jpeg(f, quality), (width, height), interpolation=cv2.INTER_LINEAR)) for f in x]


def gaussian_blur(image: Picture, sigma: tuple[float, float], rng: Rng, kernel: int = KERNEL) -> Picture:
    """A 41-tap Gaussian: with even chance isotropic, or of two sigmas turned by a random angle."""
    first, second, angle = rng.uniform(*sigma), rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)
    if rng.random() < 0.5:
        line = cv2.getGaussianKernel(kernel, first, cv2.CV_32F)
        return _float(cv2.sepFilter2D(image, -1, line, line, borderType=cv2.BORDER_REFLECT_101))
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    inverse = turn @ np.diag([first**-2, second**-2]) @ turn.T
    axis = np.arange(kernel) - kernel // 2
    x, y = np.meshgrid(axis, axis)
    weight = np.exp(-0.5 * (inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y))
    taps = (weight / weight.sum()).astype(np.float32)
    return _float(cv2.filter2D(image, -1, taps, borderType=cv2.BORDER_REFLECT_101))


def sensor_noise(image: Picture, sigma: float, rng: Rng) -> Picture:
    """White Gaussian noise of `sigma` in 1/255, equal in all channels' strength, not in their values."""
    return _unit(image + rng.standard_normal(image.shape, np.float32) * np.float32(sigma / 255))


def low_light(frames: Sequence[Picture], rng: Rng) -> Clip:
    """Shot and read noise that hits the shadows, half of it blotchy as after a camera's own noise reduction."""
    strength = np.float32(rng.uniform(2, 14) / 255)
    soft = rng.uniform(0.5, 1.2) if rng.random() < 0.5 else None

    def noisy(image: Picture) -> Picture:
        grain = rng.standard_normal(image.shape, np.float32)
        if soft is not None:
            grain = _float(cv2.GaussianBlur(grain, (0, 0), soft)) * np.float32(2)
        return _unit(image + grain * strength * (np.float32(1.3) - image))

    return [noisy(f) for f in frames]


def motion_blur(image: Picture, rng: Rng) -> Picture:
    """A straight camera or head shake of 3 to 21 pixels."""
    length, angle = rng.uniform(3, 21), rng.uniform(0, math.pi)
    size = int(length) | 1
    taps = np.zeros((size + 2, size + 2), np.float32)
    centre = (size + 1) / 2
    dx, dy = math.cos(angle) * length / 2, math.sin(angle) * length / 2
    for t in np.linspace(-1, 1, 4 * size):
        x, y = centre + t * dx, centre + t * dy
        ix, iy = int(x), int(y)
        fx, fy = x - ix, y - iy
        for jx, jy, w in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
            taps[min(iy + jy, size + 1), min(ix + jx, size + 1)] += w
    return _float(cv2.filter2D(image, -1, taps / taps.sum(), borderType=cv2.BORDER_REFLECT_101))


def sharpening_halo(image: Picture, rng: Rng) -> Picture:
    """The overshoot of a camera's or player's sharpening."""
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2.5))
    return _unit(image + (image - soft) * np.float32(rng.uniform(0.5, 2.0)))


def chroma_subsampling(image: Picture, rng: Rng) -> Picture:
    """Colour at a half to an eighth of the resolution, as in 4:2:0 and analogue sources."""
    ycc = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    height, width = ycc.shape[:2]
    factor = int(rng.choice((2, 4, 8)))
    small = cv2.resize(ycc, (max(2, width // factor), max(2, height // factor)), interpolation=cv2.INTER_AREA)
    ycc[..., 1:] = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)[..., 1:]
    return _unit(cv2.cvtColor(ycc, cv2.COLOR_YCrCb2RGB))


def interlaced(image: Picture, rng: Rng) -> Picture:
    """The comb of two fields of a moving picture, woven into one frame or half blended by a cheap deinterlacer."""
    height, width = image.shape[:2]
    shift = np.array([[1, 0, rng.normal(0, 3)], [0, 1, rng.normal(0, 0.5)]], np.float32)
    field = _float(cv2.warpAffine(image, shift, (width, height), borderMode=cv2.BORDER_REFLECT_101))
    woven = image.copy()
    woven[1::2] = field[1::2]
    if rng.random() < 0.5:
        line = np.array([[0.25], [0.5], [0.25]], np.float32)
        woven = _float(cv2.filter2D(woven, -1, line, borderType=cv2.BORDER_REFLECT_101))
    return woven


def scratches(image: Picture, rng: Rng) -> Picture:
    """Scratches, creases and dust of an old photograph or film: thin lines and specks, bright or dark."""
    height, width = image.shape[:2]
    cover = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.normal(math.pi / 2, 0.5)
        reach = rng.uniform(0.1, 1.0) * height
        ends = [(round(x + k * math.cos(angle) * reach), round(y + k * math.sin(angle) * reach)) for k in (-0.5, 0.5)]
        cv2.line(cover, ends[0], ends[1], rng.uniform(0.3, 0.9), int(rng.integers(1, 3)), cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 20))):
        at = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(cover, at, int(rng.integers(1, 3)), rng.uniform(0.3, 0.9), -1, cv2.LINE_AA)
    tone = np.float32(rng.choice((0.05, 0.9)))
    return _unit(image + (tone - image) * np.minimum(cover, 1)[..., None])


def footage(frames: Sequence[Picture], rng: Rng) -> Clip:
    """A face in real video: optics and shake, few pixels, sensor noise, the camera's sharpening, a codec, back up."""
    height, width = frames[0].shape[:2]
    x = list(frames)
    if rng.random() < 0.6:
        x = alike(lambda f, r: gaussian_blur(f, (0.2, 5.0), r), x, rng)
    if rng.random() < 0.2:
        x = alike(motion_blur, x, rng)
    factor = math.exp(rng.uniform(0.0, math.log(10.0)))
    small = (max(32, int(width / factor)), max(32, int(height / factor)))
    shrink = cv2.INTER_AREA if rng.random() < 0.5 else cv2.INTER_LINEAR
    x = [_float(cv2.resize(f, small, interpolation=shrink)) for f in x]
    if rng.random() < 0.6:
        if rng.random() < 0.5:
            x = low_light(x, rng)
        else:
            sigma = rng.uniform(0, 10)
            x = [sensor_noise(f, sigma, rng) for f in x]
    if rng.random() < 0.2:
        x = alike(sharpening_halo, x, rng)
    if rng.random() < 0.2:
        x = alike(chroma_subsampling, x, rng)
    if min(small) >= 64 and rng.random() < 0.08:
        x = [interlaced(f, rng) for f in x]
    if rng.random() < 0.7:
        x = video(x, rng)
    elif rng.random() < 0.7:
        quality = int(rng.integers(20, 95))
        x = [jpeg(f, quality) for f in x]
    grow = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[int(rng.integers(3))]
    return [_unit(cv2.resize(f, (width, height), interpolation=grow)) for f in x]


def starved(frames: Sequence[Picture], rng: Rng) -> Clip:
    """A face in a clip that was coded at too low a bit rate: a little blur, few pixels, noise, H.264."""
    height, width = frames[0].shape[:2]
    x = alike(lambda f, r: gaussian_blur(f, (0.5, 2.5), r), frames, rng)
    factor = rng.uniform(2, 4)
    x = [_float(cv2.resize(f, (int(width / factor), int(height / factor)), interpolation=cv2.INTER_AREA)) for f in x]
    sigma, crf = rng.uniform(2, 6), int(rng.integers(28, 36))
    x = coded([sensor_noise(f, sigma, rng) for f in x], "libx264", {"crf": str(crf), "preset": "veryfast", "bf": "0"})
    return [_unit(cv2.resize(f, (width, height), interpolation=cv2.INTER_CUBIC)) for f in x]


def greyscale(image: Picture) -> Picture:
    """Luma in all three channels."""
    return _float(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def beyond_the_frame(shape: tuple[int, int], rng: Rng) -> npt.NDArray[np.bool_]:
    """Mask (H, W) of the part of a crop beyond the frame: one side, slightly turned, up to half the crop."""
    height, width = shape
    angle = rng.choice((0.0, 0.5, 1.0, 1.5)) * math.pi + rng.normal(0, 0.15)
    depth = rng.uniform(0.0, 0.5)
    y, x = np.mgrid[0:height, 0:width]
    along = (x / width - 0.5) * math.cos(angle) + (y / height - 0.5) * math.sin(angle)
    return np.asarray(along > 0.5 - depth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How often each kind is drawn in training (weights, need not sum to one), and the chances of what comes on top.

    grey: greyscale; old: of these, the share with scratches. border: a part of the crop lies beyond the frame. Raises
    UsageError for weights of which none can be drawn.
    """

    paper: float = 0.4
    heavy: float = 0.2
    footage: float = 0.3
    mild: float = 0.08
    none: float = 0.02
    grey: float = 0.05
    old: float = 0.4
    border: float = 0.06

    def __post_init__(self) -> None:
        if not (min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf):
            raise UsageError(
                "paper, heavy, footage, mild and none of a mixture are numbers from 0, and not all of them 0: "
                f"they cannot be {', '.join(f'{w:g}' for w in self.weights)}"
            )

    @property
    def weights(self) -> tuple[float, float, float, float, float]:
        """Of paper, heavy, footage, mild and none."""
        return self.paper, self.heavy, self.footage, self.mild, self.none

    def degrade(self, clean: Sequence[Picture], rng: Rng, poses: Sequence[Pose] = ()) -> tuple[Clip, Clip]:
        """(clean, degraded) clips: greyscale and borders belong to the truth as well, so it comes back too.

        poses: of the frames, where the camera did not see them aligned.
        """
        weights = np.array(self.weights)
        kind = int(rng.choice(len(weights), p=weights / weights.sum()))
        grey = rng.random() < self.grey
        truth = [greyscale(f) for f in clean] if grey else list(clean)
        x = [pose.seen(f) for pose, f in zip(poses, truth, strict=True)] if poses else truth
        if grey and rng.random() < self.old:
            x = [scratches(f, rng) for f in x]
        if kind == 2:
            x = footage(x, rng)
        elif kind != 4:
            x = published(x, (PAPER, HEAVY, PAPER, MILD)[kind], rng)
        if poses:
            x = [pose.aligned(f) for pose, f in zip(poses, x, strict=True)]
        if rng.random() < self.border:
            outside = beyond_the_frame(clean[0].shape[:2], rng)
            truth, x = ([_masked(f, outside) for f in clip] for clip in (truth, x))
        return truth, x


def _masked(image: Picture, outside: npt.NDArray[np.bool_]) -> Picture:
    masked = image.copy()
    masked[outside] = BORDER_RGB
    return masked


def _unit(image: npt.ArrayLike) -> Picture:
    return np.clip(np.asarray(image, np.float32), 0.0, 1.0)


def _float(image: npt.ArrayLike) -> Picture:
    return np.asarray(image, np.float32)
