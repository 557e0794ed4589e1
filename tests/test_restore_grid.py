"""No grid in restored faces: less of the 2- and 4-pixel patterns than photographs have, and none that keeps its phase.

The photographs are scikit-image's, at their own resolution; the faces are the sample's frames, and its astronaut degraded.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from streamfix import load_pipeline
from streamfix.evaluate.grid import lasting_grid, local_grid, weaves
from streamfix.faces.align import fit_similarity
from streamfix.faces.detect import load_detector
from streamfix.media.source import open_source
from streamfix.restore.base import restore_images
from streamfix.train.degradations import HEAVY, PAPER, published

LASTING = 0.3
"""In 8-bit levels, averaged over faces: photographs of faces reach 0.16, a grid of half a level comes to 0.44."""

SAMPLE = Path(__file__).resolve().parents[1] / "samples/webcam.mp4"


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    pictures = [getattr(data, name)() for name in ("astronaut", "coffee", "chelsea")]
    padded = [cv2.copyMakeBorder(p, 110, 110, 31, 31, cv2.BORDER_REFLECT_101) for p in pictures]
    return [
        p[(h := (p.shape[0] - 512) // 2) : h + 512, (w := (p.shape[1] - 512) // 2) : w + 512].astype(np.float32) / 255
        for p in padded
    ]


@pytest.fixture(scope="module")
def restored() -> list[np.ndarray]:
    pipeline = load_pipeline(model="lite", device="cpu")
    with open_source(SAMPLE) as source:
        placed = pipeline.place(pipeline.detect(itertools.islice(source, 20)))
        found = [crop.image for _, crops in pipeline.cut_out(placed) for crop in crops][9::10]
    photo = data.astronaut()
    face = load_detector("retinaface").detect(photo)[0]
    crop = cv2.warpAffine(photo, fit_similarity(face.landmarks), (512, 512), flags=cv2.INTER_CUBIC) / np.float32(255)
    for recipe, seed in itertools.product((PAPER, HEAVY), range(2)):
        found += published([crop], recipe, np.random.default_rng(seed))
    assert len(found) >= 6
    return restore_images(pipeline.restorer, found)


def woven(image: np.ndarray, period: int, amplitude: float = 0.5) -> np.ndarray:
    """A wave of that period across, `amplitude` 8-bit levels high."""
    wave = np.cos(2 * np.pi / period * np.arange(image.shape[1])) * amplitude / 255
    return (image + wave[None, :, None]).astype(np.float32)


def test_restored_faces_have_no_more_of_it_than_photographs(
    restored: list[np.ndarray], photographs: list[np.ndarray]
) -> None:
    assert np.mean([local_grid(x) for x in restored]) <= np.mean([local_grid(x) for x in photographs])
    assert np.mean([lasting_grid(x) for x in restored]) < LASTING


@pytest.mark.parametrize("period", [2, 4])
def test_half_a_level_of_grid_would_be_found(restored: list[np.ndarray], period: int) -> None:
    assert np.mean([lasting_grid(woven(x, period)) for x in restored]) > LASTING
    for face in restored:
        assert local_grid(woven(face, period)) > local_grid(face)


def test_the_measures_have_their_values() -> None:
    flat = np.full((512, 512, 3), 0.5, np.float32)
    assert lasting_grid(flat) == pytest.approx(0, abs=1e-4)
    assert lasting_grid(woven(flat, 4, 2.0)) == pytest.approx(2 / np.sqrt(2), rel=0.02)
    assert lasting_grid(woven(flat, 2, 2.0)) == pytest.approx(2, rel=0.02)
    assert local_grid(woven(flat, 4, 2.0)) > 1
    ramp = flat + np.linspace(-0.2, 0.2, 512, dtype=np.float32)[:, None, None]
    assert lasting_grid(ramp) < 0.01
    photograph = np.random.default_rng(0).normal(0.5, 0.03, (512, 512, 3)).astype(np.float32)
    assert lasting_grid(photograph) < 0.15  # eight levels of noise are no grid


def test_a_weave_of_any_period_is_named() -> None:
    rng = np.random.default_rng(3)
    faces = [cv2.GaussianBlur(rng.normal(0.5, 0.3, (512, 512, 3)), (0, 0), 1.0).astype(np.float32) for _ in range(6)]
    y, x = np.mgrid[:512, :512]
    pattern = (np.cos(2 * np.pi * (y / 4.4 + x / 6.7)) * 1.5 / 255)[..., None].astype(np.float32)
    clean, woven_in = weaves(faces[:3], faces[3:]), weaves([f + pattern for f in faces[:3]], faces[3:])
    assert clean[0][2] < 10 < woven_in[0][2]
    assert woven_in[0][:2] == pytest.approx((4.4, 6.7), rel=0.05)
