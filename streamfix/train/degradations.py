"""What cameras, codecs and years do to a face: clean RGB in, degraded RGB of the same size out.

`paper` and `heavy` are the published InterLCM recipe (blur, downscale, noise, JPEG, back up) with its two ranges; the
others are what real video has. Every random choice comes from the numpy Generator that is passed in, so one seed gives
one result. Images are float32 (H, W, 3), RGB in [0, 1]; H and W are any size from 32 up.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import av
import cv2
import numpy as np
import numpy.typing as npt

from streamfix.media.color import BORDER_RGB

Picture: TypeAlias = npt.NDArray[np.float32]
Rng: TypeAlias = np.random.Generator


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


def published(image: Picture, recipe: Recipe, rng: Rng) -> Picture:
    """Blur, bilinear downscale, noise, JPEG, bilinear back up: the recipe of GFPGAN, CodeFormer and InterLCM."""
    height, width = image.shape[:2]
    x = gaussian_blur(image, recipe.sigma, rng)
    factor = rng.uniform(*recipe.scale)
    small = (max(2, int(width / factor)), max(2, int(height / factor)))
    x = _float(cv2.resize(x, small, interpolation=cv2.INTER_LINEAR))
    x = sensor_noise(x, rng.uniform(*recipe.noise), rng)
    x = jpeg(x, int(rng.integers(recipe.jpeg[0], recipe.jpeg[1] + 1)))
    return _unit(cv2.resize(x, (width, height), interpolation=cv2.INTER_LINEAR))


def gaussian_blur(image: Picture, sigma: tuple[float, float], rng: Rng, kernel: int = 41) -> Picture:
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


def low_light(image: Picture, rng: Rng) -> Picture:
    """Shot and read noise that hits the shadows, half of it blotchy as after a camera's own noise reduction."""
    strength = rng.uniform(2, 14) / 255
    grain = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.5:
        grain = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.5, 1.2)) * 2.0
    return _unit(image + grain * np.float32(strength) * (1.3 - image))


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


def jpeg(image: Picture, quality: int) -> Picture:
    """One JPEG round trip (4:2:0) at a quality of 1 to 100."""
    bgr = cv2.cvtColor(_bytes(image), cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return _float(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)) / np.float32(255)


def video(image: Picture, rng: Rng) -> Picture:
    """The last frame of a short clip, in which the picture drifts to rest, after a real encoder at a low rate.

    H.264, MPEG-2 or MPEG-4 part 2. The last frames are predicted ones, with the smear and blocks that stills never
    show.
    """
    height, width = image.shape[:2]
    codec = str(rng.choice(("libx264", "libx264", "libx264", "mpeg2video", "mpeg4")))
    count = int(rng.integers(2, 5))
    step = rng.normal(0, 1.5, 2)
    frames = []
    for i in range(count):
        back = count - 1 - i  # the last frame is the picture itself, unmoved
        shift = np.array([[1, 0, step[0] * back], [0, 1, step[1] * back]], np.float32)
        moved = image if not back else cv2.warpAffine(image, shift, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        frames.append(_bytes(_float(moved)))
    options: dict[str, str] = (
        {"crf": str(int(rng.integers(22, 39))), "preset": "veryfast", "threads": "1", "bf": "0"}
        if codec == "libx264"
        else {"qmin": (q := str(rng.integers(3, 17))), "qmax": q, "threads": "1"}
    )
    return _last_frame(frames, codec, options)


def _last_frame(frames: list[npt.NDArray[np.uint8]], codec: str, options: dict[str, str]) -> Picture:
    height, width = frames[0].shape[:2]
    even = (height + height % 2, width + width % 2)  # 4:2:0 has no odd sizes
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=Fraction(25), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = even[0], even[1], "yuv420p"
        for rgb in frames:
            padded = np.pad(rgb, ((0, even[0] - height), (0, even[1] - width), (0, 0)), mode="edge")
            out.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        out.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as source:
        last = None
        for frame in source.decode(video=0):
            last = frame
    assert last is not None
    return _float(last.to_ndarray(format="rgb24")[:height, :width]) / np.float32(255)


def footage(image: Picture, rng: Rng) -> Picture:
    """A face in real video: optics and shake, few pixels, sensor noise, the camera's sharpening, a codec, back up."""
    height, width = image.shape[:2]
    x = image
    if rng.random() < 0.6:
        x = gaussian_blur(x, (0.2, 5.0), rng)
    if rng.random() < 0.2:
        x = motion_blur(x, rng)
    factor = math.exp(rng.uniform(0.0, math.log(10.0)))
    small = (max(32, int(width / factor)), max(32, int(height / factor)))
    shrink = cv2.INTER_AREA if rng.random() < 0.5 else cv2.INTER_LINEAR
    x = _float(cv2.resize(x, small, interpolation=shrink))
    if rng.random() < 0.6:
        x = low_light(x, rng) if rng.random() < 0.5 else sensor_noise(x, rng.uniform(0, 10), rng)
    if rng.random() < 0.2:
        x = sharpening_halo(x, rng)
    if rng.random() < 0.2:
        x = chroma_subsampling(x, rng)
    if rng.random() < 0.7:
        x = video(x, rng)
    elif rng.random() < 0.7:
        x = jpeg(x, int(rng.integers(20, 95)))
    grow = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[int(rng.integers(3))]
    return _unit(cv2.resize(x, (width, height), interpolation=grow))


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
    """How often each kind is drawn in training (weights, need not sum to one), and the chances of what comes on top."""

    paper: float = 0.4
    heavy: float = 0.2
    footage: float = 0.3
    mild: float = 0.08
    none: float = 0.02
    grey: float = 0.05
    border: float = 0.06

    def degrade(self, clean: Picture, rng: Rng) -> tuple[Picture, Picture]:
        """(clean, degraded): greyscale and borders belong to the truth as well, so it comes back too."""
        weights = np.array([self.paper, self.heavy, self.footage, self.mild, self.none])
        kind = int(rng.choice(len(weights), p=weights / weights.sum()))
        if rng.random() < self.grey:
            clean = greyscale(clean)
        if kind == 4:
            degraded = clean.copy()
        elif kind == 2:
            degraded = footage(clean, rng)
        else:
            degraded = published(clean, (PAPER, HEAVY, PAPER, MILD)[kind], rng)
        if rng.random() < self.border:
            outside = beyond_the_frame(clean.shape[:2], rng)
            clean = clean.copy()
            clean[outside] = degraded[outside] = BORDER_RGB
        return clean, degraded


def _bytes(image: Picture) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)


def _unit(image: npt.ArrayLike) -> Picture:
    return np.clip(np.asarray(image, np.float32), 0.0, 1.0)


def _float(image: npt.ArrayLike) -> Picture:
    return np.asarray(image, np.float32)
