"""InterLCM behind the Restorer protocol: batches, shared noise, and what each published model does around the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.restore.base import check_crops, fast_bfloat16
from streamfix.restore.color_fix import keep_grey
from streamfix.restore.effort import Effort
from streamfix.restore.interlcm.carry import Carry, at_latent_size
from streamfix.restore.interlcm.checkpoint import digest_of, load_networks
from streamfix.restore.interlcm.color import keep_published_grey
from streamfix.restore.interlcm.options import Options
from streamfix.restore.interlcm.pipeline import InterLCM, noises_needed
from streamfix.restore.noise import shared_noise

_STEP, _CODING = 455.0, {"full": 1798.0, "tiny": 149.0}
"""Multiply-adds (10^9) a face takes for one step (U-Net and spatial encoder), and for everything else (VAE there and back, CLIP)."""

WHITE = 1.0 - 1.0 / 255.0
"""From here a value in [-1, 1] is white, which is what the inpainting model is asked to fill."""


class InterLCMRestorer:
    """One of the four published models.

    name: a key of `options.PUBLISHED`. model: the networks, or None to load the released ones. dtype: None picks bfloat16
    where it is fast (half precision on GPUs without it), float32 else.
    """

    def __init__(
        self,
        name: str = "interlcm",
        options: Options | None = None,
        *,
        model: InterLCM | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.name = name
        self.options = (options or Options()).of(name)
        self.recurrent = self.options.carry > 0
        self.pure = self.options.noise == "shared"  # else the same face gets another answer each time
        self.sha256: str | None = None
        self._prompt: Tensor | None = None
        if self.options.prompt is not None:
            from streamfix.restore.interlcm.text import embed_prompt

            self._prompt = embed_prompt(self.options.prompt, Path(self.options.base) if self.options.base else None)
        if model is None:
            device = device or torch.device("cpu")
            model = load_networks(name, self.options, device=device, dtype=dtype or self._dtype(device))
            self.sha256 = digest_of(name, self.options)
        self._model = model
        self.device, self.dtype = model.device, model.dtype
        if self.options.compile:
            model.compile()
        self._fresh = torch.Generator("cpu").manual_seed(self.options.seed)
        self._shared: dict[tuple[int, ...], Tensor] = {}

    def _dtype(self, device: torch.device) -> torch.dtype:
        return _fast(device) if self.options.dtype == "auto" else getattr(torch, self.options.dtype)

    def with_options(self, options: Options) -> InterLCMRestorer:
        """The same networks under other steps, start, guidance, noise, seed and colours; the rest stays as it was loaded."""
        other = InterLCMRestorer(
            self.name, replace(options, compile=False, visual=True, prompt=None), model=self._model
        )
        other.sha256, other._prompt = self.sha256, self._prompt
        return other

    def cheaper(self) -> list[Effort]:
        """See Adjustable: fewer steps, from one less down to one."""
        options = self.options
        assert options.steps is not None  # `of` has filled it in
        ways = []
        for steps in range(options.steps - 1, max(options.start_step - 1, 1) - 1, -1):
            taken, full = (n + 2 - options.start_step for n in (steps, options.steps))
            share = (_CODING[options.vae] + taken * _STEP) / (_CODING[options.vae] + full * _STEP)
            words = f"{taken} of {full} steps"
            ways.append(Effort(restorer=self.with_options(replace(options, steps=steps)), share=share, words=words))
        return ways

    @torch.no_grad()
    def restore(self, crops: Tensor, noise: Tensor | None = None) -> Tensor:
        """See Restorer. noise: (N, 1 or B, 4, 64, 64) as `noise_shape` says, or None for what the options say."""
        check_crops(crops)
        lq = crops.to(self.device, torch.float32)
        parts = self._parts(lq)
        return self._all(lq, self._noise(lq) if noise is None else noise, parts, [None] * len(parts)).to(crops.device)

    @torch.no_grad()
    def restore_next(self, crops: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """See RecurrentRestorer; a state holds latents and the input at their size (see carry.py)."""
        check_crops(crops)
        lq = crops.to(self.device, torch.float32)
        seen = at_latent_size(lq, *self.noise_shape()[3:])
        parts = self._parts(lq)
        carries = [Carry(self.options.carry, seen[p], states[p]) for p in parts]
        restored = self._all(lq, self._noise(lq), parts, carries)
        return restored.to(crops.device), [state for carry in carries for state in carry.states()]

    def _parts(self, lq: Tensor) -> list[slice]:
        size = self.options.batch or (1 if self.device.type == "cpu" else len(lq))
        return [slice(i, i + size) for i in range(0, len(lq), size)]

    def _all(self, lq: Tensor, noise: Tensor, parts: Sequence[slice], carries: Sequence[Carry | None]) -> Tensor:
        noise = noise.to(self.device, torch.float32)
        each = noise.ndim == 5 and noise.shape[1] == len(lq) > 1  # one noise a face, not one for all
        faces = [
            self._restore(lq[p], noise[:, p] if each else noise, carry) for p, carry in zip(parts, carries, strict=True)
        ]
        return torch.cat(faces)

    def _restore(self, lq: Tensor, noise: Tensor, carry: Carry | None) -> Tensor:
        options, model = self.options, self._model
        small = resized(lq, model.face_size)
        embeds = model.visual(model.tokens(small)) if self._prompt is None else self._prompt
        assert options.steps is not None  # `of` has filled it in
        restored = model.restore_from_embeds(
            small,
            embeds,
            noise,
            num_inference_steps=options.steps + 1,
            guidance_scale=options.guidance,
            color_fix=options.color_fix,
            start_step=options.start_step,
            before_last=carry,
        )
        restored = resized(restored, lq.shape[-1]).clamp(-1, 1)
        if options.grey == "published":
            restored = keep_published_grey(restored, lq)
        elif options.grey == "smooth":
            restored = keep_grey(restored, lq)
        if self.name == "interlcm-inpaint":  # what is not painted white stays as it is
            restored = torch.where((lq >= WHITE).all(dim=1, keepdim=True), restored, lq.clamp(-1, 1))
        return restored

    def noise_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the noise that all faces share: (N, 1, channels, h, w)."""
        assert self.options.steps is not None
        model = self._model
        needed = noises_needed(self.options.steps + 1, self.options.start_step)
        return (needed, 1, *model.latent_shape(model.face_size, model.face_size))

    def _noise(self, lq: Tensor) -> Tensor:
        shape = self.noise_shape()
        if self.options.noise == "fresh":  # as published: one draw for every face, and another the next time
            fresh = (shape[0], lq.shape[0], *shape[2:])
            return torch.randn(fresh, generator=self._fresh, dtype=torch.float32)
        if shape not in self._shared:
            self._shared[shape] = shared_noise(shape, seed=self.options.seed).to(self.device)
        return self._shared[shape]


def resized(faces: Tensor, size: int) -> Tensor:
    """Faces (B, 3, H, H) at another size, bicubic; those that have it stay as they are."""
    if faces.shape[-1] == size:
        return faces
    return F.interpolate(faces, size=(size, size), mode="bicubic", antialias=size < faces.shape[-1])


def _fast(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and fast_bfloat16() else torch.float32
