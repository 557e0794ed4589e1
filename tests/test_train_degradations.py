"""Degradations: one seed one result, valid pictures, and each does what it says."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from streamfix.train import degradations as d

KINDS: dict[str, Callable[[d.Picture, d.Rng], d.Picture]] = {
    "paper": lambda x, rng: d.published(x, d.PAPER, rng),
    "heavy": lambda x, rng: d.published(x, d.HEAVY, rng),
    "mild": lambda x, rng: d.published(x, d.MILD, rng),
    "footage": d.footage,
    "video": d.video,
    "low_light": d.low_light,
    "motion_blur": d.motion_blur,
    "sharpening_halo": d.sharpening_halo,
    "chroma_subsampling": d.chroma_subsampling,
}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Something with edges, texture and colour: float32 (192, 160, 3)."""
    rng = np.random.default_rng(0)
    x = cv2.resize(rng.random((8, 8, 3), np.float32), (160, 192), interpolation=cv2.INTER_CUBIC)
    cv2.circle(x, (80, 90), 40, (0.9, 0.2, 0.3), -1)
    return np.clip(x + rng.normal(0, 0.02, x.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_one_seed_gives_one_valid_result(name: str, picture: np.ndarray) -> None:
    before = picture.copy()
    for seed in range(4):
        a, b = (KINDS[name](picture, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(a, b)
        assert a.shape == picture.shape
        assert a.dtype == np.float32
        assert a.min() >= 0.0 - (0.01 if "blur" in name else 0)
        assert a.max() <= 1.0 + (0.01 if "blur" in name else 0)
    assert np.array_equal(picture, before), "the clean picture was written to"
    results = [KINDS[name](picture, np.random.default_rng(seed)) for seed in (1, 2)]
    assert not np.array_equal(*results)


def test_heavy_is_worse_than_paper_and_paper_than_mild(picture: np.ndarray) -> None:
    def error(recipe: d.Recipe) -> float:
        pairs = (d.published(picture, recipe, np.random.default_rng(s)) for s in range(12))
        return float(np.mean([np.mean((x - picture) ** 2) for x in pairs]))

    assert error(d.MILD) < error(d.PAPER) < error(d.HEAVY)


def test_video_keeps_the_picture_in_place_and_its_colours(picture: np.ndarray) -> None:
    for seed in range(6):
        coded = d.video(picture, np.random.default_rng(seed))
        assert np.abs(coded.mean((0, 1)) - picture.mean((0, 1))).max() < 0.03
        shift, _ = cv2.phaseCorrelate(picture[..., 1].astype(np.float64), coded[..., 1].astype(np.float64))
        assert np.hypot(*shift) < 0.5


def test_odd_sizes_survive_the_codec() -> None:
    assert d.video(np.full((47, 33, 3), 0.5, np.float32), np.random.default_rng(0)).shape == (47, 33, 3)


def test_greyscale_has_one_channel_worth(picture: np.ndarray) -> None:
    assert np.ptp(d.greyscale(picture), axis=2).max() == 0


def test_chroma_subsampling_spares_luma(picture: np.ndarray) -> None:
    grey = d.greyscale(picture)
    assert np.abs(d.chroma_subsampling(grey, np.random.default_rng(0)) - grey).max() < 0.01


def test_the_mixture_and_that_grey_and_borders_are_truth_too(picture: np.ndarray) -> None:
    clean, degraded = d.Mixture(border=1.0).degrade(picture, np.random.default_rng(4))
    outside = np.all(np.isclose(clean, d.BORDER_RGB), axis=2)
    assert 0 <= outside.mean() <= 0.6
    assert np.array_equal(clean[outside], degraded[outside])
    only_none = d.Mixture(paper=0, heavy=0, footage=0, mild=0, none=1, grey=0, border=0)
    assert np.array_equal(*only_none.degrade(picture, np.random.default_rng(0)))
    usual = [d.Mixture(border=0, grey=0).degrade(picture, np.random.default_rng(s)) for s in range(20)]
    assert sum(np.array_equal(a, b) for a, b in usual) <= 3
    grey = d.Mixture(grey=1.0, border=0).degrade(picture, np.random.default_rng(0))
    assert np.ptp(grey[0], axis=2).max() == 0
