"""The trainer of InterLCM's encoders, as published: the loss is on the face that comes out of all steps.

Frozen are the UNet, the VAE and CLIP; trained are the visual and the spatial encoder, in the very loop that restores
(`InterLCM.denoise`). What is trained, what it learns from and what it pays for stands in an `InterLCMConfig`; the other
trainings (one step, colourisation, inpainting, a plain ControlNet, the ablations) are settings of this one.

A run is a folder: `checkpoint.pt` (everything needed to go on), `log.csv`, TensorBoard events where TensorBoard is installed,
and `InterLCM/` (the averaged weights as the published files). Faces, noise and times are functions of (seed, number of
the face), so a run that was killed goes on exactly where its last checkpoint stands, and two runs of one seed on one
machine agree.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.errors import ModelError, UsageError
from streamfix.restore.interlcm.checkpoint import Base, load_base
from streamfix.restore.interlcm.pipeline import InterLCM, noises_needed
from streamfix.restore.interlcm.text import embed_prompt
from streamfix.train.adversary import Adversary, discriminator_gradients, generator_loss
from streamfix.train.data import Batches, Plan, loader
from streamfix.train.encoders import FOLDER, SPATIAL, VISUAL, new_encoders, write_released
from streamfix.train.interlcm_config import InterLCMConfig
from streamfix.train.log import Log
from streamfix.train.loop import Report, learn
from streamfix.train.losses import Lpips
from streamfix.train.ranks import Ranks
from streamfix.train.schedule import cosine, follow, read_checkpoint, write_checkpoint
from streamfix.train.tasks import TaskPairs

_TIMES = 1000
"""Time steps of the diffusion process."""


class Trainer:
    """Encoders, averaged weights, optimisers and counters of one run.

    base: the networks that are not trained, for who has them already; they are loaded from the configuration's folder else.
    """

    def __init__(self, config: InterLCMConfig, *, base: Base | None = None) -> None:
        self.config = c = config
        self.ranks = Ranks()
        if c.batch % self.ranks.count:
            raise UsageError(f"batch must be a multiple of the {self.ranks.count} processes, not {c.batch}")
        self.device = self.ranks.device_of(c.device)
        self.dtype = getattr(torch, c.precision)
        chain = c.model
        if base is None:
            clip = chain.embeds == "visual"
            base = load_base(chain.vae, clip=clip, device=self.device, dtype=self.dtype, folder=c.base)
        torch.manual_seed(c.seed)
        self.encoders = new_encoders(chain, base).to(self.device)
        # what computes: the float32 weights themselves, or a copy in the computing precision
        self.workers = self.encoders if self.dtype == torch.float32 else copy.deepcopy(self.encoders).to(self.dtype)
        parts: dict[str, Any] = {VISUAL: None, SPATIAL: None, **dict(self.workers.items())}
        if c.checkpointing:
            for network in (base.unet, base.vae, parts[SPATIAL]):
                if network is not None:
                    network.enable_gradient_checkpointing()
        self.model = InterLCM(
            unet=base.unet,
            vae=base.vae,
            scheduler=base.scheduler,
            clip=base.clip,
            face_size=base.face_size,
            **parts,
        )
        self.size = c.faces.size or base.face_size
        self._text = self._given_embeds()
        self.lpips: Lpips | None = None
        self.adversary: Adversary | None = None
        if c.loss.objective == "image":
            if c.loss.lpips and c.lpips is not None:
                self.lpips = Lpips(c.lpips, dtype=self.dtype).to(self.device)
            if c.loss.gan:
                self.adversary = Adversary(rate=c.rate, device=self.device, dtype=self.dtype)
        self.trained = list(self.encoders.parameters())
        self.optimizer = torch.optim.Adam(self.trained, lr=c.rate, betas=(0.9, 0.99), fused=True)
        self.average = {k: v.detach().clone() for k, v in self.encoders.state_dict().items()}
        self.step, self.sample, self.seconds = 0, 0, 0.0
        c.run.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """Where the run can be resumed from."""
        return self.config.run / "checkpoint.pt"

    @property
    def released(self) -> Path:
        """Folder of the averaged weights, written as the published ones."""
        return self.config.run / FOLDER

    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return min(1.0, self.step / self.config.iterations)

    def rate(self) -> float:
        """Learning rate of the current step."""
        return cosine(self.config.rate, self.config.last_rate, self.progress())

    def plan(self, step: int) -> Plan:
        """What the batch of a step is made of."""
        return Plan(self.size, self.config.batch)

    def columns(self) -> list[str]:
        """Names of everything a step of this run can log."""
        if self.config.loss.objective == "noise":
            return ["total", "noise"]
        names = ["total", "l1", *(["lpips"] if self.lpips is not None else [])]
        if self.adversary is None:
            return names
        return [*names, "gan", *(["gan_weight"] if self.config.loss.gan_adaptive else []), "d_real", "d_fake"]

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One update; the unweighted terms and their weighted sum as `total`."""
        c = self.config
        judging = self.adversary is not None and self.step + 1 >= c.loss.gan_from
        judge = self.adversary.begin() if self.adversary is not None and judging else None
        verdict: list[Tensor] = []
        if self.workers is not self.encoders:
            with torch.no_grad():
                torch._foreach_copy_(list(self.workers.parameters()), list(self.encoders.parameters()))
        self.optimizer.zero_grad()
        losses: dict[str, float] = {}
        count = batch["clean"].shape[0]
        numbers = range(self.sample + self.ranks.rank, self.sample + c.batch, self.ranks.count)
        for start in range(0, count, c.micro_batch):
            part = slice(start, start + c.micro_batch)
            share = len(numbers[part]) / count
            clean, lq = (batch[name][part].to(self.device, non_blocking=True) for name in ("clean", "degraded"))
            draws = [self._draw(number) for number in numbers[part]]
            if c.loss.objective == "noise":
                terms = self._learn_noise(lq, clean, draws, share)
            else:
                terms, parts = self._learn_image(lq, clean, draws, share, judge)
                verdict = [a + b for a, b in zip(verdict, parts, strict=True)] if verdict else parts
            for name, value in terms.items():
                losses[name] = losses.get(name, 0.0) + value * share
            self._hand_over()
        self._update(verdict)
        self.step += 1
        self.sample += c.batch
        return self.ranks.mean_values(losses)

    def _learn_image(
        self, lq: Tensor, clean: Tensor, draws: Sequence[_Draw], share: float, judge: Sequence[Tensor] | None
    ) -> tuple[dict[str, float], list[Tensor]]:
        """Gradients of the loss on the face that comes out; the terms, and the discriminator's gradients."""
        loss = self.config.loss
        restored = self.restore(lq, draws)
        # the losses are done with before the way back through the networks begins: less memory at once
        face = restored.detach().requires_grad_()
        terms = {"l1": F.l1_loss(face, clean)}
        wanted = loss.l1 * terms["l1"]
        if self.lpips is not None:
            terms["lpips"] = self.lpips(face, clean).mean()
            wanted = wanted + loss.lpips * terms["lpips"]
        (gradient,) = torch.autograd.grad(wanted, face)
        values = {name: float(term.detach()) for name, term in terms.items()}
        total, verdict = float(wanted.detach()), []
        if judge is not None:
            gan = generator_loss(face, judge)
            (against,) = torch.autograd.grad(gan, face)
            weight = loss.gan
            if loss.gan_adaptive:
                ratio = gradient.norm() / (against.norm() + 1e-4)
                weight *= values.setdefault("gan_weight", float(ratio.clamp(0.0, 1e4)))
            gradient = gradient + weight * against
            values["gan"] = float(gan.detach())
            total += weight * values["gan"]
            gradients, parts = discriminator_gradients(face, clean, judge)
            verdict = [g.float() * share for g in gradients]
            values |= parts
        torch.autograd.backward(restored, gradient * share)
        return {"total": total, **values}, verdict

    def _learn_noise(self, lq: Tensor, clean: Tensor, draws: Sequence[_Draw], share: float) -> dict[str, float]:
        """Gradients of the mean squared error of the predicted noise, at a random time."""
        with torch.no_grad():
            latent = self.model.latent(clean)
        noise = torch.stack([draw.noise(1, latent.shape[1:])[0] for draw in draws]).to(self.device)
        times = torch.tensor([draw.time for draw in draws])
        scale = self.config.model.guidance
        predicted = self.model.predict_noise(lq, latent, noise, times, self.embeds(lq), guidance_scale=scale)
        error = F.mse_loss(predicted, noise)
        torch.autograd.backward(error * share)
        value = float(error.detach())
        return {"total": value, "noise": value}

    def restore(self, lq: Tensor, draws: Sequence[_Draw]) -> Tensor:
        """The faces as the chain gives them, before any colour fix: differentiable, (B, 3, H, W) float32."""
        chain, model = self.config.model, self.model
        with torch.no_grad():
            latent = model.latent(lq)
        needed = noises_needed(chain.steps + 1, chain.start_step)
        noise = torch.stack([draw.noise(needed, latent.shape[1:]) for draw in draws], dim=1)
        denoised = model.denoise(
            lq,
            latent,
            self.embeds(lq),
            noise,
            num_inference_steps=chain.steps + 1,
            guidance_scale=chain.guidance,
            start_step=chain.start_step,
        )
        return model.decode(denoised)

    def embeds(self, lq: Tensor) -> Tensor:
        """What the cross-attention is given, (B or 1, 77, width) float32."""
        if self._text is not None:
            return self._text
        with torch.no_grad():
            tokens = self.model.tokens(lq)
        return self.model.visual(tokens)

    def _given_embeds(self) -> Tensor | None:
        chain = self.config.model
        if chain.embeds == "visual":
            return None
        return embed_prompt(chain.prompt, self.config.base).to(self.device)

    def _draw(self, number: int) -> _Draw:
        return _Draw(self.config.seed, number)

    def _hand_over(self) -> None:
        """Gradients of the computing copies, added to those of the float32 weights."""
        if self.workers is self.encoders:
            return
        for master, worker in zip(self.trained, self.workers.parameters(), strict=True):
            if worker.grad is not None:
                master.grad = worker.grad.float() if master.grad is None else master.grad.add_(worker.grad)
                worker.grad = None

    def _update(self, verdict: Sequence[Tensor]) -> None:
        """One step of the optimisers and the averaged weights, with the mean of all processes' gradients."""
        c = self.config
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
        for parameter, gradient in zip(self.trained, self._mean(gradients), strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if not torch.isfinite(norm):
            raise ModelError(
                f"the gradient is not finite at step {self.step}; lower the rate and go on from the last checkpoint"
            )
        if c.clip:
            torch.nn.utils.clip_grads_with_norm_(self.trained, c.clip, norm)
        optimizers = [self.optimizer, *([self.adversary.optimizer] if self.adversary is not None else [])]
        for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
            group["lr"] = self.rate()
        self.optimizer.step()
        if self.adversary is not None and verdict:
            self.adversary.update(self.ranks.mean(verdict))
        follow(self.average, self.encoders.state_dict(), decay=c.ema, step=self.step)

    def _mean(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The mean over all processes, tensor by tensor bundled so that no second copy of all is needed at once."""
        if self.ranks.count == 1:
            return list(gradients)
        means: list[Tensor] = []
        bundle: list[Tensor] = []
        for gradient in gradients:
            bundle.append(gradient)
            if sum(g.numel() for g in bundle) > 2**25:
                means += self.ranks.mean(bundle)
                bundle = []
        return means + (self.ranks.mean(bundle) if bundle else [])

    def save(self) -> None:
        """Write the checkpoint and the averaged weights; a kill in between leaves the old ones whole."""
        if not self.ranks.first:
            return
        state: dict[str, Any] = {
            "chain": self._chain(),
            "encoders": self.encoders.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "sample": self.sample,
            "seconds": self.seconds,
        }
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
        write_checkpoint(self.checkpoint, state)
        write_released(self.released, self.config.name, self.average)

    def _chain(self) -> dict[str, Any]:
        """What must not change within a run, in plain values."""
        chain = asdict(self.config.model)
        kept = ("steps", "start_step", "guidance", "embeds", "prompt", "spatial", "vae")
        faces, loss = self.config.faces, self.config.loss
        return {**{k: chain[k] for k in kept}, "task": faces.task, "size": self.size, "objective": loss.objective}

    def _load(self) -> None:
        state = read_checkpoint(self.checkpoint, self.device)
        if state.get("chain") != self._chain():
            before: Mapping[str, Any] = state.get("chain") or {}
            other = [k for k, v in self._chain().items() if before.get(k) != v]
            raise UsageError(
                f"{self.checkpoint} is of another training (its {', '.join(other)} differ); choose another run folder"
            )
        try:
            self.encoders.load_state_dict(state["encoders"])
        except RuntimeError as error:
            raise UsageError(f"{self.checkpoint} was trained on other networks; choose another run folder") from error
        self.average = {k: v.clone() for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.sample, self.seconds = state["step"], state["sample"], state["seconds"]
        if self.adversary is not None and "adversary" in state:  # a run may be given an adversary later
            self.adversary.load_state_dict(state["adversary"])


class _Draw:
    """What chance decides about one face of a run, but for its degradation: a function of seed and number."""

    def __init__(self, seed: int, number: int) -> None:
        words = np.random.SeedSequence([seed, number, 7]).generate_state(2, np.uint32)
        self._generator = torch.Generator("cpu").manual_seed(int(words[0]) << 32 | int(words[1]))
        self.time = int(torch.randint(0, _TIMES, (), generator=self._generator))

    def noise(self, count: int, shape: Sequence[int]) -> Tensor:
        """(count, *shape) standard normal, float32 on the CPU."""
        return torch.randn((count, *shape), generator=self._generator)


def train(config: InterLCMConfig, *, report: Report | None = None) -> Path:
    """Train, or go on training, until the length of the run is reached; returns the folder of the averaged weights.

    report(step, share done, mean losses since the last report) is called every `log_every` steps. Raises UsageError for
    contradicting settings, InputError for data, ModelError for weight files or a diverging run.
    """
    pairs = TaskPairs(config)
    trainer = Trainer(config)
    log = Log(config, trainer.step, trainer.columns()) if trainer.ranks.first else None
    try:
        if trainer.progress() < 1:
            share = (trainer.ranks.rank, trainer.ranks.count)
            batches = Batches(trainer.plan, batch=trainer.step, sample=trainer.sample, share=share)
            learn(trainer, config, loader(pairs, batches, workers=config.workers), log, report)
    finally:
        if log is not None:
            log.close()
    return trainer.released
