"""The trainer of the embedded network: one command that starts, and resumes, a run.

The loss is L1 + LPIPS + a term against shuffle patterns, and, where they are given weights, identity over a face
embedding and a patch discriminator that sets in late. A share of the steps is on short clips: the network runs over
them with its own last answer as second input, learns from the last frame, and pays for flicker against the truth.

A run is a folder: `checkpoint.pt` (everything needed to go on), `log.csv` (step, seconds, losses), TensorBoard events
where TensorBoard is installed, and `lite.safetensors` (the averaged weights, ready to ship). Data, windows and loss
offsets are functions of (seed, step), so a run that was killed goes on exactly where its last checkpoint stands, and
two runs of one seed on one machine agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, repeat
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.errors import ModelError, UsageError
from streamfix.restore.base import fast_bfloat16
from streamfix.restore.lite.checkpoint import read_checkpoint, write_weights
from streamfix.restore.lite.network import LiteConfig, LiteNet
from streamfix.restore.lite.registration import registered, remembered
from streamfix.train.adversary import Adversary, discriminator_gradients, generator_loss
from streamfix.train.config import Stage, TrainConfig
from streamfix.train.data import Batches, FacePairs, Plan, loader
from streamfix.train.device_batches import device_batches
from streamfix.train.identity import IdentityLoss
from streamfix.train.log import Log
from streamfix.train.loop import Report, learn
from streamfix.train.losses import Lpips, grid_amplitude
from streamfix.train.muon import Muon
from streamfix.train.ranks import Ranks
from streamfix.train.schedule import cosine, follow, write_checkpoint
from streamfix.train.schedule import read_checkpoint as read_run
from streamfix.train.teacher import Teacher
from streamfix.types import CROP_SIZE

_RAMP = 0.02
"""Share of the run over which the adversarial term reaches its weight: a discriminator that has learnt nothing yet
should not lead."""
_CALMED = (0.6, 0.85)
"""Shares of the run between which `calm` sets in."""


def grown(state: Mapping[str, Tensor], net: LiteNet) -> dict[str, Tensor]:
    """The weights of a smaller network in a larger one: what it lacks begins as `net` has it, and changes no picture.

    Blocks and the memory can be added, not widths; UsageError for weights that have no place in `net`.
    """
    places = net.state_dict()
    if any(k not in places or places[k].shape != v.shape for k, v in state.items()):
        raise UsageError(
            "the weights to start from are of a larger or another network; give its shape in [network] of a --config file"
        )
    fresh = {k: v for k, v in places.items() if k not in state}
    silent = {k: torch.zeros_like(v) for k, v in fresh.items() if k.endswith("second.weight") and "memory." not in k}
    return {**fresh, **silent, **state}


class Trainer:
    """Network, averaged weights, optimiser and counters of one run."""

    def __init__(self, config: TrainConfig) -> None:
        config.check()
        self.config = c = config
        torch.manual_seed(c.seed)
        self.ranks = Ranks()
        if any(stage.batch % self.ranks.count for stage in c.stages):
            raise UsageError(f"every batch must be a multiple of the {self.ranks.count} processes: give --batch")
        self.device = self.ranks.device_of(c.device)
        self.net = LiteNet(c.network).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if c.start is not None:
            state, _ = read_checkpoint(c.start)
            self.net.load_state_dict(grown(state, self.net))
        # computing weights: bfloat16 where that is fast, but for the position embedding; the fp32 masters above are what
        # the optimiser moves
        self.dtype = torch.bfloat16 if self.device.type == "cuda" or fast_bfloat16() else torch.float32
        self.worker = LiteNet(c.network).to(self.device, self.dtype)
        self.worker.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.worker.place.float()
        # on a CPU, shards of a batch on one thread each: operators that share all cores stall whenever another process
        # takes one
        threads = c.threads or torch.get_num_threads()
        self.pool = ThreadPoolExecutor(threads) if self.device.type == "cpu" and threads > 1 else None
        if self.pool is not None:
            cv2.setNumThreads(1)  # OpenCV's setting is the process's: the flow within a shard stays on its thread
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        if c.memory_only:
            for net in (self.net, self.worker):
                for name, parameter in net.named_parameters():
                    parameter.requires_grad_(name.startswith("memory."))
        # kernels between the pictures by Muon; what is at the pictures, and everything that is no kernel, by AdamW
        kernels = [p for name, p in self.net.named_parameters() if p.requires_grad and _hidden(name, p)]
        others = [p for name, p in self.net.named_parameters() if p.requires_grad and not _hidden(name, p)]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(kernels, lr=c.rate, weight_decay=c.decay),
            torch.optim.AdamW(others, lr=c.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        ]
        self.step = 0
        self.sample = 0
        self.seconds = 0.0
        self.losses: dict[str, tuple[Lpips, float]] = {}
        for name, path, weight in (("alex", c.lpips_alex, c.alex), ("vgg", c.lpips_vgg, c.vgg)):
            if weight and path is not None:
                net = Lpips(path, dtype=self.dtype).to(self.device)
                if net.kind != name:
                    raise UsageError(f"{path} holds {net.kind} features, but was given for {name}")
                self.losses[name] = (net, weight)
        self.identity: IdentityLoss | None = None
        if c.id and c.identity is not None:
            self.identity = IdentityLoss(c.identity, norm=c.identity_norm).to(self.device)
        self.teacher = Teacher(c.teacher, device=self.device) if c.teacher is not None else None
        self.adversary = Adversary(rate=c.gan_rate, device=self.device, dtype=self.dtype) if c.gan else None
        c.run.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._load()

    @property
    def on_device(self) -> bool:
        """Whether the device itself makes the batches."""
        wanted = self.config.on_device
        return self.device.type == "cuda" and not self.config.recurrent if wanted is None else wanted

    @property
    def checkpoint(self) -> Path:
        """Where the run can be resumed from."""
        return self.config.run / "checkpoint.pt"

    @property
    def weights_file(self) -> Path:
        """Where the averaged weights are written, ready to ship."""
        return self.config.run / "lite.safetensors"

    def progress(self, step: int | None = None) -> float:
        """Share of the run that is done, 0..1; in a run measured in minutes the clock decides, else the step."""
        if self.config.minutes is not None:
            return min(1.0, self.seconds / (60 * self.config.minutes)) if self.config.minutes else 1.0
        assert self.config.steps is not None
        return min(1.0, (self.step if step is None else step) / self.config.steps)

    def stage(self, step: int) -> Stage:
        """The stage of a step."""
        done = self.progress(step)
        return next(s for s in self.config.stages if done < s.until or s is self.config.stages[-1])

    def plan(self, step: int) -> Plan:
        """What the batch of a step is made of."""
        c, stage = self.config, self.stage(step)
        first, last = _CALMED
        calm = c.calm * min(1.0, max(0.0, (self.progress(step) - first) / (last - first)))
        rng = np.random.default_rng([c.seed, step, 2])
        clip = rng.random() < c.recurrent
        return Plan(stage.size, stage.batch, int(rng.integers(2, c.frames + 1)) if clip else 1, calm)

    def rate(self) -> float:
        """Learning rate of the current step."""
        c = self.config
        return cosine(c.rate, c.last_rate, self.progress()) * min(1.0, (self.step + 1) / max(1, c.warmup))

    def weights(self) -> dict[str, float]:
        """Weight of each loss term at the current step, 0 for those whose time has not come."""
        c = self.config
        rise = min(1.0, max(0.0, self.progress() - c.gan_start) / _RAMP)
        fixed = {"l1": c.l1, "grid": c.grid, **{name: weight for name, (_, weight) in self.losses.items()}, "id": c.id}
        steady = {"flicker": c.flicker} if c.recurrent else {}
        return {**fixed, **steady, "gan": c.gan * rise}

    def columns(self) -> list[str]:
        """Names of everything a step of this run can log."""
        names = ["total", "l1", *(["grid"] if self.config.grid else []), *self.losses]
        names += ["id"] if self.identity is not None else []
        names += ["flicker"] if self.config.recurrent else []
        return names + (["gan", "d_real", "d_fake"] if self.adversary is not None else [])

    def loss(self, output: Tensor, truth: Tensor, seed: Sequence[int]) -> dict[str, Tensor]:
        """Each term but the adversarial, unweighted, as a scalar; `seed` decides the windows."""
        terms = {"l1": F.l1_loss(output, truth)}
        if self.config.grid:
            terms["grid"] = grid_amplitude(output, truth).mean()
        rng = np.random.default_rng(seed)
        for name, (net, _) in self.losses.items():
            side = output.shape[-1]
            # AlexNet starts with stride 4: a window at a random offset sees every phase, so that no fixed grid can
            # please it
            size = side - 7 if name == "alex" else min(side, self.stage(self.step).vgg)
            y, x = (int(v) for v in rng.integers(0, side - size + 1, 2))
            some = slice(None) if name == "alex" else slice(0, None, self.stage(self.step).vgg_every)
            seen, wanted = (t[some, :, y : y + size, x : x + size] for t in (output, truth))
            terms[name] = net(seen, wanted).mean()
        if self.identity is not None and output.shape[-1] == CROP_SIZE:  # a part of a face is nobody
            terms["id"] = self.identity(output, truth).mean()
        return terms

    def _gradients(
        self, part: dict[str, Tensor], seed: Sequence[int], judge: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, float]]:
        # of the network, of the discriminator (whose weights are `judge`, None before its start), and the terms
        if self.pool is not None:
            torch.set_num_threads(1)  # the setting belongs to each thread
        frames = [_channels_last(frame) for frame in part["degraded"].unbind(1)]
        truth = part.get("taught", part["clean"][:, -1])
        previous: Tensor | None = None
        moved: Tensor | None = None
        with torch.no_grad():
            for frame, following in pairwise(frames):
                previous = self.worker(frame, _answers(moved), part["origin"]).clamp_(-1, 1)
                moved = registered(remembered(previous, frame, moved), following)
        output = self.worker(frames[-1], _answers(moved), part["origin"])
        terms = self.loss(output, truth, seed)
        if previous is not None:
            change = (output - previous) - (part["clean"][:, -1] - part["clean"][:, -2])
            same = 1 - part["cut"]  # another face before has nothing to be steady with
            terms["flicker"] = (change.abs().mean((1, 2, 3)) * same).sum() / same.sum().clamp_min(1)
        side = output.shape[-1]
        size = min(side, self.stage(self.step).gan)
        y, x = (int(v) for v in np.random.default_rng([*seed, 1]).integers(0, side - size + 1, 2))
        seen = output[..., y : y + size, x : x + size]
        if judge is not None:
            terms["gan"] = generator_loss(seen, judge)
        weights = self.weights()
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        gradients = list(torch.autograd.grad(total, _trained(self.worker), materialize_grads=True))
        values = {k: float(v.detach()) for k, v in {"total": total, **terms}.items()}
        if judge is None:
            return gradients, [], values
        verdict, parts = discriminator_gradients(seen, truth[..., y : y + size, x : x + size], judge)
        return gradients, verdict, {**values, **parts}

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One update; the unweighted terms and their weighted sum as `total`."""
        c = self.config
        masters = _trained(self.net)
        if self.teacher is not None:
            batch = {**batch, "taught": self.teacher.answer(batch["degraded"][:, -1])}
        with torch.no_grad():
            torch._foreach_copy_(list(self.worker.parameters()), list(self.net.parameters()))
        count = batch["clean"].shape[0]
        shard = self.stage(self.step).shard if self.pool is not None else count
        parts = [
            {k: v[i : i + shard].to(self.device, non_blocking=True) for k, v in batch.items()}
            for i in range(0, count, shard)
        ]
        seeds = [[c.seed, self.step, i + self.ranks.rank * len(parts)] for i in range(len(parts))]
        judging = self.adversary is not None and self.progress() >= c.gan_start
        judge = self.adversary.begin() if self.adversary is not None and judging else None
        results = list((self.pool.map if self.pool is not None else map)(self._gradients, parts, seeds, repeat(judge)))
        shares = [part["clean"].shape[0] / count for part in parts]
        losses: dict[str, float] = {}
        for share, (_, _, terms) in zip(shares, results, strict=True):
            for name, value in terms.items():
                losses[name] = losses.get(name, 0.0) + value * share
        losses = self.ranks.mean_values(losses)
        gradients = self.ranks.mean(_summed([r[0] for r in results], shares))
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
        norm = torch.nn.utils.clip_grad_norm_(masters, c.clip)
        if not torch.isfinite(norm):
            raise ModelError(
                f"the gradient is not finite at step {self.step}; lower the rate and go on from the last checkpoint"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        if self.adversary is not None and judge is not None:
            self.adversary.update(self.ranks.mean(_summed([r[1] for r in results], shares)))
        follow(self.average, self.net.state_dict(), decay=c.ema, step=self.step)
        self.step += 1
        self.sample += count * self.ranks.count
        return losses

    def save(self) -> None:
        """Write the checkpoint and the averaged weights; a kill in between leaves the old ones whole."""
        if not self.ranks.first:
            return
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "sample": self.sample,
            "seconds": self.seconds,
            "network": self.config.network.to_dict(),
        }
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
        write_checkpoint(self.checkpoint, state)
        self.export(self.weights_file)

    def export(self, path: Path) -> None:
        """The averaged weights as a weight file (float16)."""
        facts = {"steps": str(self.step), "samples": str(self.sample), "hours": f"{self.seconds / 3600:.2f}"}
        write_weights(path, self.average, self.config.network, facts)

    def _load(self) -> None:
        state = read_run(self.checkpoint, self.device)
        if LiteConfig.from_dict(state["network"]) != self.config.network:
            raise UsageError(f"{self.checkpoint} was trained with another network; choose another run folder")
        self.net.load_state_dict(state["net"])
        self.average = {k: v.clone() for k, v in state["average"].items()}
        if "optimizers" not in state:
            raise UsageError(f"{self.checkpoint} is from before Muon; --start a new run from its lite.safetensors")
        for optimizer, its in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        self.step, self.sample, self.seconds = state["step"], state["sample"], state["seconds"]
        if self.adversary is not None and "adversary" in state:  # a run may be given an adversary later
            self.adversary.load_state_dict(state["adversary"])


def _answers(states: Tensor | None) -> Tensor | None:
    return None if states is None else states[:, :3]


def _trained(net: LiteNet) -> list[torch.nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def _hidden(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 4 and not name.startswith(("stem.", "out.", "memory.gate."))


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _summed(gradients: Sequence[Sequence[Tensor]], shares: Sequence[float]) -> list[Tensor]:
    """The shards' gradients, weighted by their share of the batch, in float32."""
    sums = [g.float() * shares[0] for g in gradients[0]]
    for others, share in zip(gradients[1:], shares[1:], strict=True):
        for total, gradient in zip(sums, others, strict=True):
            total.add_(gradient, alpha=share)
    return sums


def train(config: TrainConfig, *, report: Report | None = None) -> Path:
    """Train, or go on training, until the length of the run is reached; returns the path of the averaged weights.

    report(step, share done, mean losses since the last report) is called every `log_every` steps. Raises UsageError for
    contradicting options, InputError for data, ModelError for broken weight files or a diverging run.
    """
    trainer = Trainer(config)
    log = Log(config, trainer.step, trainer.columns()) if trainer.ranks.first else None
    pairs = FacePairs(
        config.data,
        seed=config.seed,
        mixture=config.mixture,
        augmentation=config.augmentation,
        motion=config.motion,
        draw=config.draw,
    )
    try:
        if trainer.progress() < 1:
            ranks = trainer.ranks
            share = (ranks.rank, ranks.count)
            batches: Iterable[dict[str, Tensor]]
            if trainer.on_device:
                batches = device_batches(
                    pairs, trainer.plan, device=trainer.device, batch=trainer.step, share=share, workers=config.workers
                )
            else:
                order = Batches(trainer.plan, batch=trainer.step, sample=trainer.sample, share=share)
                batches = loader(pairs, order, workers=config.workers)
            learn(trainer, config, batches, log, report)
        elif trainer.ranks.first:
            trainer.export(trainer.weights_file)  # a run of no length has weights too
    finally:
        if log is not None:
            log.close()
    return trainer.weights_file
