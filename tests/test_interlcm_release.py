"""Getting InterLCM: a release served in the right layout with small random weights, broken in every way that happens."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interlcm_small import CLIP, LCM, RELEASE, Release, by_rule, release_files
from typer.testing import CliRunner

from streamfix.cli import app
from streamfix.cli.common import out
from streamfix.errors import ModelError, UsageError
from streamfix.models import find, pull, verify
from streamfix.restore.base import best_restorer, load_restorer
from streamfix.restore.interlcm.options import Options, split_spec
from streamfix.restore.interlcm.text import embed_prompt

FACE = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMFIX_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Release]:
    with Release(dict(release_files())) as server:
        monkeypatch.setenv("STREAMFIX_MIRROR", server.url)
        yield server


def load(name: str = "interlcm-1step", **options: object) -> torch.Tensor:
    spec = name + (":" + ",".join(f"{k}={v}" for k, v in options.items()) if options else "")
    return load_restorer(spec, device="cpu", dtype="float32").restore(FACE)


def test_pull_resumes_detects_and_explains(server: Release, home: Path) -> None:
    spatial, visual = f"{RELEASE}spatial_encoder_3step.pth", f"{RELEASE}visual_encoder_3step.pth"
    unet = f"{LCM}unet/diffusion_pytorch_model.safetensors"
    server.cut, server.damaged, server.sums = {visual}, {spatial, unet}, True
    model, half = find("interlcm"), len(server.files[visual]) // 2
    with pytest.raises(ModelError, match=rf"broke after {half} of .*pull again.*place it at"):
        pull(model)
    assert not model.present
    with pytest.raises(ModelError, match=r"spatial_encoder_3step\.pth from .* is corrupted .*checksum.*removed"):
        pull(model)
    assert server.served[1] == (visual, f"bytes={half}-")
    server.damaged = {unet}
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.safetensors .*sha256 is not the published one"):
        pull(model)
    server.damaged = set()
    pull(model)
    assert model.present
    assert verify(model) is True
    assert not list(home.rglob("*.part"))
    asked = {path for path, _ in server.served}
    assert asked == {visual, spatial, *(p for p in server.files if p.startswith((LCM, CLIP)))}, "only what is needed"
    before = len(server.served)
    pull(model)
    assert len(server.served) == before, "what is here is not asked for again"
    pull(find("interlcm-1step"))
    assert {path for path, _ in server.served[before:]} == {
        f"{RELEASE}{n}_encoder_1step.pth" for n in ("visual", "spatial")
    }


def test_a_file_that_rots_is_found_and_fetched_again(server: Release, home: Path) -> None:
    model = find("interlcm-1step")
    pull(model)
    file = home / "InterLCM" / "spatial_encoder_1step.pth"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert verify(model) is False
    pull(model)
    assert verify(model) is True


def test_the_command_line_tells_licence_and_place(server: Release, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 300)
    done = CliRunner().invoke(app, ["models", "pull", "interlcm-1step", "--mirror", server.url])
    assert done.exit_code == 0, done.output
    assert "CC BY-NC 4.0" in done.output
    assert "non-commercial" in done.output
    listed = CliRunner().invoke(app, ["models", "list"]).output
    assert "interlcm-colorize" in listed
    assert str(home / "InterLCM") in listed


def test_files_brought_by_hand(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official layout for the encoders, the hubs' names for the rest; no server is there."""
    monkeypatch.setenv("STREAMFIX_MIRROR", "http://127.0.0.1:9")
    brought = tmp_path / "brought"
    for path, content in release_files().items():
        if path.startswith(RELEASE):
            target = brought / "weights" / "InterLCM" / path.removeprefix(RELEASE)
        else:
            target = brought / path.removeprefix("/").replace("resolve/main/", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    missing = brought / "weights" / "InterLCM" / "spatial_encoder_1step.pth"
    missing.rename(tmp_path / "elsewhere.pth")
    model = find("interlcm-1step")
    with pytest.raises(ModelError, match=r"spatial_encoder_1step\.pth.*has none of weights/InterLCM/.*place it at"):
        pull(model, source=brought)
    (tmp_path / "elsewhere.pth").rename(missing)
    pull(model, source=brought)
    assert model.present
    assert verify(model) is True
    assert missing.is_file(), "copied, not taken away"
    assert load().shape == FACE.shape


def test_offline_the_error_says_which_file_from_where_and_how(home: Path) -> None:
    with pytest.raises(ModelError) as error:
        load_restorer("interlcm", device="cpu")
    said = str(error.value)
    assert "visual_encoder_3step.pth and 8 more" in said
    assert "https://github.com/sen-mao/InterLCM/releases/download/v0.1.0/visual_encoder_3step.pth" in said
    assert str(home / "InterLCM" / "visual_encoder_3step.pth") in said
    assert "models pull interlcm" in said
    assert "--from DIR" in said
    assert "\n" not in said


def test_after_the_first_load_safetensors_are_enough(server: Release, home: Path) -> None:
    model = find("interlcm-1step")
    pull(model)
    first = load()
    pickles = [*home.rglob("*.pth"), *home.rglob("*.bin")]
    assert len(pickles) == 3
    for file in pickles:
        file.unlink()
    assert model.present
    assert verify(model) is True
    assert torch.equal(load(), first)
    # another pair under the same name is not hidden by what was kept of the first
    name = f"{RELEASE}spatial_encoder_1step.pth"
    server.files[name] = server.files[f"{RELEASE}spatial_encoder_3step.pth"]
    shutil.rmtree(home / "InterLCM")
    pull(model)
    second = load()
    assert not torch.equal(second, first)
    server.files[name] = release_files()[name]
    (home / "InterLCM" / "spatial_encoder_1step.pth").write_bytes(b"rotten")
    pull(model)
    assert torch.equal(load(), first)


class _Shout:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("i-was-run",)


def test_a_pickle_that_would_run_code_is_refused(
    server: Release, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pull(find("interlcm-1step"))
    (home / "InterLCM" / "visual_encoder_1step.pth").write_bytes(b"something else")
    with pytest.raises(ModelError, match="sha256 differs"):
        load()
    (home / "InterLCM" / "SHA256SUMS").unlink()  # as if placed by hand
    data = io.BytesIO()
    torch.save({"params_ema": _Shout()}, data)
    for content in (data.getvalue(), pickle.dumps({"params_ema": _Shout()}, protocol=2)):
        (home / "InterLCM" / "visual_encoder_1step.pth").write_bytes(content)
        with pytest.raises(ModelError, match="plain tensors"):
            load()
    assert not (tmp_path / "i-was-run").exists()


def test_weights_that_do_not_fit_are_told(server: Release, home: Path) -> None:
    pull(find("interlcm-1step"))
    file = home / "InterLCM" / "spatial_encoder_1step.pth"
    sums = home / "InterLCM" / "SHA256SUMS"
    sums.unlink()
    state = torch.load(file, weights_only=True)["params_ema"]
    state.pop("conv_in.weight")
    torch.save({"params_ema": state}, file)
    with pytest.raises(ModelError, match=r"do not fit the network: 1 tensors .* conv_in\.weight"):
        load()
    sums.unlink()
    torch.save([1, 2], file)
    with pytest.raises(ModelError, match="params_ema"):
        load()
    (home / "LCM_Dreamshaper_v7" / "unet" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="configuration"):
        load()


def test_only_what_the_options_need_is_loaded(server: Release, home: Path) -> None:
    pull(find("interlcm-1step"))
    with pytest.raises(ModelError, match=r"taesd lacks config\.json.*models pull taesd"):
        load(vae="tiny")
    with pytest.raises(ModelError, match=r"lcm-text lacks .*models pull lcm-text"):
        load(visual="off")
    (home / "InterLCM" / "spatial_encoder_1step.pth").unlink()
    assert load(spatial="off").shape == FACE.shape
    with pytest.raises(ModelError, match="spatial_encoder_1step"):
        load()


def test_auto_takes_interlcm_where_a_gpu_and_its_weights_are(server: Release, home: Path) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert (best_restorer(gpu), best_restorer(cpu)) == ("lite", "lite")
    pull(find("interlcm"))
    assert (best_restorer(gpu), best_restorer(cpu)) == ("interlcm", "lite")


def test_a_text_in_place_of_the_visual_encoder(server: Release, home: Path) -> None:
    """The text encoder is loaded for it, and neither the visual encoder nor CLIP's image tower is."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    text = home / "LCM_Dreamshaper_v7" / "text_encoder"
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcdef"), *"abcdef"]
    (text.with_name("tokenizer")).mkdir(parents=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    files = {"vocab.json": json.dumps(vocabulary), "merges.txt": "#version: 0.2\n"}
    special = {"bos_token": words[0], "eos_token": words[1], "unk_token": words[1], "pad_token": words[1]}
    files |= {"tokenizer_config.json": json.dumps(special | {"model_max_length": 77})}
    files |= {"special_tokens_map.json": json.dumps(special)}
    for name, content in files.items():
        (text.with_name("tokenizer") / name).write_text(content)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=768, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    encoder = by_rule(CLIPTextModel(config), "text.")
    encoder.save_pretrained(text)
    ids = [0, vocabulary["a"], vocabulary["b</w>"], *[1] * 74]
    tokenizer = CLIPTokenizer.from_pretrained(text.with_name("tokenizer"))
    assert tokenizer("ab", padding="max_length").input_ids == ids
    with torch.no_grad():
        expected = encoder(torch.tensor([ids])).last_hidden_state
    assert torch.allclose(embed_prompt("ab"), expected, atol=1e-5)
    assert not torch.allclose(embed_prompt(""), expected, atol=1e-2)
    pull(find("interlcm-1step"))
    for gone in ("visual_encoder_1step.pth", "../clip-vit-base-patch16/pytorch_model.bin"):
        (home / "InterLCM" / gone).unlink()
    assert not torch.equal(load(prompt="ab"), load(visual="off"))


def test_options_in_one_line() -> None:
    assert split_spec("lite") is None
    assert split_spec("interlcm") == ("interlcm", Options())
    spec = "interlcm-1step:steps=2,guidance=6.5,visual=off,noise=fresh,prompt=an old man, smiling,seed=7"
    expected = Options(steps=2, guidance=6.5, visual=False, noise="fresh", prompt="an old man, smiling", seed=7)
    assert split_spec(spec) == ("interlcm-1step", expected)
    for wrong in ("steps=x", "colour=red", "noise=loud", "visual=1", "steps", ""):
        with pytest.raises(UsageError):
            split_spec(f"interlcm:{wrong}")
    for options in (Options(steps=5), Options(start_step=5), Options(guidance=0), Options(start_step=0)):
        with pytest.raises(UsageError):
            options.of("interlcm")
    own = {name: (o.steps, o.color_fix) for name in ("interlcm", "interlcm-colorize") if (o := Options().of(name))}
    assert own == {"interlcm": (3, "wavelet"), "interlcm-colorize": (1, "none")}
    assert json.dumps(own)
