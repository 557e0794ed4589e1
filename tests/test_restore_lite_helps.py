"""The shipped weights do their work on a face they never saw: the astronaut portrait of scikit-image (public domain)."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from streamfix.restore.base import Restorer, load_restorer, restore_images
from streamfix.train.degradations import MILD, PAPER, Recipe, greyscale, published

# eyes, nose and mouth corners of the portrait in its 512x512 picture, and where the FFHQ template wants them
_MARKS = np.array([[205, 106], [241, 103], [226, 126], [210, 146], [238, 143]], np.float32)
_TEMPLATE = np.array(
    [[192.98, 239.95], [318.90, 240.19], [256.63, 314.02], [201.26, 371.41], [313.09, 371.15]], np.float32
)


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """The aligned portrait, float32 (512, 512, 3) in [0, 1]; enlarged 3.6 times, so it is true at a third of that size."""
    data = pytest.importorskip("skimage.data")
    matrix, _ = cv2.estimateAffinePartial2D(_MARKS, _TEMPLATE, method=cv2.LMEDS)
    picture = np.ascontiguousarray(data.astronaut()[..., :3])
    warped = cv2.warpAffine(picture, matrix, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return warped.astype(np.float32) / 255


@pytest.fixture(scope="module")
def lite() -> Restorer:
    return load_restorer("lite", device="cpu")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """At the resolution that the portrait really has."""
    a, b = (cv2.resize(x, (160, 160), interpolation=cv2.INTER_AREA) for x in (a, b))
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def detail(image: np.ndarray) -> float:
    """Gradient energy of luma in the face itself."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[100:430, 130:380]
    return float(np.mean(np.square(np.diff(grey, axis=0))) + np.mean(np.square(np.diff(grey, axis=1))))


def test_it_is_sharper_and_no_further_from_the_truth(lite: Restorer, face: np.ndarray) -> None:
    recipe = Recipe(sigma=(2.0, 8.0), scale=(4.0, 9.0), noise=(5.0, 12.0), jpeg=(50, 80))
    degraded = [published([face], recipe, np.random.default_rng(seed))[0] for seed in range(6)]
    restored = restore_images(lite, degraded)
    assert np.mean([psnr(x, face) for x in restored]) >= np.mean([psnr(x, face) for x in degraded]) - 0.1
    for before, after in zip(degraded, restored, strict=True):
        assert psnr(after, face) >= psnr(before, face) - 1.0
        assert detail(after) > 1.3 * detail(before)


def test_colours_stay(lite: Restorer, face: np.ndarray) -> None:
    degraded = [published([face], PAPER, np.random.default_rng(seed))[0] for seed in range(4)]
    for before, after in zip(degraded, restore_images(lite, degraded), strict=True):
        assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 0.5 / 255


def test_greyscale_stays_grey(lite: Restorer, face: np.ndarray) -> None:
    grey = greyscale(published([face], PAPER, np.random.default_rng(3))[0])
    after = restore_images(lite, [grey])[0]
    assert np.ptp(after, axis=2).mean() < 4 / 255


def test_a_good_face_is_left_nearly_alone(lite: Restorer, face: np.ndarray) -> None:
    good = published([face], MILD, np.random.default_rng(1))[0]
    assert psnr(restore_images(lite, [good])[0], good) > 28
