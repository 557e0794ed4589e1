"""nano from nothing: both stages learn, resume exactly, and what they write is a release that the restorer loads."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from training_files import lpips_of_noise, made_up_faces

from streamfix.errors import ModelError, UsageError
from streamfix.models import find, pull
from streamfix.restore.base import load_restorer
from streamfix.restore.interlcm.checkpoint import load_base
from streamfix.train.nano import networks
from streamfix.train.nano.autoencoder import AutoencoderConfig, AutoencoderLearner, train_autoencoder
from streamfix.train.nano.consistency import ConsistencyConfig, ConsistencyLearner, train_consistency
from streamfix.train.nano.latents import Latents
from streamfix.train.pictures import tiny_config

FACE = 96
AUTOENCODER = tiny_config(8, (0, 0, 1, 1), (1, 1, 0, 0))
UNET = {
    **networks.UNET,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}


def figures(run: Path, *columns: str) -> list[tuple[str, ...]]:
    with (run / "log.csv").open() as file:
        return [tuple(row[c] for c in ("step", *columns)) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderConfig:
    """A short run of stage 1."""
    home = tmp_path_factory.mktemp("stage1")
    config = AutoencoderConfig(
        data=made_up_faces(tmp_path_factory.mktemp("faces")),
        run=home / "run",
        lpips=lpips_of_noise(home / "lpips.pth"),
        steps=24,
        face=FACE,
        window=64,
        batch=4,
        rate=3e-3,
        warmup=2,
        network=AUTOENCODER,
        log_every=1,
        save_every=1e9,
        device="cpu",
        threads=1,
    )
    train_autoencoder(config)
    return config


def stage2(stage1: AutoencoderConfig, run: Path, steps: int, **changes: object) -> ConsistencyConfig:
    base = ConsistencyConfig(
        data=stage1.data,
        run=run,
        autoencoder=stage1.run / "release",
        steps=steps,
        face=FACE,
        batch=4,
        rate=2e-3,
        warmup=2,
        network=UNET,
        log_every=1,
        save_every=1e9,
        device="cpu",
        threads=1,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def release(stage1: AutoencoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_consistency(stage2(stage1, tmp_path_factory.mktemp("stage2"), 30))


def test_the_autoencoder_learns_and_says_what_it_paid(stage1: AutoencoderConfig) -> None:
    rows = figures(stage1.run, "l1", "lpips", "moments")
    l1 = [float(row[1]) for row in rows]
    assert [row[0] for row in rows] == [str(i) for i in range(1, 25)]
    assert sum(l1[-4:]) < 0.6 * sum(l1[:4])


def test_windows_come_first_and_whole_faces_then(stage1: AutoencoderConfig) -> None:
    learner = AutoencoderLearner(stage1)
    assert learner.plan(0) == (64, 4)
    assert learner.plan(23) == (96, 2)


def test_a_run_goes_on_as_if_it_had_never_stopped(stage1: AutoencoderConfig, tmp_path: Path) -> None:
    def go(run: str, limit: int | None = None) -> Path:
        whole = dataclasses.replace(stage2(stage1, tmp_path / run, 5), jumps=(0.4, 0.6))

        def report(step: int, done: float, losses: dict[str, float]) -> None:
            if step == limit:
                raise KeyboardInterrupt

        if limit is None:
            return train_consistency(whole, report=report)
        with pytest.raises(KeyboardInterrupt):
            train_consistency(whole, report=report)
        return whole.run

    go("whole")
    go("cut", 3)
    go("cut")
    assert figures(tmp_path / "cut", "total", "x0") == figures(tmp_path / "whole", "total", "x0")
    one, other = (torch.load(tmp_path / r / "checkpoint.pt", weights_only=True)["average"] for r in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_the_consistency_model_learns(release: Path) -> None:
    x0 = [float(row[1]) for row in figures(release.parent, "consistency")]
    before_the_jumps = x0[:22]
    assert sum(before_the_jumps[-6:]) < 0.9 * sum(before_the_jumps[:6])


def test_the_gap_between_the_times_halves_at_every_jump(stage1: AutoencoderConfig, tmp_path: Path) -> None:
    learner = ConsistencyLearner(stage2(stage1, tmp_path, 100))
    seen = []
    for learner.step in (0, 89, 90, 96, 99):
        seen.append(learner.gap())
    assert seen == [1.0, 1.0, 0.5, 0.25, 0.25]


def test_faces_are_encoded_once(
    stage1: AutoencoderConfig, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = ConsistencyLearner(stage2(stage1, tmp_path, 1))
    known: dict[str, Any] = {"face": FACE, "tower": learner.tower, "seed": 3}
    kept = release.parent / "latents.safetensors"
    first = Latents(stage1.data, learner.vae, kept=tmp_path / "again", **known)[5, 0, 1]
    monkeypatch.setattr(Latents, "_encode", lambda _: pytest.fail("encoded again"))
    second = Latents(stage1.data, learner.vae, kept=kept, **known)[5, 0, 1]
    assert torch.equal(first["latent"], second["latent"])
    assert torch.equal(first["face"], second["face"])
    learner.vae.encoder.layers[0].bias.add_(1)  # another autoencoder
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        Latents(stage1.data, learner.vae, kept=kept, **known)[5, 0, 1]


def test_gradients_reach_the_unet_and_the_tower(stage1: AutoencoderConfig, tmp_path: Path) -> None:
    learner = ConsistencyLearner(stage2(stage1, tmp_path, 10, null=0.0))
    batch = {"latent": torch.randn(2, 4, 12, 12), "face": torch.rand(2, 3, 64, 64)}
    loss = learner.terms(batch, learner.generator())["consistency"]
    gradients = torch.autograd.grad(loss, learner.trained, materialize_grads=True)
    still = [n for (n, _), g in zip(learner.nets.named_parameters(), gradients, strict=True) if not g.abs().sum()]
    assert all(name.endswith(("k_proj.bias",)) for name in still), still  # softmax does not see the bias of keys


def test_the_release_restores_whole_crops(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMFIX_HOME", str(tmp_path))
    for name in ("interlcm", "lcm-text"):
        pull(find(name), source=release)
    crops = torch.rand(2, 3, 512, 512) * 2 - 1
    for spec in ("interlcm", "interlcm:visual=off", "interlcm:start_step=1,spatial=off"):
        restorer = load_restorer(spec, device="cpu")
        restored = restorer.restore(crops)
        assert restored.shape == crops.shape
        assert restored.abs().max() <= 1
        assert torch.equal(restored, restorer.restore(crops))
    assert restorer.noise_shape() == (4, 1, 4, 12, 12)  # type: ignore[attr-defined]


def test_encoders_that_have_learnt_nothing_are_the_unet_alone(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMFIX_HOME", str(tmp_path))
    for name in ("interlcm", "lcm-text"):
        pull(find(name), source=release)
    crops = torch.rand(1, 3, 512, 512) * 2 - 1
    one, other = (load_restorer(f"interlcm:visual=off,spatial={s}").restore(crops) for s in ("on", "off"))
    assert (one - other).abs().max() < 1e-5


def test_a_release_can_be_loaded_while_it_is_trained(stage1: AutoencoderConfig, tmp_path: Path) -> None:
    config = stage2(stage1, tmp_path, 2)
    folder = train_consistency(dataclasses.replace(config, steps=1))
    before, after = load_tower(folder), load_tower(train_consistency(config))
    assert any(not torch.equal(before[k], after[k]) for k in before)


def load_tower(folder: Path) -> dict[str, torch.Tensor]:
    base = load_base(folder=folder, device=torch.device("cpu"), dtype=torch.float32)
    assert base.clip is not None
    return base.clip.state_dict()


def test_what_cannot_be_trained_is_told(stage1: AutoencoderConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no autoencoder; train one"):
        train_consistency(stage2(stage1, tmp_path, 1, autoencoder=tmp_path))
    with pytest.raises(UsageError, match="multiples of 32"):
        train_autoencoder(dataclasses.replace(stage1, window=50))
    with pytest.raises(UsageError, match="either steps or minutes"):
        train_autoencoder(dataclasses.replace(stage1, minutes=1.0))
    with pytest.raises(UsageError, match="seed is a whole number from 0"):
        train_autoencoder(dataclasses.replace(stage1, seed=-1))
    with pytest.raises(ModelError, match="cannot compute on the device 'foo'"):
        train_autoencoder(dataclasses.replace(stage1, device="foo"))
    with pytest.raises(ModelError, match="is of other networks"):
        train_autoencoder(dataclasses.replace(stage1, network=tiny_config(16, (0, 0, 1, 1), (1, 1, 0, 0))))
