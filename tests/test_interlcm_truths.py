"""What must always be true, with InterLCM as the restorer: freeze, batch, segments; and that fresh noise breaks the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import decode, degraded, planes
from diffusers import AutoencoderTiny
from interlcm_small import by_rule, smallest_modules

from streamfix import enhance
from streamfix.aligned import AlignedPipeline
from streamfix.errors import ModelError, UsageError
from streamfix.faces.detect import load_detector
from streamfix.pipeline import Pipeline
from streamfix.restore.base import Restorer, describe
from streamfix.restore.effort import efforts
from streamfix.restore.interlcm.color import fix_colors, is_grey, keep_published_grey, low_frequencies
from streamfix.restore.interlcm.options import Options
from streamfix.restore.interlcm.pipeline import InterLCM
from streamfix.restore.interlcm.restorer import InterLCMRestorer
from streamfix.restore.noise import shared_noise


@pytest.fixture(scope="module")
def model() -> InterLCM:
    return InterLCM(**smallest_modules())


@pytest.fixture(scope="module")
def restorer(model: InterLCM) -> InterLCMRestorer:
    return InterLCMRestorer("interlcm-1step", model=model)


@pytest.fixture(scope="module")
def faces(astronaut: np.ndarray) -> torch.Tensor:
    """Three different faces (3, 3, 512, 512) in [-1, 1]: coloured, mirrored and dark, grey."""
    face = cv2.resize(astronaut[40:200, 150:310], (512, 512), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    grey = np.repeat(face.mean(axis=2, keepdims=True), 3, axis=2)
    stack = np.stack([face, face[:, ::-1] * 0.6, grey])
    return torch.from_numpy(stack / 127.5 - 1).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def together(restorer: InterLCMRestorer, faces: torch.Tensor) -> torch.Tensor:
    """All three restored in one call."""
    return restorer.restore(faces)


def frozen(restorer: Restorer, source: Path, out: Path) -> int:
    """How many different pictures come of one that is repeated."""
    pipeline = Pipeline(
        restorer=restorer, detector=load_detector("retinaface"), lookahead=2, batch_size=2, protect=False
    )
    report = enhance(source, out, pipeline=pipeline, codec="ffv1")
    assert report.faces == report.frames
    return len({b"".join(p.tobytes() for p in planes(f)) for f in decode(out)})


def test_freeze_and_that_fresh_noise_breaks_it(
    clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path, restorer: InterLCMRestorer
) -> None:
    source = clip("still.mkv", [degraded(face_picture, 0)] * 3)
    assert frozen(restorer, source, tmp_path / "shared.mkv") == 1
    fresh = restorer.with_options(Options(noise="fresh"))
    assert frozen(fresh, source, tmp_path / "fresh.mkv") == 3, "the flicker that shared noise removes"


def test_less_effort_is_fewer_steps_of_the_same_networks(
    restorer: InterLCMRestorer, faces: torch.Tensor, together: torch.Tensor
) -> None:
    ways = efforts(restorer.with_options(Options(steps=3)))
    assert [e.words for e in ways] == ["", "2 of 3 steps", "1 of 3 steps"]
    assert 1 > ways[1].share > ways[2].share > 0.3
    assert torch.equal(ways[2].restorer.restore(faces[:1])[0], together[0])  # which takes one step
    late = restorer.with_options(Options(steps=3, start_step=3))
    assert [e.words for e in efforts(late)] == ["", "1 of 2 steps"]


def test_batch(restorer: InterLCMRestorer, faces: torch.Tensor, together: torch.Tensor) -> None:
    """B faces in one call equal B single calls."""
    for i in (0, 2):
        assert torch.equal(restorer.restore(faces[i : i + 1])[0], together[i]), f"face {i}"
    assert together.shape == faces.shape
    assert together.dtype == torch.float32
    assert float(together.abs().max()) <= 1


def test_batch_computed_together(faces: torch.Tensor) -> None:
    """In one call of the networks too; float64, because in float32 other kernels round differently."""
    modules = {k: v.double() if isinstance(v, torch.nn.Module) else v for k, v in smallest_modules().items()}
    model = InterLCM(**modules, face_size=128)
    each, together = (
        InterLCMRestorer("interlcm-1step", Options(batch=batch), model=model).restore(faces[:2]) for batch in (1, 2)
    )
    assert float((each - together).abs().max()) <= 1e-5


def test_segments(clip: Callable[..., Path], faces: torch.Tensor, tmp_path: Path, restorer: InterLCMRestorer) -> None:
    """Where a job is cut does not show: noise depends on nothing but its seed."""
    picture = ((faces[0].permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
    source = clip("in.mkv", [degraded(picture, n) for n in range(3)])

    def run(name: str, **part: float) -> list[bytes]:
        # a restorer of its own for each part, as another process would have it
        pipeline = AlignedPipeline(restorer=restorer.with_options(restorer.options), batch_size=2)
        enhance(source, tmp_path / name, pipeline=pipeline, codec="ffv1", **part)
        return [b"".join(p.tobytes() for p in planes(f)) for f in decode(tmp_path / name)]

    whole = run("whole.mkv")
    assert len(set(whole)) == 3
    assert run("a.mkv", end=0.08) + run("b.mkv", start=0.08) == whole


def test_noise_is_an_argument(restorer: InterLCMRestorer, faces: torch.Tensor, together: torch.Tensor) -> None:
    assert restorer.noise_shape() == (1, 1, 4, 64, 64)
    ours = shared_noise(restorer.noise_shape(), seed=0)
    assert torch.equal(restorer.restore(faces[:1], ours), together[:1])
    other = restorer.with_options(Options(seed=1)).restore(faces[:1])
    assert not torch.equal(other, together[:1])
    assert torch.equal(restorer.restore(faces[:1], shared_noise(restorer.noise_shape(), seed=1)), other)
    with pytest.raises(ModelError, match="noise"):
        restorer.restore(faces[:1], torch.zeros(2, 1, 4, 64, 64))


def test_every_option_tells(model: InterLCM, faces: torch.Tensor) -> None:
    """Each setting changes the answer, and the network is called as often as it says."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.unet.register_forward_hook(count)
    published = InterLCMRestorer("interlcm-1step", model=model)
    reference = published.restore(faces[:1])
    assert calls == 1
    seen = [reference]
    for options, expected in (
        (Options(steps=2), 2),
        (Options(start_step=1), 2),
        (Options(steps=2, start_step=3), 1),
        (Options(guidance=6.0), 1),
        (Options(color_fix="none"), 1),
    ):
        calls = 0
        seen.append(published.with_options(options).restore(faces[:1]))
        assert calls == expected, options
    handle.remove()
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_without_the_spatial_encoder_and_with_a_prompt(model: InterLCM, faces: torch.Tensor) -> None:
    parts = {"unet": model.unet, "vae": model.vae, "scheduler": model.scheduler}
    bare = InterLCM(**parts, spatial_encoder=None, visual_encoder=None)
    noise = torch.zeros(1, 1, 4, 64, 64)
    null, text = torch.zeros(1, 77, 768), torch.ones(1, 77, 768)
    one = bare.restore_from_embeds(faces[:1], null, noise, num_inference_steps=2)
    assert one.shape == (1, 3, 512, 512)
    assert not torch.equal(bare.restore_from_embeds(faces[:1], text, noise, num_inference_steps=2), one)
    with pytest.raises(ModelError, match="without the visual encoder"):
        bare.restore_from_tokens(faces[:1], torch.zeros(1, 197, 768), noise, num_inference_steps=2)


def test_the_tiny_vae(model: InterLCM, faces: torch.Tensor) -> None:
    """Its latents come scaled: no factor may be applied to them."""
    vae = by_rule(
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ),
        "taesd.",
    )
    small = InterLCM(**{**smallest_modules(), "vae": vae})
    latent = small.latent(faces[:1])
    assert latent.shape == (1, 4, 64, 64) == (1, *small.latent_shape(512, 512))
    assert torch.equal(latent, vae.encode(faces[:1]).latents)
    assert torch.equal(small.decode(latent), vae.decode(latent).sample)
    assert InterLCMRestorer("interlcm-1step", model=small).restore(faces[:1]).shape == (1, 3, 512, 512)


def test_what_each_published_model_does_with_colour(
    model: InterLCM, faces: torch.Tensor, together: torch.Tensor
) -> None:
    restored = together
    spread = restored.amax(1) - restored.amin(1)
    assert float(spread[2].max()) < 1e-5, "grey stays grey"
    assert float(spread[0].mean()) > 0.01
    assert float((restored[2].mean() - faces[2].mean()).abs()) < 0.1
    coloured = InterLCMRestorer("interlcm-colorize", model=model).restore(faces[2:])
    assert float((coloured.amax(1) - coloured.amin(1)).mean()) > 0.05


def test_inpainting_fills_what_is_white_and_nothing_else(model: InterLCM, faces: torch.Tensor) -> None:
    painted = faces[:1].clamp(-1, 0.9).clone()
    painted[..., 100:200, 150:300] = 1.0
    out = InterLCMRestorer("interlcm-inpaint", model=model).restore(painted)
    filled = (out != painted).any(dim=1)[0]
    assert not bool(filled[:100].any() | filled[200:].any() | filled[:, :150].any() | filled[:, 300:].any())
    assert float(filled[100:200, 150:300].float().mean()) > 0.9  # the rest is white by chance


def test_colour_fixes_do_what_they_are_for(faces: torch.Tensor) -> None:
    restored = faces.flip(0) * 0.5 + 0.2
    wavelet = fix_colors(restored, faces, "wavelet")
    assert torch.allclose(wavelet - low_frequencies(faces), restored - low_frequencies(restored), atol=1e-6)
    flat = torch.full((1, 3, 64, 64), 0.3)
    assert torch.allclose(low_frequencies(flat), flat)
    dot = torch.zeros(1, 1, 129, 129)
    dot[..., 64, 64] = 1  # the blur keeps what there is, evenly to all sides, 31 pixels far
    spread = low_frequencies(dot)[0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(spread, spread.T)
    assert torch.nonzero(spread).min() == 64 - 31
    adain = fix_colors(restored, faces, "adain")
    assert torch.allclose(adain.mean((2, 3)), faces.mean((2, 3)), atol=1e-5)
    assert torch.allclose(adain.std((2, 3)), faces.std((2, 3)), atol=1e-3)
    assert is_grey(faces).tolist() == [False, False, True]
    kept = keep_published_grey(restored, faces)
    assert torch.equal(kept[:2], restored[:2])


def test_half_precision_is_close(faces: torch.Tensor, together: torch.Tensor) -> None:
    modules = {k: v.to(torch.bfloat16) if hasattr(v, "to") else v for k, v in smallest_modules().items()}
    half = InterLCMRestorer("interlcm-1step", model=InterLCM(**modules))
    assert half.dtype is torch.bfloat16
    assert "bfloat16" in describe(half)
    out = half.restore(faces[:1])
    assert out.dtype == torch.float32
    assert float((out - together[:1]).abs().mean()) < 0.02
    assert replace(half.options, seed=1) != half.options


def test_detail_is_carried_where_the_input_stays(model: InterLCM, faces: torch.Tensor) -> None:
    """With carry the next frame leans on the last; where the input changed it does not, and a new face never does."""
    plain = InterLCMRestorer(model=model, options=Options(carry=0.0))
    carried = InterLCMRestorer(model=model, options=Options(carry=0.7))
    assert not plain.recurrent
    assert carried.recurrent
    faces = faces[:1]
    noisy = (faces + 0.02 * torch.randn(faces.shape, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)
    first, states = carried.restore_next(faces, [None] * len(faces))
    assert torch.allclose(first, plain.restore(faces), atol=1e-4)
    second, _ = carried.restore_next(noisy, states)
    alone = plain.restore(noisy)
    assert float((second - first).abs().mean()) < float((alone - first).abs().mean()), "steadier than on its own"
    other = torch.where(faces > 0, faces - 0.6, faces + 0.6)
    changed, _ = carried.restore_next(other, states)
    assert torch.allclose(changed, plain.restore(other), atol=1e-4), "another picture"
    with pytest.raises(UsageError, match="carry"):
        InterLCMRestorer(model=model, options=Options(carry=1.0))
