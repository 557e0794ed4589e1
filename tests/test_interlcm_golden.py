"""InterLCM against values of the published code: three runs on small networks with weights by a rule, to 1e-4 in float32."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from interlcm_small import CONFIGS, DATA, small_clip, small_interlcm, small_modules

from streamfix.errors import ModelError, UsageError
from streamfix.restore.interlcm.networks import CLIP_MEAN, CLIP_STD, spatial_encoder
from streamfix.restore.interlcm.pipeline import InterLCM
from streamfix.restore.interlcm.visual_encoder import VisualEncoder

LIMIT = 1e-4
RUNS = {"three_step": "wavelet", "one_step": "none", "batch_two_adain": "adain"}


@pytest.fixture(scope="module")
def model() -> InterLCM:
    return small_interlcm()


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, Any]]:
    stored = np.load(DATA / "interlcm_golden.npz")
    runs: dict[str, dict[str, Any]] = {run: {} for run in RUNS}
    for key in stored.files:
        run, name = key.split("/")
        runs[run][name] = torch.from_numpy(stored[key]) if stored[key].ndim else stored[key].item()
    runs["one_step"]["fixed"] = runs["one_step"]["restored"]  # no colour fix in that run
    return runs


def off(ours: torch.Tensor, golden: torch.Tensor) -> float:
    assert ours.shape == golden.shape
    return float((ours - golden).abs().max())


@pytest.mark.parametrize("run", RUNS)
def test_the_published_code_gives_the_same_numbers(
    run: str, model: InterLCM, golden: dict[str, dict[str, Any]]
) -> None:
    """Stored are whole inputs and latents, every fifth value of `visual` and every third pixel of the faces."""
    g = golden[run]
    assert [s.timestep for s in model.schedule(g["steps"])] == g["timesteps"].tolist()
    assert off(model.visual(g["clip_tokens"])[:, ::5, ::5], g["visual"]) <= LIMIT
    assert off(model.latent(g["lq"]), g["latent"]) <= LIMIT
    for name, color_fix in (("restored", "none"), ("fixed", RUNS[run])):
        face = model.restore_from_tokens(
            g["lq"],
            g["clip_tokens"],
            g["noise"],
            num_inference_steps=g["steps"],
            guidance_scale=g["guidance"],
            color_fix=color_fix,
        )
        assert off(face[..., ::3, ::3], g[name]) <= LIMIT, name


def test_the_stages_give_what_the_whole_gives(model: InterLCM, golden: dict[str, dict[str, Any]]) -> None:
    g = golden["three_step"]
    denoised = model.denoise(
        g["lq"], model.latent(g["lq"]), model.visual(g["clip_tokens"]), g["noise"], num_inference_steps=4
    )
    assert off(model.decode(denoised)[..., ::3, ::3], g["restored"]) <= LIMIT


def test_the_golden_values_are_sensitive(model: InterLCM, golden: dict[str, dict[str, Any]]) -> None:
    """What they would miss they would not prove: guidance, noise, tokens and steps all show."""
    g = golden["three_step"]
    given = {"num_inference_steps": 4, "guidance_scale": 8.0, "color_fix": "none"}
    changes: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = [
        (g["clip_tokens"], g["noise"], {**given, "guidance_scale": 6.0}),
        (g["clip_tokens"], g["noise"].flip(0), given),
        (g["clip_tokens"] * 1.05, g["noise"], given),
        (g["clip_tokens"], g["noise"][:2], {**given, "num_inference_steps": 3}),
    ]
    for tokens, noise, options in changes:
        assert off(model.restore_from_tokens(g["lq"], tokens, noise, **options)[..., ::3, ::3], g["restored"]) > LIMIT


def test_the_visual_encoder_has_the_published_keys_and_shapes() -> None:
    keys = json.loads((DATA / "interlcm_visual_encoder_keys.json").read_text())
    encoder = VisualEncoder()
    assert {name: list(value.shape) for name, value in encoder.state_dict().items()} == keys
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == 12.96


def test_the_spatial_encoder_is_diffusers_own_controlnet_of_that_unet() -> None:
    plain = ControlNetModel.from_unet(UNet2DConditionModel(**{**CONFIGS["unet"], "time_cond_proj_dim": None}))
    ours = spatial_encoder(CONFIGS["unet"])
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in plain.config.items() if k[0] != "_"
    }


def test_embedding_the_face_once_is_the_same_as_at_every_step(golden: dict[str, dict[str, Any]]) -> None:
    """The whole ControlNet, called as anyone would call it, gives the residuals that the loop uses; it is left unchanged."""
    modules = small_modules()
    encoder = modules["spatial_encoder"]
    g = golden["three_step"]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    encoder.controlnet_cond_embedding.register_forward_hook(count)
    model = InterLCM(**modules)
    model.restore_from_tokens(g["lq"], g["clip_tokens"], g["noise"])
    assert calls == 1
    arguments = {"encoder_hidden_states": torch.zeros(1, 77, 768), "return_dict": False}
    z, t = torch.ones(1, 4, 16, 16), torch.tensor([499])
    whole = encoder(z, t, controlnet_cond=g["lq"], **arguments)
    once = model._steps_only(z, t, controlnet_cond=model._condition(g["lq"]), **arguments)
    assert all(torch.equal(a, b) for a, b in zip([*whole[0], whole[1]], [*once[0], once[1]], strict=True))


def test_clip_is_openais_arithmetic() -> None:
    """Against CLIP's image tower written down here: x * sigmoid(1.702 x), norms before each half, post norm on all tokens."""
    clip = small_clip()
    faces = torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(3)) * 2 - 1
    w = {k.removeprefix("vision_model."): v for k, v in clip.tower.state_dict().items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    pixels = (bicubic(bicubic((faces + 1) / 2, 224).transpose(2, 3), 224)).transpose(2, 3)
    pixels = (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(2, 196, -1)
    x = patches @ w["embeddings.patch_embedding.weight"].flatten(1).T
    x = torch.cat((w["embeddings.class_embedding"].expand(2, 1, 768), x), 1) + w["embeddings.position_embedding.weight"]
    x = norm(x, "pre_layrnorm")
    layer = "encoder.layers.0"
    h = norm(x, f"{layer}.layer_norm1")
    q, k, v = (linear(h, f"{layer}.self_attn.{n}_proj").view(2, 197, 12, 64).transpose(1, 2) for n in "qkv")
    mixed = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(64), -1) @ v
    x = x + linear(mixed.transpose(1, 2).reshape(2, 197, 768), f"{layer}.self_attn.out_proj")
    h = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
    quick, exact = (x + linear(g, f"{layer}.mlp.fc2") for g in (h * torch.sigmoid(1.702 * h), F.gelu(h)))

    tokens = clip(faces)
    assert tokens.shape == (2, 197, 768)
    assert off(tokens, norm(quick, "post_layernorm")) < 1e-3  # every token, no projection
    assert off(tokens, norm(exact, "post_layernorm")) > 1e-2, "the test can tell"
    antialiased = F.interpolate((faces + 1) / 2, (224, 224), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    assert float((antialiased - (clip.prepare(faces) * std + mean)).abs().max()) > 0.1, "the test can tell"


def bicubic(x: torch.Tensor, size: int) -> torch.Tensor:
    """Keys' cubic convolution (a = -0.75) along the last axis: four taps whatever the scale, clamped at the edges."""
    a, scale = -0.75, x.shape[-1] / size
    at = (torch.arange(size, dtype=torch.float64) + 0.5) * scale - 0.5
    base = at.floor()
    out = torch.zeros(*x.shape[:-1], size)
    for tap in range(-1, 3):
        d = (at - (base + tap)).abs()
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weight = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
        out += x[..., (base + tap).long().clamp(0, x.shape[-1] - 1)] * weight.float()
    return out


def test_noise_of_the_wrong_number_or_shape_is_told(model: InterLCM, golden: dict[str, dict[str, Any]]) -> None:
    g = golden["three_step"]
    for noise in (g["noise"][:2], torch.zeros(3, 2, 4, 16, 16), torch.zeros(3, 1, 4, 8, 8), torch.zeros(4, 16)):
        with pytest.raises(ModelError, match="noise"):
            model.restore_from_tokens(g["lq"], g["clip_tokens"], noise)
    for steps in (0, 51):
        with pytest.raises(ModelError, match=f"between 1 and 50, not {steps}"):
            model.schedule(steps)
    with pytest.raises(UsageError, match="colour fix"):
        model.restore_from_tokens(g["lq"], g["clip_tokens"], g["noise"], color_fix="sepia")
    with pytest.raises(ModelError, match="without CLIP"):
        model.tokens(g["lq"])
