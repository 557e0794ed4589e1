"""Training InterLCM's encoders on a small release: resumption, gradients, the official files, and the variants."""

from __future__ import annotations

import csv
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_files import lpips_of_noise, made_up_faces
from typer.testing import CliRunner

from streamfix.cli import app
from streamfix.errors import ModelError, UsageError
from streamfix.models import sha256_of
from streamfix.restore.base import load_restorer
from streamfix.restore.interlcm.checkpoint import load_base
from streamfix.restore.interlcm.text import embed_prompt
from streamfix.train.encoders import read_released
from streamfix.train.interlcm import Trainer, _Draw, train
from streamfix.train.interlcm_config import InterLCMConfig
from streamfix.train.nano import networks, release
from streamfix.train.pictures import tiny_config
from streamfix.train.settings import merged, read_settings, shipped
from streamfix.train.tasks import TaskPairs

FACE = 64
UNET = {
    **networks.UNET,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}
AUTOENCODER = tiny_config(8, (0, 0, 1, 1), (1, 1, 0, 0))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """What a training sees must not depend on how the machine shares its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces, LPIPS weights, and a small random release laid out as on the hubs."""
    import diffusers

    path = tmp_path_factory.mktemp("interlcm")
    (path / "faces").mkdir()
    made_up_faces(path / "faces", (512, 512))
    lpips_of_noise(path / "lpips.pth")
    torch.manual_seed(0)
    base = path / "base"
    vae: Any = diffusers.AutoencoderTiny
    release.write_vae(base / release.LCM / "vae", AUTOENCODER, vae(**AUTOENCODER).state_dict())
    networks.write_unet(base, UNET, FACE, networks.unet(UNET).state_dict())
    networks.write_tower(base, networks.tower().state_dict())
    networks.write_text_encoder(base)
    return path


def config(home: Path, run: Path, name: str = "interlcm-3step", **changes: Any) -> InterLCMConfig:
    """A shipped configuration on the small release, without the adversary, which is as large as ever."""
    settings = merged(read_settings(name), {"loss": {"gan": 0.0}})
    given = {
        "data": str(home / "faces"),
        "run": str(run),
        "base": str(home / "base"),
        "lpips": str(home / "lpips.pth"),
        "iterations": 6,
        "device": "cpu",
        "workers": 0,
        "log_every": 1,
        "save_every": 1e9,
    }
    return InterLCMConfig.of(merged(settings, merged(given, changes)))


def batch_of(config: InterLCMConfig, trainer: Trainer, number: int = 0) -> dict[str, torch.Tensor]:
    pairs = TaskPairs(config)
    items = [pairs[(number + i, trainer.size, 1)] for i in range(config.batch)]
    return {k: torch.stack([item[k] for item in items]) for k in items[0]}


def woken(trainer: Trainer) -> Trainer:
    """A ControlNet's outputs begin at zero, and gradients stop there until its first step: give them values."""
    spatial: Any = trainer.encoders["spatial_encoder"]
    ends = [*spatial.controlnet_down_blocks, spatial.controlnet_mid_block, spatial.controlnet_cond_embedding.conv_out]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in ends:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.weight[0].numel() ** 0.5)
    return trainer


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_killed_at_a_random_step_a_run_goes_on_with_the_losses_of_one_in_one_piece(home: Path, tmp_path: Path) -> None:
    steps = 7
    whole = config(home, tmp_path / "whole", iterations=steps, loss={"gan": 0.1, "gan_from": 3})
    train(whole)
    parts = replace(whole, run=tmp_path / "parts", save_every=0.0)  # a checkpoint after every step
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(parts))
    script = (
        "import pickle, sys, torch; torch.set_num_threads(1)\n"
        "from streamfix.train.interlcm import train\n"
        "train(pickle.load(open(sys.argv[1], 'rb')))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "config.pickle")])
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)
    at, wait = chance.randrange(2, steps - 1), chance.uniform(0, 0.2)
    while process.poll() is None and (not (parts.run / "log.csv").is_file() or len(rows(parts.run)) < at):
        time.sleep(0.005)
    time.sleep(wait)  # anywhere in a step, or while its checkpoint is written
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = len(rows(parts.run)) if (parts.run / "log.csv").read_text().endswith("\n") else 0
    assert begun > 0, f"{seed = }"
    train(parts)
    expected, got = rows(tmp_path / "whole"), rows(parts.run)
    assert got[:begun] == expected[:begun], f"{seed = }"
    again = got[begun:]
    assert again == expected[steps - len(again) :], f"{seed = }"
    assert begun - 1 <= steps - len(again) <= begun, f"{seed = }, all that was saved was not done again"
    assert float(expected[-1]["d_real"]) > 0, "the adversary took part"
    first, second = (torch.load(r / "checkpoint.pt", weights_only=True) for r in (tmp_path / "whole", parts.run))
    for name in ("encoders", "average"):
        assert all(torch.equal(first[name][k], second[name][k]) for k in first[name])


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_reach_every_tensor_of_both_encoders_and_no_frozen_one(
    home: Path, tmp_path: Path, checkpointing: bool
) -> None:
    settings = config(home, tmp_path, checkpointing=checkpointing, loss={"gan": 0.1, "gan_from": 1})
    trainer = woken(Trainer(settings))
    networks_ = (trainer.model.unet, trainer.model.vae, trainer.model.clip)
    frozen = {f"{i}.{k}": v for i, n in enumerate(networks_) for k, v in n.state_dict().items()}
    before = {k: v.clone() for k, v in frozen.items()}
    weights = {k: v.clone() for k, v in trainer.encoders.state_dict().items()}
    trainer.train_step(batch_of(settings, trainer))
    for name, parameter in trainer.encoders.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
        assert not torch.equal(parameter, weights[name]), name
    assert all(torch.equal(frozen[k], before[k]) for k in frozen)
    assert all(p.grad is None and not p.requires_grad for n in networks_ for p in n.parameters())


def test_checkpointing_micro_batches_and_the_way_back_in_two_parts_change_no_gradient(
    home: Path, tmp_path: Path
) -> None:
    """Against the plain way: one graph from the weights to the weighted sum, all faces at once."""
    settings = config(home, tmp_path / "a", batch=2, micro_batch=2, checkpointing=False)
    plain = woken(Trainer(settings))
    batch = batch_of(settings, plain)
    restored = plain.restore(batch["degraded"], [plain._draw(number) for number in range(2)])
    assert plain.lpips is not None
    total = (restored - batch["clean"]).abs().mean() + plain.lpips(restored, batch["clean"]).mean()
    expected = torch.autograd.grad(total, plain.trained)
    trainer = woken(Trainer(replace(settings, run=tmp_path / "b", micro_batch=1, checkpointing=True)))
    losses = trainer.train_step(batch)
    assert losses["total"] == pytest.approx(float(total.detach()), rel=1e-5)
    for parameter, gradient in zip(trainer.trained, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-6 + 1e-3 * float(gradient.abs().max()))


def test_what_is_trained_is_what_restores(home: Path, tmp_path: Path) -> None:
    settings = config(home, tmp_path, batch=2)
    trainer = woken(Trainer(settings))
    batch = batch_of(settings, trainer)
    draws = [trainer._draw(number) for number in range(2)]
    restored = trainer.restore(batch["degraded"], draws)
    shape = trainer.model.latent_shape(FACE, FACE)
    noise = torch.stack([trainer._draw(number).noise(3, shape) for number in range(2)], dim=1)
    tokens = trainer.model.tokens(batch["degraded"])
    expected = trainer.model.restore_from_tokens(batch["degraded"], tokens, noise, color_fix="none")
    assert torch.allclose(restored, expected, atol=1e-5)
    assert restored.requires_grad
    assert not torch.equal(noise[0, 0], noise[0, 1]), "every face has its own"


def test_the_spatial_encoder_begins_as_the_unet_and_says_nothing(home: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(home, tmp_path))
    spatial, unet = trainer.encoders["spatial_encoder"].state_dict(), trainer.model.unet.state_dict()
    shared = [k for k in spatial if k in unet]
    assert any(k.startswith("down_blocks.") for k in shared)
    assert any(k.startswith("mid_block.") for k in shared)
    assert all(torch.equal(spatial[k], unet[k]) for k in shared)
    z, embeds = torch.randn(1, 4, 16, 16), torch.randn(1, 77, networks.WIDTH)
    down, mid = trainer.model.spatial_encoder(
        z, torch.tensor([499]), embeds, torch.zeros(1, 3, 128, 128), return_dict=False
    )
    assert not any(bool(residual.any()) for residual in (*down, mid))


def test_the_official_files_hold_the_averages_and_load_back(home: Path, tmp_path: Path) -> None:
    settings = config(home, tmp_path / "run", iterations=2, rate=1e-3)
    folder = train(settings)
    trainer = Trainer(settings)  # as the run left it
    for encoder in ("visual_encoder", "spatial_encoder"):
        stored = torch.load(folder / f"{encoder}_3step.pth", weights_only=True)
        assert list(stored) == ["params_ema"]
        average = {k.removeprefix(f"{encoder}."): v for k, v in trainer.average.items() if k.startswith(encoder)}
        assert stored["params_ema"].keys() == average.keys()
        assert all(torch.equal(stored["params_ema"][k], v) for k, v in average.items())
        loaded = read_released(folder / f"{encoder}_3step.pth")
        assert all(torch.equal(loaded[k], v) for k, v in average.items())
    assert any(not torch.equal(trainer.average[k], v) for k, v in trainer.encoders.state_dict().items())

    lq = batch_of(settings, trainer)["degraded"]
    for iterations in (2, 3):  # and again when the run has gone on
        settings = replace(settings, iterations=iterations)
        folder = train(settings)
        restorer: Any = load_restorer(
            f"interlcm:base={home / 'base'},encoders={settings.run}", device="cpu", dtype="float32"
        )
        trainer = Trainer(settings)
        trainer.encoders.load_state_dict(trainer.average)
        noise = torch.randn(3, 1, *trainer.model.latent_shape(FACE, FACE))
        with torch.no_grad():
            expected, got = (
                model.restore_from_tokens(lq, model.tokens(lq), noise, color_fix="none")
                for model in (trainer.model, restorer._model)
            )
        assert torch.equal(got, expected)
        assert restorer.sha256 == sha256_of(folder / "spatial_encoder_3step.pth")

    starts = {f"{e}_start": str(folder / f"{e}_encoder_3step.pth") for e in ("visual", "spatial")}
    further = Trainer(config(home, tmp_path / "further", model=starts))
    assert all(torch.equal(v, trainer.average[k]) for k, v in further.encoders.state_dict().items())


VARIANTS: dict[str, dict[str, Any]] = {
    "interlcm-3step": {},
    "interlcm-1step": {"steps": 1},
    "interlcm-colorize": {"steps": 1, "task": "colorize"},
    "interlcm-inpaint": {"steps": 1, "task": "inpaint"},
    "interlcm-controlnet": {"embeds": "text", "objective": "noise"},
    "interlcm-ve-only": {"spatial": False},
    "interlcm-se-only": {"embeds": "text"},
    "interlcm-null-text": {"embeds": "text"},
    "interlcm-text": {"embeds": "text", "prompt": "a high-quality photo of a face"},
    "interlcm-start1": {"start_step": 1},
    "interlcm-start2": {},
    "interlcm-start3": {"start_step": 3},
    "interlcm-start4": {"start_step": 4},
    "interlcm-no-perceptual": {"lpips": 0.0},
    "interlcm-no-adversarial": {"gan": 0.0},
}


def test_every_shipped_configuration_can_be_read() -> None:
    assert set(VARIANTS) <= set(shipped())
    for name in (n for n in shipped() if n.startswith("interlcm")):
        InterLCMConfig.load(name, data="faces", run="run", lpips="lpips.pth")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_other_trainings_are_settings_of_the_published_one(name: str) -> None:
    """Each differs from it in what its name says and in nothing else."""
    places = {"data": "faces", "run": "run", "lpips": "lpips.pth"}
    settings, published = (InterLCMConfig.load(n, **places) for n in (name, "interlcm-3step"))
    changes = VARIANTS[name]
    expected = published
    for part in ("model", "faces", "loss"):
        table = getattr(published, part)
        mine = {k: v for k, v in changes.items() if hasattr(table, k)}
        expected = replace(expected, **{part: replace(table, **mine)})
    if "task" in changes:
        expected = replace(expected, faces=replace(expected.faces, mixture=settings.faces.mixture))
    assert settings == expected


@pytest.mark.parametrize(
    "name", [name for name in VARIANTS if name[-6:] not in ("start2", "start3", "l-text", "m-text")]
)
def test_every_training_takes_a_step(home: Path, tmp_path: Path, name: str) -> None:
    settings = config(home, tmp_path, name, iterations=1)
    folder = train(settings)
    trainer = Trainer(settings)
    names = {f.name for f in folder.iterdir() if f.suffix == ".pth"}
    assert names == {f"{encoder}_{settings.name}.pth" for encoder in trainer.encoders}
    (row,) = rows(tmp_path)
    assert {k for k in row if row[k]} - {"step", "rate", "total"} == set(trainer.columns()) - {"total"}
    if settings.model.embeds == "text":
        assert trainer._text is not None
        assert torch.equal(trainer._text, embed_prompt(settings.model.prompt, home / "base"))


@pytest.mark.parametrize("objective", ["image", "noise"])
def test_losses_fall(home: Path, tmp_path: Path, objective: str) -> None:
    """One face, over and over, towards what other encoders make of it: an untrained decoder reaches little else."""
    quick = {"rate": 2e-3, "last_rate": 2e-3, "loss": {"lpips": 0.0, "objective": objective}}
    settings = config(home, tmp_path, "interlcm-1step", **quick)
    trainer = Trainer(settings)
    batch = batch_of(settings, trainer)
    trainer._draw = lambda number: _Draw(0, 0)  # type: ignore[method-assign]  # the same noise and time
    if objective == "image":
        other = woken(Trainer(settings))
        batch["clean"] = other.restore(batch["degraded"], [_Draw(0, 0)]).detach()
    totals = [trainer.train_step(batch)["total"] for _ in range(16)]
    assert sum(totals[-4:]) < 0.8 * sum(totals[:4])


def test_the_adaptive_weight_makes_both_gradients_equal(home: Path, tmp_path: Path) -> None:
    faces: dict[bool, torch.Tensor] = {}
    weights = {}
    for adaptive in (False, True):
        settings = config(home, tmp_path / str(adaptive), loss={"gan_from": 1, "gan": 1.0, "gan_adaptive": adaptive})
        trainer = woken(Trainer(settings))
        seen: list[torch.Tensor] = []
        decode = trainer.model.decode

        def listened(latent: torch.Tensor, decode: Any = decode, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            face = decode(latent)
            face.register_hook(seen.append)
            return face

        trainer.model.decode = listened  # type: ignore[method-assign]
        losses = trainer.train_step(batch_of(settings, trainer))
        faces[adaptive], weights[adaptive] = seen[0], losses.get("gan_weight", 1.0)
    assert weights[True] > 0
    # both runs began alike: the gradients are r + a and r + w a, and w |a| is to be |r|
    against = (faces[True] - faces[False]) / (weights[True] - 1)
    wanted = faces[False] - against
    assert float(wanted.norm()) == pytest.approx(weights[True] * float(against.norm()), rel=0.02)


def test_in_bfloat16_the_weights_stay_float32_and_gradients_agree(home: Path, tmp_path: Path) -> None:
    gradients = []
    for precision in ("float32", "bfloat16"):
        settings = config(home, tmp_path / precision, precision=precision, batch=2)
        trainer = woken(Trainer(settings))
        trainer.train_step(batch_of(settings, trainer))
        assert all(p.dtype == torch.float32 for p in trainer.trained)
        assert trainer.model.unet.dtype == trainer.dtype
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.trained if p.grad is not None]))
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.95


def test_averages_follow_the_weights(home: Path, tmp_path: Path) -> None:
    settings = config(home, tmp_path, rate=1e-3)
    trainer = Trainer(settings)
    key = "visual_encoder.blocks.0.weight"
    expected = trainer.encoders.state_dict()[key].clone()
    for step in range(3):
        trainer.train_step(batch_of(settings, trainer, step))
        keep = min(0.997, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * trainer.encoders.state_dict()[key]
    assert torch.allclose(trainer.average[key], expected, atol=1e-6)


def test_the_rate_falls_along_a_cosine(home: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(home, tmp_path, iterations=100))
    rates = []
    for trainer.step in (0, 50, 100):
        rates.append(trainer.rate())
    assert rates == pytest.approx([5e-5, 3.5e-5, 2e-5])


def test_another_training_is_not_resumed(home: Path, tmp_path: Path) -> None:
    train(config(home, tmp_path, iterations=1))
    with pytest.raises(UsageError, match="its start_step differ"):
        Trainer(config(home, tmp_path, "interlcm-start3"))
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="cannot be read"):
        Trainer(config(home, tmp_path))


def test_a_device_that_is_not_there_is_told(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot compute on the device 'foo'"):
        Trainer(config(home, tmp_path, device="foo"))


def test_the_base_is_found_in_either_layout_and_missing_parts_are_named(home: Path, tmp_path: Path) -> None:
    cpu = {"device": torch.device("cpu"), "dtype": torch.float32}
    base = load_base(folder=home / "base", **cpu)
    assert base.face_size == FACE
    assert isinstance(base.scheduler.config.prediction_type, str)
    flat = tmp_path / "models"  # as in the models folder: without the owners of the repositories
    flat.mkdir()
    (flat / "LCM_Dreamshaper_v7").symlink_to(home / "base" / release.LCM)
    (flat / "clip-vit-base-patch16").symlink_to(home / "base" / release.CLIP)
    again = load_base(folder=flat, **cpu)
    assert all(torch.equal(a, b) for a, b in zip(base.unet.parameters(), again.unet.parameters(), strict=True))
    with pytest.raises(ModelError, match=r"interlcm lacks config.json and \d more"):
        Trainer(config(home, tmp_path / "run", base=str(tmp_path)))


def test_the_command_trains_by_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'extends = "interlcm-1step"\niterations = 1\nworkers = 0\ndevice = "cpu"\n[loss]\nlpips = 0.0\n'
    )
    options = [
        "--data",
        home / "faces",
        "--config",
        tmp_path / "mine.toml",
        "--base",
        home / "base",
        "--run",
        tmp_path / "run",
    ]
    done = CliRunner().invoke(app, ["train", "interlcm", *map(str, options)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "InterLCM" / "visual_encoder_1step.pth").is_file()
    (tmp_path / "mine.toml").write_text("[loss]\nlpipss = 0.0\n")
    done = CliRunner().invoke(app, ["train", "interlcm", *map(str, options)])
    assert done.exit_code == 2
    assert "loss.lpipss" in done.output


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(home: Path, tmp_path: Path) -> None:
    """Both on one CPU; what differs is the order of sums."""
    alone = config(home, tmp_path / "one", iterations=3, batch=2, loss={"gan": 0.1, "gan_from": 2})
    train(alone)
    (tmp_path / "run.py").write_text(
        "import pickle, sys, torch\ntorch.set_num_threads(1)\nfrom streamfix.train.interlcm import train\n"
        "if __name__ == '__main__':\n    train(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(replace(alone, run=tmp_path / "two")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "run.py"), str(tmp_path / "config.pickle")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected, got = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in got] == ["1", "2", "3"], "one of them logs"
    for one, two in zip(expected, got, strict=True):
        for term in ("total", "l1", "lpips", *(["gan", "d_real", "d_fake"] if one["gan"] else [])):
            assert float(two[term]) == pytest.approx(float(one[term]), abs=2e-3), term
