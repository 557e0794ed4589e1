"""Degradations: one seed one result, valid pictures, and each does what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from streamfix.errors import UsageError
from streamfix.train import degradations as d
from streamfix.train.codecs import coded
from streamfix.train.motion import Motion

KINDS: dict[str, Callable[[d.Picture, d.Rng], d.Picture]] = {
    "paper": lambda x, rng: d.published([x], d.PAPER, rng)[0],
    "heavy": lambda x, rng: d.published([x], d.HEAVY, rng)[0],
    "mild": lambda x, rng: d.published([x], d.MILD, rng)[0],
    "footage": lambda x, rng: d.footage([x], rng)[0],
    "video": lambda x, rng: d.video([x], rng)[0],
    "low_light": lambda x, rng: d.low_light([x], rng)[0],
    "interlaced": d.interlaced,
    "scratches": d.scratches,
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


def test_codecs_give_the_same_on_any_thread() -> None:
    """x264's AVX-512 code did not: in small windows one clip in five differed from thread to thread, where the CPU has it."""
    rng = np.random.default_rng(0)
    stills = [cv2.resize(rng.random((6, 6, 3), np.float32), (34, 34), interpolation=cv2.INTER_CUBIC) for _ in range(60)]
    clips = [[np.roll(x, k, 1) + rng.normal(0, 0.02, x.shape).astype(np.float32) for k in range(3)] for x in stills]
    options = {"crf": "30", "preset": "veryfast", "bf": "0"}

    def run(_: int) -> bytes:
        return b"".join(f.tobytes() for clip in clips for f in coded(clip, "libx264", options))

    results = set()
    for k in range(4):
        with ThreadPoolExecutor(1) as pool:
            results |= set(pool.map(run, [k]))
    assert len(results) == 1


def test_heavy_is_worse_than_paper_and_paper_than_mild(picture: np.ndarray) -> None:
    def error(recipe: d.Recipe) -> float:
        pairs = (d.published([picture], recipe, np.random.default_rng(s))[0] for s in range(12))
        return float(np.mean([np.mean((x - picture) ** 2) for x in pairs]))

    assert error(d.MILD) < error(d.PAPER) < error(d.HEAVY)


def test_video_keeps_the_picture_in_place_and_its_colours(picture: np.ndarray) -> None:
    for seed in range(12):
        [coded] = d.video([picture], np.random.default_rng(seed))
        assert np.abs(coded.mean((0, 1)) - picture.mean((0, 1))).max() < 0.03
        shift, _ = cv2.phaseCorrelate(picture[..., 1].astype(np.float64), coded[..., 1].astype(np.float64))
        assert np.hypot(*shift) < 0.5


def test_odd_sizes_survive_the_codec() -> None:
    grey = np.full((47, 33, 3), 0.5, np.float32)
    for seed in range(12):
        assert [f.shape for f in d.video([grey] * 2, np.random.default_rng(seed))] == [(47, 33, 3)] * 2


def test_greyscale_has_one_channel_worth(picture: np.ndarray) -> None:
    assert np.ptp(d.greyscale(picture), axis=2).max() == 0


def test_chroma_subsampling_spares_luma(picture: np.ndarray) -> None:
    grey = d.greyscale(picture)
    assert np.abs(d.chroma_subsampling(grey, np.random.default_rng(0)) - grey).max() < 0.01


def test_the_mixture_and_that_grey_and_borders_are_truth_too(picture: np.ndarray) -> None:
    [clean], [degraded] = d.Mixture(border=1.0).degrade([picture], np.random.default_rng(4))
    outside = np.all(np.isclose(clean, d.BORDER_RGB), axis=2)
    assert 0 <= outside.mean() <= 0.6
    assert np.array_equal(clean[outside], degraded[outside])
    only_none = d.Mixture(paper=0, heavy=0, footage=0, mild=0, none=1, grey=0, border=0)
    assert np.array_equal(*only_none.degrade([picture], np.random.default_rng(0)))
    usual = [d.Mixture(border=0, grey=0).degrade([picture], np.random.default_rng(s)) for s in range(20)]
    assert sum(np.array_equal(a, b) for a, b in usual) <= 3
    [grey], _ = d.Mixture(grey=1.0, border=0).degrade([picture], np.random.default_rng(0))
    assert np.ptp(grey, axis=2).max() == 0


def test_a_camera_keeps_its_faults_but_not_its_noise(picture: np.ndarray) -> None:
    for seed in range(6):
        a, b = d.published([picture] * 2, d.PAPER, np.random.default_rng(seed))
        assert not np.array_equal(a, b)
        noiseless = d.Recipe(sigma=d.PAPER.sigma, scale=d.PAPER.scale, noise=(0, 0), jpeg=d.PAPER.jpeg)
        a, b = d.published([picture] * 2, noiseless, np.random.default_rng(seed))
        assert np.array_equal(a, b)
        alone = d.published([picture], d.PAPER, np.random.default_rng(seed))
        assert alone[0].shape == picture.shape
        assert len(d.footage([picture] * 3, np.random.default_rng(seed))) == 3


def test_motion_is_undone_by_alignment(picture: np.ndarray) -> None:
    inner = (slice(24, -24), slice(24, -24))
    smooth = cv2.GaussianBlur(picture, (0, 0), 3)
    for seed in range(8):
        poses = Motion(still=0).draw(3, np.random.default_rng(seed))
        for pose in poses:
            there = pose.seen(smooth)
            back = pose.aligned(there)
            assert np.abs(back - smooth)[inner].mean() < 0.004
        assert np.abs(poses[-1].seen(smooth) - smooth)[inner].mean() > np.abs(back - smooth)[inner].mean()
    for pose in Motion(still=1).draw(3, np.random.default_rng(0)):
        assert np.abs(pose.aligned(pose.seen(pose.face(smooth))) - smooth).max() < 1e-6


def test_some_clips_are_livelier_where_spread_says_so() -> None:
    def scatter(spread: float) -> float:
        motion = Motion(still=0, shake=0, spread=spread)
        clips = [motion.draw(2, np.random.default_rng(seed)) for seed in range(300)]
        return float(np.std([np.log(np.hypot(*(b.motion - a.motion)[:, 2])) for a, b in clips]))

    assert scatter(1.5) > 2 * scatter(0.0)


def test_truth_and_damage_of_a_clip_stay_registered(picture: np.ndarray) -> None:
    mixture = d.Mixture(paper=0, heavy=0, footage=0, mild=1, none=0, grey=0, border=0)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        poses = Motion(still=0).draw(4, rng)
        clean, damaged = mixture.degrade([pose.face(picture) for pose in poses], rng, poses)
        for a, b in zip(clean, damaged, strict=True):
            shift, _ = cv2.phaseCorrelate(*(np.ascontiguousarray(f[24:-24, 24:-24, 1], np.float64) for f in (a, b)))
            assert np.hypot(*shift) < 0.25


@pytest.mark.parametrize(
    "weights", [{"paper": -1.0}, {"heavy": math.nan}, {"none": math.inf}, dict.fromkeys(d.Mixture.__slots__, 0.0)]
)
def test_weights_of_which_none_can_be_drawn_are_told(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="paper, heavy, footage, mild and none of a mixture are numbers from 0"):
        d.Mixture(**weights)
