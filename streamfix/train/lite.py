"""The trainer of the embedded network: one command that starts, and resumes, a run.

A run is a folder: `checkpoint.pt` (everything needed to go on), `log.csv` (step, seconds, losses), TensorBoard events
where TensorBoard is installed, and `lite.safetensors` (the averaged weights, ready to ship). Data, windows and loss
offsets are functions of (seed, step), so a run that was killed goes on exactly where its last checkpoint stands, and
two runs of one seed on one machine agree.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.errors import ModelError, UsageError
from streamfix.restore.lite.checkpoint import read_checkpoint, write_weights
from streamfix.restore.lite.network import LiteConfig, LiteNet
from streamfix.train.data import Augmentation, Batches, FacePairs, loader
from streamfix.train.degradations import Mixture
from streamfix.train.losses import Lpips
from streamfix.types import CROP_SIZE

Report = Callable[[int, float, dict[str, float]], None]
"""Called with (step, share of the run that is done, mean losses since the last call)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the run: until this share of it, windows of this size, so many at a time.

    vgg: side of the random window within each that VGG sees, because VGG costs many times what the network does.
    shard: windows that one CPU thread computes at a time.
    """

    until: float
    size: int
    batch: int
    vgg: int
    shard: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run.

    data: folder of aligned faces. run: folder of the run. steps, or minutes of wall time spent in training (over all
    resumptions). lpips_alex, lpips_vgg: LPIPS weight files; a term without its file must have weight 0. l1, alex, vgg:
    weights of the loss terms. rate falls along a cosine to last_rate after `warmup` steps.
    """

    data: Path
    run: Path
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    stages: tuple[Stage, ...] = (
        Stage(until=0.3, size=256, batch=8, vgg=128, shard=2),
        Stage(until=1.0, size=CROP_SIZE, batch=2, vgg=192),
    )
    rate: float = 4e-4
    last_rate: float = 1e-5
    warmup: int = 200
    decay: float = 1e-4
    ema: float = 0.999
    clip: float = 1.0
    l1: float = 1.0
    alex: float = 0.5
    vgg: float = 0.5
    lpips_alex: Path | None = None
    lpips_vgg: Path | None = None
    network: LiteConfig = field(default_factory=LiteConfig)
    mixture: Mixture = field(default_factory=Mixture)
    augmentation: Augmentation = field(default_factory=Augmentation)
    start: Path | None = None
    device: str = "auto"
    workers: int = 1
    threads: int | None = None
    save_every: float = 180.0
    log_every: int = 20

    def check(self) -> None:
        """UsageError where options contradict each other."""
        if (self.steps is None) == (self.minutes is None):
            raise UsageError("give the length of the run as either steps or minutes")
        for name, weight, path in (("alex", self.alex, self.lpips_alex), ("vgg", self.vgg, self.lpips_vgg)):
            if weight and path is None:
                raise UsageError(f"the {name} loss needs its LPIPS weight file: give --lpips-{name} FILE or --{name} 0")
        if not self.stages or self.stages[-1].until < 1 or any(s.size % 32 or s.size > CROP_SIZE for s in self.stages):
            raise UsageError("stages must reach 1.0, with window sizes that are multiples of 32 up to 512")


class Trainer:
    """Network, averaged weights, optimiser and counters of one run."""

    def __init__(self, config: TrainConfig) -> None:
        config.check()
        self.config = c = config
        torch.manual_seed(c.seed)
        self.device = torch.device(c.device if c.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        self.net = LiteNet(c.network).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if c.start is not None:
            self.net.load_state_dict(read_checkpoint(c.start)[0])
        # computing weights: bfloat16 but for the position embedding; the fp32 masters above are what the optimiser
        # moves
        self.worker = LiteNet(c.network).to(self.device, torch.bfloat16)
        self.worker.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.worker.place.float()
        # on a CPU, shards of a batch on one thread each: operators that share all cores stall whenever another process
        # takes one
        threads = c.threads or torch.get_num_threads()
        self.pool = ThreadPoolExecutor(threads) if self.device.type == "cpu" and threads > 1 else None
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": c.decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=c.rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.step = 0
        self.sample = 0
        self.seconds = 0.0
        self.losses: dict[str, tuple[Lpips, float]] = {}
        for name, path, weight in (("alex", c.lpips_alex, c.alex), ("vgg", c.lpips_vgg, c.vgg)):
            if weight and path is not None:
                net = Lpips(path, dtype=torch.bfloat16).to(self.device)
                if net.kind != name:
                    raise UsageError(f"{path} holds {net.kind} features, but was given for {name}")
                self.losses[name] = (net, weight)
        c.run.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """Where the run can be resumed from."""
        return self.config.run / "checkpoint.pt"

    def progress(self, step: int | None = None) -> float:
        """Share of the run that is done, 0..1; in a run measured in minutes the clock decides, else the step."""
        if self.config.minutes is not None:
            return min(1.0, self.seconds / (60 * self.config.minutes))
        assert self.config.steps is not None
        return min(1.0, (self.step if step is None else step) / self.config.steps)

    def stage(self, step: int) -> Stage:
        """The stage of a step."""
        done = self.progress(step)
        return next(s for s in self.config.stages if done < s.until or s is self.config.stages[-1])

    def rate(self) -> float:
        """Learning rate of the current step."""
        c = self.config
        cosine = c.last_rate + (c.rate - c.last_rate) * 0.5 * (1 + math.cos(math.pi * self.progress()))
        return cosine * min(1.0, (self.step + 1) / max(1, c.warmup))

    def loss(self, output: Tensor, truth: Tensor, seed: Sequence[int]) -> dict[str, Tensor]:
        """Each term, unweighted, as a scalar; `seed` decides the windows."""
        terms = {"l1": F.l1_loss(output, truth)}
        rng = np.random.default_rng(seed)
        for name, (net, _) in self.losses.items():
            side = output.shape[-1]
            # AlexNet starts with stride 4: a window at a random offset sees every phase, so that no fixed grid can
            # please it
            size = side - 7 if name == "alex" else min(side, self.stage(self.step).vgg)
            y, x = (int(v) for v in rng.integers(0, side - size + 1, 2))
            terms[name] = net(output[..., y : y + size, x : x + size], truth[..., y : y + size, x : x + size]).mean()
        return terms

    def _gradients(self, part: dict[str, Tensor], seed: Sequence[int]) -> tuple[list[Tensor], dict[str, float]]:
        if self.pool is not None:
            torch.set_num_threads(1)  # the setting belongs to each thread
        output = self.worker(part["degraded"].contiguous(memory_format=torch.channels_last), part["origin"])
        terms = self.loss(output, part["clean"], seed)
        total = self.config.l1 * terms["l1"]
        for name, (_, weight) in self.losses.items():
            total = total + weight * terms[name]
        gradients = torch.autograd.grad(total, list(self.worker.parameters()))
        return list(gradients), {k: float(v.detach()) for k, v in {"total": total, **terms}.items()}

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One update; the unweighted terms and their weighted sum as `total`."""
        c = self.config
        masters = list(self.net.parameters())
        with torch.no_grad():
            torch._foreach_copy_(list(self.worker.parameters()), masters)
        count = batch["clean"].shape[0]
        shard = self.stage(self.step).shard if self.pool is not None else count
        parts = [
            {k: v[i : i + shard].to(self.device, non_blocking=True) for k, v in batch.items()}
            for i in range(0, count, shard)
        ]
        seeds = [[c.seed, self.step, i] for i in range(len(parts))]
        results = list((self.pool.map if self.pool is not None else map)(self._gradients, parts, seeds))
        for master in masters:
            master.grad = None
        losses: dict[str, float] = {}
        for part, (gradients, terms) in zip(parts, results, strict=True):
            share = part["clean"].shape[0] / count
            for master, gradient in zip(masters, gradients, strict=True):
                if master.grad is None:
                    master.grad = gradient.float() * share
                else:
                    master.grad.add_(gradient, alpha=share)
            for name, value in terms.items():
                losses[name] = losses.get(name, 0.0) + value * share
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        norm = torch.nn.utils.clip_grad_norm_(masters, c.clip)
        if not torch.isfinite(norm):
            raise ModelError(
                f"the gradient is not finite at step {self.step}; lower the rate and go on from the last checkpoint"
            )
        self.optimizer.step()
        keep = min(c.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            state = self.net.state_dict()
            torch._foreach_lerp_(list(self.average.values()), [state[k] for k in self.average], 1 - keep)
        self.step += 1
        self.sample += count
        return losses

    def save(self) -> None:
        """Write the checkpoint and the averaged weights; a kill in between leaves the old ones whole."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "sample": self.sample,
            "seconds": self.seconds,
            "network": self.config.network.to_dict(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)
        self.export(self.config.run / "lite.safetensors")

    def export(self, path: Path) -> None:
        """The averaged weights as a weight file (float16)."""
        facts = {"steps": str(self.step), "samples": str(self.sample), "hours": f"{self.seconds / 3600:.2f}"}
        write_weights(path, self.average, self.config.network, facts)

    def _load(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises half a dozen unrelated types for a broken file
            raise ModelError(f"the checkpoint {self.checkpoint} cannot be read; remove it to start afresh") from error
        if LiteConfig.from_dict(state["network"]) != self.config.network:
            raise UsageError(f"{self.checkpoint} was trained with another network; choose another run folder")
        self.net.load_state_dict(state["net"])
        self.average = {k: v.clone() for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.sample, self.seconds = state["step"], state["sample"], state["seconds"]


def train(config: TrainConfig, *, report: Report | None = None) -> Path:
    """Train, or go on training, until the length of the run is reached; returns the path of the averaged weights.

    report(step, share done, mean losses since the last report) is called every `log_every` steps. Raises UsageError for
    contradicting options, InputError for data, ModelError for broken weight files or a diverging run.
    """
    trainer = Trainer(config)
    log = _Log(config, trainer.step)
    pairs = FacePairs(config.data, seed=config.seed, mixture=config.mixture, augmentation=config.augmentation)

    def plan(batch: int) -> tuple[int, int]:
        stage = trainer.stage(batch)
        return stage.size, stage.batch

    try:
        if trainer.progress() < 1:
            _loop(trainer, pairs, Batches(plan, batch=trainer.step, sample=trainer.sample), log, report)
    finally:
        log.close()
    return config.run / "lite.safetensors"


def _loop(trainer: Trainer, pairs: FacePairs, batches: Batches, log: _Log, report: Report | None) -> None:
    config = trainer.config
    sums: dict[str, float] = {}
    count = 0
    saved = started = time.monotonic()
    try:
        for batch in loader(pairs, batches, workers=config.workers):
            losses = trainer.train_step(batch)
            now = time.monotonic()
            trainer.seconds += now - started
            started = now
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            done = trainer.progress()
            if trainer.step % config.log_every == 0 or done >= 1:
                means = {k: v / count for k, v in sums.items()}
                log.write(trainer.step, trainer.seconds, trainer.rate(), means)
                if report:
                    report(trainer.step, done, means)
                sums, count = {}, 0
            if done >= 1:
                break
            if now - saved > config.save_every:
                trainer.save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        trainer.save()  # the step in hand is lost at most, and done again on resumption
        raise
    trainer.save()


class _Log:
    """log.csv, and TensorBoard where it is installed."""

    def __init__(self, config: TrainConfig, step: int) -> None:
        config.run.mkdir(parents=True, exist_ok=True)
        (config.run / "config.json").write_text(json.dumps(asdict(config), default=str, indent=1))
        self._file = (config.run / "log.csv").open("a")
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(config.run), purge_step=step)
        except ImportError:
            pass  # an extra: log.csv holds the same figures

    def write(self, step: int, seconds: float, rate: float, losses: dict[str, float]) -> None:
        if self._file.tell() == 0:
            self._file.write(",".join(("step", "seconds", "rate", *losses)) + "\n")
        self._file.write(
            ",".join((str(step), f"{seconds:.0f}", f"{rate:.3e}", *(f"{v:.5f}" for v in losses.values()))) + "\n"
        )
        self._file.flush()
        if self._board is not None:
            for name, value in losses.items():
                self._board.add_scalar(f"loss/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
