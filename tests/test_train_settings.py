"""Settings from TOML: what is known, what extends what, and what is told where neither holds; and the tasks they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_files import made_up_faces

from streamfix.errors import UsageError
from streamfix.restore.interlcm.restorer import WHITE
from streamfix.train.config import Stage, TrainConfig
from streamfix.train.interlcm_config import InterLCMConfig
from streamfix.train.settings import read_settings
from streamfix.train.tasks import TaskPairs

PLACES = {"data": "faces", "run": "run", "lpips": "lpips.pth"}


def test_the_published_file_says_what_the_defaults_are() -> None:
    given = {name: Path(place) for name, place in PLACES.items()}
    assert InterLCMConfig.load("interlcm-3step", **PLACES) == InterLCMConfig(**given)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("iteration = 3", "no setting iteration;"),
        ("[model]\nstep = 3", "no setting model.step; here are known: steps"),
        ("[faces.mixture]\npapers = 1.0", "no setting faces.mixture.papers"),
        ("iterations = 2.5", "iterations is a whole number, not 2.5"),
        ("iterations = true", "iterations is a whole number"),
        ("rate = '5e-5'", "rate is a number"),
        ("checkpointing = 1", "checkpointing is true or false"),
        ("model = 3", "model is a table"),
        ("[model]\nembeds = 'words'", "model.embeds is one of visual, text, not 'words'"),
        ("[model]\nsteps = 5", "model.steps lies between 1 and 4"),
        ("[model]\nsteps = 1\nstart_step = 3", "model.start_step between 1 and model.steps"),
        ("[model]\nspatial = false\nembeds = 'text'", "nothing to train"),
        ("[model]\nprompt = 'a face'", "model.prompt is used with"),
        ("[model]\nspatial = false\nspatial_start = 'se.pth'", "an encoder that is not there"),
        ("[model]\nguidance = 0.5", "between 1 and 20"),
        ("[faces]\nsize = 100", "faces.size is a multiple of 8"),
        ("[loss]\nl1 = 0\nlpips = 0", "must weigh something"),
        ("iterations = 0", "at least 1"),
        ("seed = -1", "seed is a whole number from 0"),
        ("[faces.mixture]\npaper = -1", "of a mixture are numbers from 0"),
        ("iterations = ", "is no TOML"),
        ("extends = 3", "names one other configuration"),
        ("extends = 'mine.toml'", "extends itself"),
        ("extends = 'nothing'", r"no configuration .*nothing; give a TOML file, or one of: interlcm-1step, interlcm-3step"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=told):
        InterLCMConfig.load(tmp_path / "mine.toml", **PLACES)


def test_a_file_that_is_no_text_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no TOML: it is no text in UTF-8"):
        read_settings(tmp_path / "mine.toml")


def test_files_extend_files_and_options_go_before_both(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "first.toml").write_text("extends = 'interlcm-1step'\nrate = 1e-4\n[loss]\nl1 = 2\n")
    (tmp_path / "second.toml").write_text("extends = 'folder/first.toml'\niterations = 7\n[loss]\ngan = 0\n")
    config = InterLCMConfig.load(tmp_path / "second.toml", **PLACES, iterations=9, batch=None)
    assert (config.model.steps, config.rate, config.iterations, config.batch) == (1, 1e-4, 9, 1)
    assert (config.loss.l1, config.loss.gan, config.loss.lpips) == (2.0, 0.0, 1.0)
    assert read_settings(tmp_path / "second.toml")["iterations"] == 7
    with pytest.raises(UsageError, match="the setting data is missing"):
        InterLCMConfig.load(tmp_path / "second.toml")
    with pytest.raises(UsageError, match="needs its weight file"):
        InterLCMConfig.load("interlcm-3step", data="faces", run="run")


def test_lite_reads_stages_and_shapes_and_options_go_before_both(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        "extends = 'lite-further'\n[draw]\n'old_*' = 2\n[network]\nwidths = [8, 8, 16, 16]\n"
        "[[stages]]\nuntil = 1\nsize = 64\nbatch = 2\nvgg = 64\n"
    )
    given: dict[str, object] = {"data": "faces", "run": "run", "steps": 5}
    config = TrainConfig.of(read_settings(tmp_path / "mine.toml"), **given, rate=1e-3, alex=None)
    assert config.stages == (Stage(until=1.0, size=64, batch=2, vgg=64),)
    assert config.network.widths == (8, 8, 16, 16)
    assert config.draw["old_*"] == 2.0
    assert (config.rate, config.last_rate, config.alex, config.mixture.paper) == (1e-3, 1e-6, 0.9, 0.43)
    assert config.data == Path("faces")
    for text, told in (
        ("[network]\nwidths = [8, 8]", "network.widths is a list of 4, not"),
        ("[network]\nwidths = [8, 8, 8, 'x']", r"network.widths\[3\] is a whole number"),
        ("stages = 3", "stages is a list of settings"),
        ("[[stages]]\nuntil = 1.0", r"the setting stages\[0\].size is missing"),
        ("draw = 3", "draw is a table"),
        ("[draw]\n'old_*' = 'often'", r"draw.old_\* is a number, not 'often'"),
    ):
        (tmp_path / "wrong.toml").write_text(text)
        with pytest.raises(UsageError, match=told):
            TrainConfig.of(read_settings(tmp_path / "wrong.toml"), **given)


def test_the_shipped_memory_is_trained_alone() -> None:
    places = {name: Path(name) for name in ("data", "run", "start", "lpips_alex", "lpips_vgg")}
    config = TrainConfig.of(read_settings("lite-memory"), **places, steps=5)
    config.check()
    assert config.memory_only


def pairs_of(tmp_path: Path, name: str, **changes: object) -> TaskPairs:
    config = InterLCMConfig.load(name, **{**PLACES, "data": str(made_up_faces(tmp_path, (512,)))})
    return TaskPairs(replace(config, faces=replace(config.faces, **changes)))  # type: ignore[arg-type]


def test_colourisation_takes_the_colours_and_keeps_those_of_the_truth(tmp_path: Path) -> None:
    pair = pairs_of(tmp_path, "interlcm-colorize")[(3, 128, 1)]
    assert pair["degraded"].shape == pair["clean"].shape == (3, 128, 128)
    assert torch.equal(pair["degraded"][0], pair["degraded"][2])
    assert float((pair["clean"][0] - pair["clean"][2]).abs().mean()) > 0.05


def test_inpainting_paints_white_and_leaves_the_rest(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, "interlcm-inpaint")
    shares = []
    for number in range(20):
        pair = pairs[(number, 128, 1)]
        white = (pair["degraded"] >= WHITE).all(0)  # as the restorer reads the mask from the picture
        shares.append(float(white.float().mean()))
        same = (pair["degraded"] == pair["clean"]).all(0)
        assert bool((white | same).all())
    assert 0.05 < sum(shares) / len(shares) < 0.5
    assert min(shares) > 0.005


def test_whole_faces_or_windows_of_them(tmp_path: Path) -> None:
    whole, again, window = (pairs_of(tmp_path, "interlcm-3step", fit=fit) for fit in ("resize", "resize", "window"))
    full = whole[(5, 512, 1)]["clean"]
    small = whole[(5, 64, 1)]["clean"]
    blocks = full.unflatten(1, (64, 8)).unflatten(3, (64, 8)).mean((2, 4))
    assert float((small - blocks).abs().mean()) < 0.02, "the whole face, smaller"
    assert torch.equal(small, again[(5, 64, 1)]["clean"])
    part = window[(5, 64, 1)]["clean"]
    assert part.shape == small.shape
    assert float((part - small).abs().mean()) > 0.05
    assert not torch.equal(whole[(6, 64, 1)]["degraded"], whole[(5, 64, 1)]["degraded"])
