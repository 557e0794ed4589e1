"""Pairs made in batches on the device that trains are those that OpenCV and a real codec make one by one."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_files import lpips_of_noise, made_up_faces

from streamfix.errors import InputError, UsageError
from streamfix.restore.lite.network import LiteConfig
from streamfix.train import codecs, degradations, device_degradations
from streamfix.train.data import Augmentation, FacePairs, Item, Plan, loader, read_face, template_crop
from streamfix.train.degradations import Mixture, Recipe
from streamfix.train.device_batches import ahead, device_batches
from streamfix.train.device_pairs import DevicePairs
from streamfix.train.lite import Stage, TrainConfig, Trainer, train

CPU = torch.device("cpu")
PLAIN = Augmentation(turn=0, zoom=0, shift=0, gamma=0, tint=0, soft=1)
UNDAMAGED = Mixture(paper=0, heavy=0, footage=0, mild=0, none=1, grey=0, border=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made-up pictures, two of each layout."""
    return made_up_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Noise of all frequencies and colours, strongest in the low ones: float32 (512, 512, 3) in [0, 1]."""
    rng = np.random.default_rng(0)
    layers = [
        cv2.resize(rng.normal(0, 0.09 * 0.8**k, (2**k, 2**k, 3)), (512, 512), interpolation=cv2.INTER_CUBIC)
        for k in range(2, 10)
    ]
    return np.clip(0.5 + sum(layers), 0, 1).astype(np.float32)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def image(batch: torch.Tensor) -> np.ndarray:
    return batch[0].permute(1, 2, 0).numpy()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 100), st.integers(64, 512))
def test_jpeg_is_that_of_the_codec(picture: np.ndarray, quality: int, side: int) -> None:
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    canvas = torch.zeros(1, 3, 512, 512)
    canvas[..., :side, :side] = tensor(small)
    coded = image(device_degradations.jpeg(canvas, torch.tensor([side]), np.array([quality])))[:side, :side]
    expected = codecs.jpeg(small, quality)
    lost = float(np.abs(expected - small).mean())
    # the codec's integer transforms round some coefficients the other way
    assert np.abs(coded - expected).mean() < 0.25 * lost + 0.6 / 255
    if side > 256 and quality > 50:  # chroma that is not smoothed on its way up would be twice as far off
        assert np.abs(coded - expected).mean() < 0.15 * lost + 0.5 / 255


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32))
def test_blur_is_opencvs(picture: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second, angle = rng.uniform(0.1, 15), rng.uniform(0.1, 15), rng.uniform(-math.pi, math.pi)
    sigmas = np.array([[first, first if rng.random() < 0.5 else second]])
    expected = degradations.gaussian_blur(picture, (0.1, 15), np.random.default_rng(seed))
    blurred = device_degradations.blurred(tensor(picture), sigmas, np.array([angle]))
    np.testing.assert_allclose(image(blurred), expected, atol=1e-4)


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 512))
def test_resizing_down_and_up_is_opencvs(picture: np.ndarray, side: int) -> None:
    whole, part = torch.tensor([512]), torch.tensor([side])
    small = device_degradations.resized(tensor(picture), whole, part)
    expected = cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(image(small)[:side, :side], expected, atol=2e-4)
    large = device_degradations.resized(small, part, whole)
    expected = cv2.resize(expected, (512, 512), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(image(large), expected, atol=2e-4)


def test_each_picture_of_a_batch_is_damaged_by_its_own_recipe(picture: np.ndarray) -> None:
    recipes = [
        Recipe(sigma=(s, s), scale=(f, f), noise=(0, 0), jpeg=(q, q))
        for s, f, q in ((0.1, 1.0, 100), (3.0, 2.3, 60), (8.0, 7.7, 80), (15.0, 9.0, 50))
    ]
    batch = tensor(picture).expand(len(recipes), -1, -1, -1)
    rng, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for recipe, damaged in zip(recipes, device_degradations.published(recipes, batch, rng, noise), strict=True):
        (expected,) = degradations.published([picture], recipe, np.random.default_rng(1))
        error = np.abs(damaged.permute(1, 2, 0).numpy() - expected).mean()
        assert error < 0.05 * np.abs(picture - expected).mean() + 0.6 / 255


def test_noise_is_as_strong_as_asked() -> None:
    recipe = Recipe(sigma=(0.1, 0.1), scale=(1, 1), noise=(10, 10), jpeg=(100, 100))
    grey = torch.full((2, 3, 512, 512), 0.5)
    noisy = device_degradations.published(
        [recipe] * 2, grey, np.random.default_rng(0), torch.Generator().manual_seed(0)
    )
    luma = (noisy * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    assert luma.std().item() * 255 == pytest.approx(10 * np.linalg.norm([0.299, 0.587, 0.114]), rel=0.03)
    assert not torch.equal(noisy[0], noisy[1])


def test_without_variation_a_face_is_its_template_crop_or_the_mirror_of_it(folder: Path) -> None:
    pairs = FacePairs(folder, seed=3, mixture=UNDAMAGED, augmentation=PLAIN)
    batch = DevicePairs(pairs, CPU).batch(0, 512, 24)
    assert torch.equal(batch["clean"], batch["degraded"])
    crops = [tensor(template_crop(read_face(file)))[0] * 2 - 1 for file in pairs.files]
    candidates = torch.stack([c for crop in crops for c in (crop, crop.flip(-1))])
    errors = (batch["clean"] - candidates[None]).abs().mean((2, 3, 4))
    nearest, which = errors.min(1)
    assert nearest.max() < 0.006  # rounding to 8 bits, and where 320 pixels became 512
    assert len(set((which // 2).tolist())) == 6
    assert {0, 1} == set((which % 2).tolist())


def test_windows_are_cut_from_where_their_origin_says(folder: Path) -> None:
    pairs = FacePairs(folder, seed=3, mixture=UNDAMAGED, augmentation=Augmentation(bend=8, compose=0.5))
    faces = DevicePairs(pairs, CPU)
    whole, parts = faces.batch(5, 512, 4), faces.batch(5, 96, 4)
    assert parts["clean"].shape == parts["degraded"].shape == (4, 1, 3, 96, 96)
    assert not whole["origin"].any()
    for crop, window, origin in zip(whole["clean"], parts["clean"], parts["origin"].int().tolist(), strict=True):
        y, x = origin
        assert torch.equal(crop[..., y : y + 96, x : x + 96], window)


def measures(clean: torch.Tensor, degraded: torch.Tensor) -> list[float]:
    error = (clean - degraded).square().mean((1, 2, 3)) / 4
    steps = [(x[..., 1:] - x[..., :-1]).abs().mean().item() for x in (clean, degraded)]
    return [-10 * torch.log10(error + 1e-9).mean().item(), *steps, clean.std().item()]


@pytest.mark.parametrize("kind", ["paper", "heavy", "mild"])
def test_pairs_are_damaged_as_those_of_the_processors_are(folder: Path, kind: str) -> None:
    mixture = Mixture(**{**dict.fromkeys(("paper", "heavy", "footage", "mild", "none"), 0.0), kind: 1.0})
    pairs = FacePairs(folder, seed=3, mixture=mixture, augmentation=Augmentation(bend=8, compose=0.5, soft=1))
    made = DevicePairs(pairs, CPU).batch(0, 512, 24)
    others = [pairs[(i, 512, 1)] for i in range(24)]
    ours = measures(made["clean"][:, 0], made["degraded"][:, 0])
    theirs = measures(*(torch.cat([o[k] for o in others]) for k in ("clean", "degraded")))
    assert ours[0] == pytest.approx(theirs[0], abs=2.5)  # dB, of 24 random pictures each
    assert ours[1:] == pytest.approx(theirs[1:], rel=0.25)


def test_a_batch_is_decided_by_its_seed(folder: Path) -> None:
    faces = DevicePairs(FacePairs(folder, seed=3, mixture=Mixture(border=0.5, grey=0.5, old=0.5)), CPU)
    first, same, other = (faces.batch(seed, 512, 6) for seed in (7, 7, 8))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not torch.equal(first["clean"], other["clean"])
    another = DevicePairs(FacePairs(folder, seed=4), CPU).batch(7, 512, 6)
    assert not torch.equal(first["clean"], another["clean"])


@pytest.mark.parametrize("device", [False, True])
def test_calm_takes_away_what_bends_and_composes_faces(folder: Path, device: bool) -> None:
    def clean(calm: float, **augmentation: float) -> torch.Tensor:
        pairs = FacePairs(folder, seed=3, augmentation=Augmentation(**augmentation))
        if device:
            return DevicePairs(pairs, CPU).batch(5, 256, 6, calm=calm)["clean"]
        return next(loader(pairs, [[Item(5 + i, 256, 1, calm) for i in range(6)]], workers=0))["clean"]

    assert torch.equal(clean(1.0, bend=9.0, compose=0.9), clean(0.0))
    assert torch.equal(clean(0.25, bend=8.0, compose=0.8), clean(0.0, bend=6.0, compose=0.6))
    assert not torch.equal(clean(0.0, bend=9.0, compose=0.9), clean(0.0))


@pytest.mark.parametrize("footage", [0.0, 1.0])
def test_batches_are_as_calm_as_the_plan_says(folder: Path, footage: float) -> None:
    mixture = Mixture(paper=1.0 - footage, heavy=0, footage=footage, mild=0, none=0)

    def made(calm: float, **augmentation: float) -> torch.Tensor:
        pairs = FacePairs(folder, seed=3, mixture=mixture, augmentation=Augmentation(**augmentation))
        return next(device_batches(pairs, lambda step: Plan(256, 2, calm=calm), device=CPU))["clean"]

    assert torch.equal(made(0.5, bend=8.0, compose=1.0), made(0.0, bend=4.0, compose=0.5))
    assert not torch.equal(made(0.5, bend=8.0, compose=1.0), made(0.0, bend=8.0, compose=1.0))


def windows(step: int) -> Plan:
    return Plan(64, 4)


def test_batches_go_on_where_they_were_left_and_footage_has_its_share(folder: Path) -> None:
    pairs = FacePairs(folder, seed=3, mixture=Mixture(footage=0.35))
    chance = 0.35 / (0.4 + 0.2 + 0.35 + 0.08 + 0.02)
    begun = list(islice(device_batches(pairs, windows, device=CPU), 8))
    resumed = list(islice(device_batches(pairs, windows, device=CPU, batch=6), 2))
    for one, two in zip(begun[6:], resumed, strict=True):
        assert all(torch.equal(one[k], two[k]) for k in one)
    assert all(b["clean"].shape == b["degraded"].shape == (4, 1, 3, 64, 64) for b in begun)
    made = DevicePairs(pairs, CPU)
    coded = sum(4 - _from_device(b, made, k) for k, b in enumerate(begun))
    assert coded == pytest.approx(32 * chance, abs=4)


def _from_device(batch: dict[str, torch.Tensor], made: DevicePairs, number: int) -> int:
    # the device's own come last in a batch
    for count in range(4, 0, -1):
        if torch.equal(batch["clean"][4 - count :], made.batch(number, 64, count)["clean"]):
            return count
    return 0


@pytest.mark.parametrize("footage", [0.0, 1.0])
def test_batches_all_of_one_kind(folder: Path, footage: float) -> None:
    other = 1.0 - footage
    mixture = Mixture(paper=other, heavy=0, footage=footage, mild=0, none=0)
    batches = islice(device_batches(FacePairs(folder, seed=3, mixture=mixture), windows, device=CPU), 2)
    assert [b["degraded"].shape[0] for b in batches] == [4, 4]


def test_processes_share_a_batch_without_doubles(folder: Path) -> None:
    pairs = FacePairs(folder, seed=3, mixture=Mixture(footage=0.35))
    halves = [next(device_batches(pairs, windows, device=CPU, share=(k, 2))) for k in range(2)]
    assert [h["clean"].shape[0] for h in halves] == [2, 2]
    assert not torch.equal(halves[0]["clean"], halves[1]["clean"])


def test_what_fails_while_batches_are_made_ahead_reaches_the_trainer_and_no_thread_stays() -> None:
    def broken(after: int) -> Callable[[], dict[str, torch.Tensor]]:
        yield from ({"clean": torch.full((1,), float(k))} for k in range(after))
        raise InputError("this picture is broken")

    batches = ahead(broken(3), CPU)
    assert [next(batches)["clean"].item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="broken"):
        next(batches)
    left = ahead(broken(1000), CPU)
    next(left)
    left.close()
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_a_run_learns_from_batches_of_the_device(folder: Path, tmp_path: Path) -> None:
    network = LiteConfig(widths=(8, 8, 8, 8), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), head=(8, 4))
    config = TrainConfig(
        data=folder,
        run=tmp_path / "whole",
        steps=6,
        stages=(Stage(until=1.0, size=64, batch=4, vgg=64),),
        lpips_alex=lpips_of_noise(tmp_path / "alex.pth"),
        vgg=0.0,
        recurrent=0.0,
        network=network,
        device="cpu",
        on_device=True,
        workers=0,
        threads=1,
        log_every=1,
    )
    assert not Trainer(dataclasses.replace(config, on_device=None, run=tmp_path / "other")).on_device
    train(config)
    two = dataclasses.replace(config, run=tmp_path / "cut")

    class CutOffError(Exception):
        pass

    def cut(step: int, done: float, means: dict[str, float]) -> None:
        if step == 3:
            raise CutOffError

    with pytest.raises(CutOffError):
        train(dataclasses.replace(two, save_every=0.0), report=cut)
    train(two)
    ends = [(c.run / "log.csv").read_text().splitlines()[-1].split(",") for c in (config, two)]
    assert ends[0][0] == ends[1][0] == "6"
    assert ends[0][3:] == ends[1][3:]


def test_clips_are_not_asked_of_the_device(folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=folder, run=tmp_path, steps=1, alex=0, vgg=0, recurrent=0.5, on_device=True)
    with pytest.raises(UsageError, match="clips"):
        config.check()
