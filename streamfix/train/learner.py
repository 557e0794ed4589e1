"""A learner for small networks: averaged weights, AdamW, cosine, checkpoints; what is learnt is up to its children.

Batches and whatever else is drawn are functions of (seed, step), so a run that was killed goes on exactly where its last
checkpoint stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from streamfix.errors import ModelError, UsageError
from streamfix.train.data import Batches, Plan, loader
from streamfix.train.log import Log
from streamfix.train.loop import Report, RunConfig, learn
from streamfix.train.ranks import Ranks
from streamfix.train.schedule import cosine, follow, read_checkpoint, write_checkpoint
from streamfix.train.settings import check_length, check_seed


class SmallLearner:
    """Networks in float32, their averages, the optimiser and the counters of one run.

    nets: what is trained, by name; parameters without gradients stay as they are. A child has `terms`, `weights`,
    `columns` and, where something is to be handed on, `export`.
    """

    def __init__(self, config: RunConfig, nets: Mapping[str, nn.Module]) -> None:
        check_length(config.steps, config.minutes)
        check_seed(config.seed)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.ranks = Ranks()
        if config.batch % self.ranks.count:
            raise UsageError(f"every batch must be a multiple of the {self.ranks.count} processes: give --batch")
        self.device = self.ranks.device_of(config.device)
        self.nets = nn.ModuleDict(dict(nets))
        nn.Module.to(self.nets, self.device)
        self.trained = [p for p in self.nets.parameters() if p.requires_grad]
        self.average = {k: v.detach().clone() for k, v in self.nets.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.trained if p.ndim > 1], "weight_decay": config.decay},
                {"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=config.rate,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.step, self.sample, self.seconds = 0, 0, 0.0
        config.run.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._load()

    # what a child says -------------------------------------------------------------------------------------------------

    def terms(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The loss terms, unweighted scalars; generator (on the CPU) is the only source of what is drawn."""
        raise NotImplementedError

    def weights(self) -> dict[str, float]:
        """Weight of each term at this step."""
        raise NotImplementedError

    def columns(self) -> list[str]:
        """Names of everything a step of this run can log."""
        return ["total", *self.weights()]

    def plan(self, step: int) -> tuple[int, int]:
        """Side in pixels of the faces or windows of a step, and how many they are in all processes."""
        raise NotImplementedError

    def export(self) -> Path:
        """Write what others load, from the averaged weights; its path."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """Where the run can be resumed from."""
        return self.config.run / "checkpoint.pt"

    def progress(self, step: int | None = None) -> float:
        """Share of the run that is done, 0..1; in a run measured in minutes the clock decides, else the step."""
        if self.config.minutes is not None:
            return min(1.0, self.seconds / (60 * self.config.minutes)) if self.config.minutes else 1.0
        assert self.config.steps is not None
        return min(1.0, (self.step if step is None else step) / self.config.steps)

    def rate(self) -> float:
        """Learning rate of the current step."""
        c = self.config
        return cosine(c.rate, c.last_rate, self.progress()) * min(1.0, (self.step + 1) / max(1, c.warmup))

    def averaged(self, name: str) -> dict[str, Tensor]:
        """The averaged weights of one network, float32 on the CPU."""
        start = f"{name}."
        return {
            k.removeprefix(start): v.detach().cpu().contiguous() for k, v in self.average.items() if k.startswith(start)
        }

    def generator(self) -> torch.Generator:
        """What this step draws from, in this process."""
        seed = ((self.config.seed * 1_000_003 + self.step) * 1_009 + self.ranks.rank) % 2**63
        return torch.Generator("cpu").manual_seed(seed)

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One update; the unweighted terms and their weighted sum as `total`."""
        c = self.config
        terms = self.terms({k: v.to(self.device) for k, v in batch.items()}, self.generator())
        weights = self.weights()
        total = torch.stack([weights[name] * term for name, term in terms.items() if weights[name]]).sum()
        gradients = self.ranks.mean(list(torch.autograd.grad(total, self.trained, materialize_grads=True)))
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            # the fused optimiser goes through memory in order, so the gradient has to be laid out as its parameter
            laid_out = gradient.stride() == parameter.stride()
            parameter.grad = gradient if laid_out else torch.empty_like(parameter).copy_(gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, c.clip)
        if not torch.isfinite(norm):
            raise ModelError(
                f"the gradient is not finite at step {self.step}; lower the rate and go on from the last checkpoint"
            )
        self.optimizer.step()
        follow(self.average, self.nets.state_dict(), decay=c.ema, step=self.step)
        self.step += 1
        self.sample += len(next(iter(batch.values()))) * self.ranks.count
        return self.ranks.mean_values({k: float(v.detach()) for k, v in {"total": total, **terms}.items()})

    def save(self) -> None:
        """Write the checkpoint and what others load; a kill in between leaves the old ones whole."""
        if not self.ranks.first:
            return
        state = {
            "nets": self.nets.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in ("step", "sample", "seconds")},
        }
        write_checkpoint(self.checkpoint, state)
        self.export()

    def _load(self) -> None:
        state = read_checkpoint(self.checkpoint, self.device)
        try:
            self.nets.load_state_dict(state["nets"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelError(f"{self.checkpoint} is of other networks; choose another run folder") from error
        self.average = {k: v.clone() for k, v in state["average"].items()}
        self.step, self.sample, self.seconds = state["step"], state["sample"], state["seconds"]


def train_small(learner: SmallLearner, data: Dataset[dict[str, Tensor]], report: Report | None = None) -> Path:
    """Train, or go on training, until the length of the run is reached; returns what `export` wrote.

    report(step, share done, mean losses since the last report) is called every `log_every` steps.
    """
    config, ranks = learner.config, learner.ranks
    log = Log(config, learner.step, learner.columns()) if ranks.first else None
    try:
        if learner.progress() < 1:
            batches = Batches(
                lambda step: Plan(*learner.plan(step)),
                batch=learner.step,
                sample=learner.sample,
                share=(ranks.rank, ranks.count),
            )
            learn(learner, config, loader(data, batches, workers=config.workers), log, report)
    finally:
        if log is not None:
            log.close()
    return learner.export()
