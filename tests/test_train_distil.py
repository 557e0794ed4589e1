"""Distillation: lite learns a teacher's answers, a tiny VAE learns a large one; what comes of it loads where it belongs."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interlcm_small import install
from training_files import lpips_of_noise, made_up_faces
from typer.testing import CliRunner

from streamfix.cli import app
from streamfix.errors import UsageError
from streamfix.models import find, pull
from streamfix.restore.base import load_restorer
from streamfix.restore.interlcm.checkpoint import load_vae
from streamfix.restore.lite.network import LiteConfig
from streamfix.train.config import Stage, TrainConfig
from streamfix.train.lite import Trainer
from streamfix.train.pictures import tiny_config
from streamfix.train.tiny_vae import TinyVaeConfig, train_tiny_vae

TINY = LiteConfig(memory=0, widths=(8, 8, 8, 8), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), head=(8, 4))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models folder with small random networks in the layout of the release."""
    folder = tmp_path_factory.mktemp("home")
    install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMFIX_HOME", str(folder))
        yield folder


def column(run: Path, name: str) -> list[float]:
    with (run / "log.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def lite_config(home: Path, steps: int, **changes: object) -> TrainConfig:
    faces = home / "faces"
    faces.mkdir(exist_ok=True)
    base = TrainConfig(
        data=made_up_faces(faces, (512,)),
        run=home / "lite",
        steps=steps,
        stages=(Stage(until=1.0, size=512, batch=1, vgg=64),),
        alex=0.0,
        vgg=0.0,
        recurrent=0.0,
        rate=3e-3,
        warmup=1,
        network=TINY,
        teacher="interlcm-1step:color_fix=none",
        device="cpu",
        workers=0,
        threads=1,
        log_every=1,
        save_every=1e9,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_lite_learns_what_the_teacher_answers_with_the_shared_noise(home: Path) -> None:
    config = lite_config(home, 100, grid=0.0)
    trainer = Trainer(config)
    torch.manual_seed(0)
    batch = {name: torch.rand(1, 1, 3, 512, 512) * 2 - 1 for name in ("clean", "degraded")}
    batch |= {"origin": torch.zeros(1, 2), "cut": torch.zeros(1)}
    with torch.no_grad():
        before = trainer.net(batch["degraded"][:, 0], None, batch["origin"])
    assert config.teacher is not None
    taught = load_restorer(config.teacher, device="cpu").restore(batch["degraded"][:, 0])
    l1 = [trainer.train_step(batch)["l1"] for _ in range(16)]
    assert l1[0] == pytest.approx(float((before - taught).abs().mean()), rel=1e-3)
    assert max(l1[-3:]) < 0.98 * l1[0]


def test_the_command_trains_lite_by_a_teacher(home: Path) -> None:
    config = lite_config(home, 1, run=home / "run")
    options = ["--teacher", "passthrough", "--steps", "1", "--batch", "1", "--workers", "0", "--device", "cpu"]
    plain = ["--alex", "0", "--vgg", "0", "--recurrent", "0", "--data", str(config.data), "--run", str(config.run)]
    done = CliRunner().invoke(app, ["train", "lite", *options, *plain])
    assert done.exit_code == 0, done.output
    assert len(column(config.run, "l1")) == 1
    crops = torch.rand(1, 3, 512, 512) * 2 - 1
    assert load_restorer(str(config.run / "lite.safetensors"), device="cpu").restore(crops).shape == crops.shape


def test_a_configuration_is_heard_where_no_option_is_given(home: Path) -> None:
    config = lite_config(home, 1, run=home / "configured")
    file = home / "mine.toml"
    file.write_text(
        "workers = 0\ndevice = 'cpu'\nseed = 7\nsteps = 1\nteacher = 'passthrough'\nalex = 0\nvgg = 0\nrecurrent = 0\n"
    )
    plain = ["--config", str(file), "--batch", "1", "--data", str(config.data), "--run", str(config.run)]
    done = CliRunner().invoke(app, ["train", "lite", *plain, "--seed", "9"])
    assert done.exit_code == 0, done.output
    settings = json.loads((config.run / "config.json").read_text())
    assert (settings["workers"], settings["device"], settings["seed"]) == (0, "cpu", 9)
    assert [stage["size"] for stage in settings["stages"]] == [512]  # a teacher restores whole crops


def test_teachers_that_cannot_be_learnt_from_are_told(home: Path) -> None:
    with pytest.raises(UsageError, match="every stage must have windows of 512"):
        Trainer(lite_config(home, 1, stages=(Stage(until=1.0, size=256, batch=1, vgg=64),)))
    with pytest.raises(UsageError, match="leave out noise=fresh"):
        Trainer(lite_config(home, 1, teacher="interlcm-1step:noise=fresh"))


def test_a_tiny_vae_is_distilled_and_restores(home: Path) -> None:
    config = TinyVaeConfig(
        data=made_up_faces(home),
        run=home / "decoder",
        lpips=lpips_of_noise(home / "lpips.pth"),
        steps=24,
        face=128,
        window=64,
        batch=4,
        rate=3e-3,
        warmup=2,
        network=tiny_config(8, (0, 0, 1, 1), (1, 1, 0, 0)),
        log_every=1,
        save_every=1e9,
        device="cpu",
        threads=1,
    )
    release = train_tiny_vae(config)
    for term, share in (("l1", 0.8), ("latent", 1.0)):
        values = column(config.run, term)
        assert sum(values[-8:]) < share * sum(values[:8]), term
    assert len(column(config.run, "eyes")) < 24  # on whole faces only
    pull(find("taesd"), source=release)
    assert (
        sum(p.numel() for p in load_vae("tiny", device=torch.device("cpu"), dtype=torch.float32).parameters()) < 50_000
    )
    crops = torch.rand(1, 3, 512, 512) * 2 - 1
    assert load_restorer("interlcm-1step:vae=tiny").restore(crops).shape == crops.shape


def test_the_command_distils_the_installed_vae(home: Path) -> None:
    weights, run = lpips_of_noise(home / "command.pth"), home / "by command"
    options = ["--steps", "2", "--batch", "1", "--face", "128", "--width", "8", "--device", "cpu", "--threads", "1"]
    folders = ["--data", str(made_up_faces(home)), "--lpips", str(weights), "--run", str(run)]
    done = CliRunner().invoke(app, ["train", "decoder", *options, *folders])
    assert done.exit_code == 0, done.output
    assert len(column(run, "latent")) >= 1
    (written,) = (run / "release").rglob("config.json")
    assert set(json.loads(written.read_text())["decoder_block_out_channels"]) == {8}
    assert written.with_name("diffusion_pytorch_model.safetensors").is_file()
    done = CliRunner().invoke(
        app, ["train", "decoder", *folders, "--teacher-vae", str(home / "nothing"), "--steps", "1"]
    )
    assert done.exit_code in (1, 2)
    assert "error:" in done.output


def test_a_tiny_vae_has_the_latents_of_its_teacher(home: Path) -> None:
    config = TinyVaeConfig(
        data=home,
        run=home / "other",
        lpips=lpips_of_noise(home / "lpips.pth"),
        steps=1,
        network=tiny_config(8, (0, 1, 1), (1, 1, 0)),
    )
    with pytest.raises(UsageError, match="4 channels after 3 halvings, the tiny VAE's 4 after 2"):
        train_tiny_vae(config)
