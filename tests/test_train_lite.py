"""Training end to end on a made-up folder: seeds, resumption, shipping, and clear errors."""

from __future__ import annotations

import csv
import dataclasses
import pickle
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from training_files import lpips_of_noise, made_up_faces

from streamfix.errors import InputError, ModelError, UsageError
from streamfix.models import sha256_of
from streamfix.restore.base import load_restorer
from streamfix.restore.lite.checkpoint import read_checkpoint
from streamfix.restore.lite.network import LiteConfig, LiteNet
from streamfix.train.data import (
    Augmentation,
    Batches,
    FacePairs,
    SmallFaces,
    augmented,
    composed,
    face_files,
    loader,
    read_face,
    template_crop,
)
from streamfix.train.degradations import Mixture
from streamfix.train.layouts import LAYOUTS
from streamfix.train.lite import Stage, TrainConfig, Trainer, grown, train
from streamfix.train.losses import Lpips, _TapDistance
from streamfix.train.ship import ship

TINY = LiteConfig(memory=8, widths=(8, 8, 8, 8), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), head=(8, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made-up pictures, two of each layout."""
    return made_up_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of LPIPS with AlexNet, filled with noise."""
    return lpips_of_noise(tmp_path_factory.mktemp("lpips") / "alex.pth")


def config(folder: Path, run: Path, alex: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        data=folder,
        run=run,
        steps=6,
        stages=(Stage(until=0.5, size=64, batch=2, vgg=64), Stage(until=1.0, size=96, batch=2, vgg=64)),
        lpips_alex=alex,
        vgg=0.0,
        network=TINY,
        device="cpu",
        workers=0,
        threads=2,
        log_every=1,
        save_every=1e9,
        warmup=2,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def losses(run: Path) -> list[tuple[str, ...]]:
    with (run / "log.csv").open() as file:
        return [(row["step"], row["total"], row["l1"], row["alex"]) for row in csv.DictReader(file)]


def test_a_run_ends_on_calmer_faces(folder: Path, alex: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(folder, tmp_path, alex, steps=200, calm=0.5, recurrent=0.0))
    calm = [trainer.plan(step).calm for step in (0, 120, 145, 170, 199)]
    assert calm == pytest.approx([0, 0, 0.25, 0.5, 0.5])
    order = Batches(trainer.plan, batch=199)
    assert [item.calm for item in next(iter(order))] == [0.5, 0.5]
    with pytest.raises(UsageError, match="from 0 to 1"):
        Trainer(config(folder, tmp_path, alex, calm=1.5))


def test_a_run_cut_in_two_gives_the_losses_and_weights_of_one_in_one_piece(
    folder: Path, alex: Path, tmp_path: Path
) -> None:
    # one thread: what the optimiser sees must not depend on how the machine shares its cores
    whole = train(config(folder, tmp_path / "whole", alex, threads=1))

    class CutOffError(Exception):
        pass

    def cut(step: int, done: float, means: dict[str, float]) -> None:
        if step == 4:
            raise CutOffError

    with pytest.raises(CutOffError):  # save_every=0: a checkpoint after every step; step 4 was not saved yet
        train(config(folder, tmp_path / "parts", alex, threads=1, save_every=0.0), report=cut)
    parts = train(
        config(folder, tmp_path / "parts", alex, threads=1, workers=1)
    )  # and a worker process changes nothing
    expected, got = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert [row[0] for row in got] == ["1", "2", "3", "4", "4", "5", "6"]
    assert got[:4] == expected[:4]
    assert got[4:] == expected[3:], "steps 4 to 6 after the resumption"
    assert sha256_of(whole) == sha256_of(parts) or _same_tensors(whole, parts)
    assert load_restorer(str(parts), device="cpu").restore(torch.zeros(1, 3, 512, 512)).isfinite().all()


def _same_tensors(a: Path, b: Path) -> bool:
    first, second = read_checkpoint(a)[0], read_checkpoint(b)[0]
    return all(torch.equal(first[k], second[k]) for k in first)


def test_training_lowers_the_loss(folder: Path, alex: Path, tmp_path: Path) -> None:
    stages = (Stage(until=1.0, size=64, batch=4, vgg=64),)
    # one kind of damage: else what the steps were dealt decides
    mixture = Mixture(paper=1, heavy=0, footage=0, mild=0, none=0, grey=0, border=0)
    train(config(folder, tmp_path, alex, steps=60, stages=stages, rate=2e-3, mixture=mixture, recurrent=0.0))
    totals = [float(row[1]) for row in losses(tmp_path)]
    assert np.mean(totals[-20:]) < 0.9 * np.mean(totals[:10])


def test_the_rate_warms_up_and_falls(folder: Path, alex: Path, tmp_path: Path) -> None:
    trainer = Trainer(config(folder, tmp_path, alex, steps=100, rate=1e-3, last_rate=1e-5))
    rates = []
    for trainer.step in range(101):
        rates.append(trainer.rate())
    assert rates[0] == 5e-4, "warming up"
    assert all(a > b for a, b in pairwise(rates[1:]))
    assert rates[50] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)


def test_a_network_that_has_grown_answers_as_the_one_it_began_from(tmp_path: Path) -> None:
    small = LiteNet(dataclasses.replace(TINY, memory=0)).eval()
    large = LiteNet(dataclasses.replace(TINY, encoder=(1, 2, 1), middle=3, detail=2)).eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    before = large(x)
    large.load_state_dict(grown(small.state_dict(), large))
    assert not torch.equal(before, small(x))
    assert torch.equal(large(x), small(x))
    assert any(
        v.any() for k, v in large.state_dict().items() if k.startswith("middle.2.first")
    )  # something to learn from
    for other in (TINY, dataclasses.replace(TINY, widths=(8, 8, 8, 16), middle=3, detail=2)):
        with pytest.raises(UsageError, match="larger or another network"):
            grown(large.state_dict(), LiteNet(other))


def test_clips_are_learnt_from_and_flicker_is_paid_for(folder: Path, alex: Path, tmp_path: Path) -> None:
    for name, share in (("stills", 0.0), ("clips", 1.0)):
        train(config(folder, tmp_path / name, alex, steps=3, recurrent=share))
    with (tmp_path / "clips" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["flicker"]) > 0 for row in rows)
    assert "flicker" not in (tmp_path / "stills" / "log.csv").read_text()
    clips = read_checkpoint(tmp_path / "clips" / "lite.safetensors")[0]["stem.weight"]
    start = LiteNet(TINY).state_dict()["stem.weight"]
    assert clips.shape == start.shape
    restorer = load_restorer(str(tmp_path / "clips" / "lite.safetensors"), device="cpu")
    assert restorer.name == "lite"


def test_a_network_learns_to_look_back_and_keeps_what_it_knew(folder: Path, alex: Path, tmp_path: Path) -> None:
    forgetful = dataclasses.replace(TINY, memory=0)
    first = train(config(folder, tmp_path / "a", alex, steps=1, network=forgetful, recurrent=0.0))
    options = {"start": first, "recurrent": 1.0, "memory_only": True}
    second = train(config(folder, tmp_path / "b", alex, steps=3, rate=1e-2, **options))
    before, after = (read_checkpoint(path)[0] for path in (first, second))
    assert all(torch.equal(after[k], before[k]) for k in before)
    started = LiteNet(TINY).memory
    assert started is not None
    assert after.keys() - before.keys() == {f"memory.{k}" for k in started.state_dict()}
    assert float(after["memory.gate.bias"].abs()) > 0, "it has learnt"
    with pytest.raises(UsageError, match="network with memory"):
        train(config(folder, tmp_path / "c", alex, network=forgetful))
    with pytest.raises(UsageError, match="--start"):
        train(config(folder, tmp_path / "d", alex, memory_only=True))


def test_two_processes_take_the_steps_of_one(folder: Path, alex: Path, tmp_path: Path) -> None:
    """Both on one CPU; what differs is the order of sums."""
    stages = (Stage(until=1.0, size=64, batch=4, vgg=64),)
    alone = config(folder, tmp_path / "one", alex, steps=3, stages=stages, threads=1)
    # shards of one face, as the two processes have them: their random windows are the same then
    expected = read_checkpoint(train(dataclasses.replace(alone, threads=2)))[0]
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, pickle\n"
        "from streamfix.train.lite import train\n"
        "if __name__ == '__main__':\n"
        "    train(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    both = dataclasses.replace(alone, run=tmp_path / "two", threads=2)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(both))
    # accelerate's own launcher starts one process where there is no GPU
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(script), str(tmp_path / "config.pickle")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = read_checkpoint(tmp_path / "two" / "lite.safetensors")[0]
    # Adam's first steps are as long for a gradient that is nothing but rounding, so single weights may differ
    astray = torch.cat([((got[k].float() - expected[k].float()).abs() > 1e-4).flatten() for k in expected])
    assert float(astray.float().mean()) < 0.2  # of wrongly shared gradients: 0.43
    assert [row[0] for row in losses(tmp_path / "two")] == ["1", "2", "3"], "one of them logs"


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(bend=6.0, compose=0.5)])
def test_pairs_depend_on_seed_and_number_alone(folder: Path, augmentation: Augmentation) -> None:
    first, second, other = (FacePairs(folder, seed=s, augmentation=augmentation) for s in (1, 1, 2))
    for i in (5, 0, 17):  # in any order
        a, b, c = (pairs[(i, 96, 1)] for pairs in (first, second, other))
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert not torch.equal(a["degraded"], c["degraded"])
        assert a["clean"].shape == a["degraded"].shape == (1, 3, 96, 96)
        assert first[(i, 96, 3)]["clean"].shape == (3, 3, 96, 96)
        assert float(torch.stack((a["clean"], a["degraded"])).abs().max()) <= 1
        assert all(0 <= v <= 512 - 96 for v in a["origin"].tolist())


def test_a_face_that_breaks_off_is_told_in_one_sentence_from_a_worker_too(tmp_path: Path) -> None:
    made_up_faces(tmp_path, (512,))
    (file,) = face_files(tmp_path)
    file.write_bytes(file.read_bytes()[:2000])  # its header is whole, so it is found when drawn
    with pytest.raises(InputError) as error:
        next(loader(FacePairs(tmp_path, seed=0), [[(0, 64, 1)]], workers=1))
    assert str(error.value) == f"{file} is not a picture that can be read; remove or replace it"


def test_faces_are_drawn_as_often_as_asked(tmp_path: Path) -> None:
    folder = tmp_path
    for i, side in enumerate((512, 512, 640, 640, 400, 400)):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((side, side, 3), 40 * i, np.uint8))
    still = Augmentation(turn=0, zoom=0, shift=0, gamma=0, tint=0, soft=1)
    clean = Mixture(paper=0, heavy=0, footage=0, mild=0, none=1)

    def shares(draw: dict[str, float]) -> np.ndarray:
        pairs = FacePairs(folder, seed=0, mixture=clean, augmentation=still, draw=draw)
        tones = [float(pairs[(i, 32, 1)]["clean"].mean() + 1) * 127.5 for i in range(400)]
        return np.bincount(np.rint(np.divide(tones, 40)).astype(int), minlength=6) / 400

    assert shares({}) == pytest.approx(1 / 6, abs=0.08)
    assert shares({"[01].png": 0, "5.*": 3, "*": 0.5}) == pytest.approx(np.array([0, 0, 1, 1, 1, 6]) / 9, abs=0.1)
    with pytest.raises(InputError, match="draw"):
        FacePairs(folder, seed=0, draw={"*": 0})
    with pytest.raises(UsageError, match="never"):
        TrainConfig(data=folder, run=folder, steps=1, alex=0, vgg=0, draw={"*": -1}).check()


def test_whole_crops_start_at_the_template_corner(folder: Path) -> None:
    assert FacePairs(folder, seed=0)[(0, 512, 1)]["origin"].tolist() == [0, 0]


def test_bending_moves_what_is_there_and_composing_takes_each_place_from_one_of_two(folder: Path) -> None:
    still = {"turn": 2.0, "zoom": 0.03, "shift": 5.0, "gamma": 0.0, "tint": 0.0}
    picture = read_face(face_files(folder)[0])
    scale, margin = LAYOUTS[picture.shape[0]]

    def drawn(bend: float) -> np.ndarray:
        rng, varied = np.random.default_rng(4), Augmentation(**still, bend=bend)
        return augmented(picture, (32, 64), 320, rng, varied, scale=scale, margin=margin)

    straight, bent = drawn(0.0), drawn(6.0)
    assert np.abs(drawn(1e-6) - straight).max() < 0.03, "a bend of nothing moves something"
    assert np.abs(bent - straight).mean() > 3 * np.abs(drawn(1e-6) - straight).mean()
    np.testing.assert_allclose(bent.mean((0, 1)), straight.mean((0, 1)), atol=0.03)

    dark, light = np.full((256, 256, 3), 0.3, np.float32), np.full((256, 256, 3), 0.7, np.float32)
    dark[::2], light[:, ::2] = 0.4, 0.6  # stripes tell them apart once their colours agree
    both = composed(dark, light, np.random.default_rng(2))
    lines = np.abs(np.diff(both[:-1:, :, 0], axis=0))[:, :-1], np.abs(np.diff(both[:, :-1, 0], axis=1))[:-1]
    shares = [float((line > 0.05).mean()) for line in lines]
    assert all(share > 0.1 for share in shares), shares
    assert sum(shares) > 0.7, "more seam than face"
    assert abs(float(both.mean()) - float(dark.mean())) < 0.02


def test_layouts_hold_the_same_template(tmp_path: Path) -> None:
    """A disc at one place of the template is found there in each layout."""
    for side, scale, margin in ((512, 1.0, 0), (640, 1.0, 64), (400, 0.625, 40)):
        picture = np.zeros((side, side, 3), np.uint8)
        at = (np.array([192.98, 239.95]) + 0.5) * scale - 0.5 + margin
        cv2.circle(picture, tuple(int(v) for v in at.round()), int(20 * scale), (255, 255, 255), -1)
        path = tmp_path / f"{side}.png"
        cv2.imwrite(str(path), picture)
        crop = template_crop(read_face(path))
        y, x = np.nonzero(crop[..., 0] > 0.5)
        assert abs(x.mean() - 192.98) < 1.5
        assert abs(y.mean() - 239.95) < 1.5


def test_lpips_is_zero_for_equals_and_falls_with_distance(alex: Path) -> None:
    net = Lpips(alex)
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.rand(2, 3, 67, 67, generator=generator) * 2 - 1 for _ in range(2))
    assert float(net(a, a).abs().max()) == 0
    near, far = net(a + 0.2 * (b - a), a), net(b, a)
    assert bool((near < far).all())
    assert bool((near > 0).all())


def test_the_written_out_gradient_of_lpips_is_that_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 5, 4, 3, generator=generator, dtype=torch.double) for _ in range(2))
    lin = torch.rand(5, generator=generator, dtype=torch.double)
    a.requires_grad_(True)
    unit_a, unit_b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    formula = ((unit_a - unit_b).square() * lin.view(1, -1, 1, 1)).sum(1).mean((1, 2))
    ours = _TapDistance.apply(a, b, lin)
    assert torch.allclose(formula.float(), ours)
    weights = torch.tensor([1.0, 2.0])
    (expected,) = torch.autograd.grad((formula * weights).sum(), a)
    (got,) = torch.autograd.grad((ours * weights).sum(), a)
    assert torch.allclose(expected, got, atol=1e-6)


def test_options_and_files_that_cannot_work(folder: Path, alex: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="either steps or minutes"):
        train(config(folder, tmp_path / "a", alex, minutes=1.0))
    with pytest.raises(UsageError, match="lpips-vgg"):
        train(config(folder, tmp_path / "b", alex, vgg=0.5))
    for changes, told in (
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"steps": 0}, "at least 1 step"),
        ({"steps": None, "minutes": -1.0}, "minutes from 0"),
    ):
        with pytest.raises(UsageError, match=told):
            train(config(folder, tmp_path / "a", alex, **changes))
    for device in ("foo", "cuda:99"):
        with pytest.raises(ModelError, match=f"cannot compute on the device '{device}'"):
            train(config(folder, tmp_path / "a", alex, device=device))
    with pytest.raises(ModelError, match=r"there is no file .*none\.pth"):
        train(config(folder, tmp_path / "a", tmp_path / "none.pth"))
    with pytest.raises(InputError, match="there is no folder"):
        train(config(tmp_path / "nowhere", tmp_path / "c", alex))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        train(config(tmp_path / "empty", tmp_path / "c", alex))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="LPIPS weight file"):
        train(config(folder, tmp_path / "d", broken))
    odd = tmp_path / "odd"
    odd.mkdir()
    cv2.imwrite(str(odd / "face.png"), np.zeros((300, 200, 3), np.uint8))
    with pytest.raises(InputError, match="200x300"):
        read_face(face_files(odd)[0])
    made_up_faces(odd, (512,) * 3)
    for faces in (FacePairs, partial(SmallFaces, face=64)):  # before any is drawn, whichever that would be
        with pytest.raises(InputError, match=r"face\.png is 200x300"):
            faces(odd, seed=0)
    (odd / "face.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"face\.png is not a picture"):
        FacePairs(odd, seed=0)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="cannot be read"):
        train(config(folder, tmp_path / "e", alex))


def test_a_run_of_no_minutes_has_weights_too(folder: Path, alex: Path, tmp_path: Path) -> None:
    weights = train(config(folder, tmp_path, alex, steps=None, minutes=0.0))
    _, network = read_checkpoint(weights)
    assert network == TINY
    assert losses(tmp_path) == []


def test_another_network_is_not_resumed(folder: Path, alex: Path, tmp_path: Path) -> None:
    train(config(folder, tmp_path, alex, steps=1))
    other = dataclasses.replace(TINY, middle=2)
    with pytest.raises(UsageError, match="another network"):
        train(config(folder, tmp_path, alex, network=other))


def test_a_run_from_before_muon_says_how_to_go_on(folder: Path, alex: Path, tmp_path: Path) -> None:
    train(config(folder, tmp_path, alex, steps=1))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["optimizer"] = state.pop("optimizers")[1]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError, match="--start a new run"):
        train(config(folder, tmp_path, alex, steps=2))


def test_vgg_sees_every_nth_window_of_a_shard(folder: Path, alex: Path, tmp_path: Path) -> None:
    truth = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    output = truth.clone()
    output[1::2] *= 0.5
    for every, sees in ((1, True), (2, False), (3, True)):
        stages = (Stage(until=1.0, size=64, batch=4, vgg=64, vgg_every=every),)
        trainer = Trainer(config(folder, tmp_path / str(every), alex, stages=stages))
        trainer.losses["vgg"] = (Lpips(alex), 1.0)  # its place, with features that are at hand
        terms = trainer.loss(output, truth, [0])
        assert (float(terms["vgg"]) > 1e-3) == sees
        assert float(terms["alex"]) > 1e-3


def test_ship_writes_the_checksum_and_keeps_other_lines(tmp_path: Path) -> None:
    weights = tmp_path / "new.safetensors"
    weights.write_bytes(b"weights")
    target = tmp_path / "weights"
    target.mkdir()
    (target / "SHA256SUMS").write_text("aa  other.bin\nbb  lite.safetensors\n")
    digest = ship(weights, target)
    assert (target / "SHA256SUMS").read_text() == f"{digest}  lite.safetensors\naa  other.bin\n"
    assert sha256_of(target / "lite.safetensors") == digest
    with pytest.raises(ModelError, match="no weight file"):
        ship(tmp_path / "none", target)
    weights.write_bytes(bytes(25_000_000))
    with pytest.raises(ModelError, match="24 MB"):
        ship(weights, target)
    assert sha256_of(target / "lite.safetensors") == digest
