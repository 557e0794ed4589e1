"""What decides a training run of the embedded network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamfix.errors import UsageError
from streamfix.restore.lite.network import LiteConfig
from streamfix.train.adversary import SMALLEST
from streamfix.train.data import Augmentation
from streamfix.train.degradations import Mixture
from streamfix.train.motion import Motion
from streamfix.train.settings import check_length, check_seed, filled, merged
from streamfix.types import CROP_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the run: until this share of it, windows of this size, so many at a time.

    vgg, gan: sides of the random windows within each that VGG and the discriminator see, because either costs as much
    as the network or more. vgg_every: of the windows of a shard, VGG sees the first and every n-th. shard: windows
    that one CPU thread computes at a time.
    """

    until: float
    size: int
    batch: int
    vgg: int
    shard: int = 1
    gan: int = 256
    vgg_every: int = 1


STAGES = (
    Stage(until=0.3, size=256, batch=8, vgg=128, shard=2),
    Stage(until=1.0, size=CROP_SIZE, batch=2, vgg=192),
)
"""Windows first, then whole crops; as many as two CPU cores can chew."""

LITE = LiteConfig(middle=5, decoder=(2, 3, 2), detail=2, memory=32)
"""The shape of the network that ships."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run.

    data: folder of aligned faces. run: folder of the run. steps, or minutes of wall time spent in training (over all
    resumptions). lpips_alex, lpips_vgg: LPIPS weight files; identity: ONNX face embedding, identity_norm: its input
    scaling (identity.NORMS); a term without its file must have weight 0. l1, alex, vgg, grid, id, gan: weights of the
    loss terms. id counts only in stages whose windows are whole crops. gan sets in after the share gan_start of the
    run; gan_rate is the discriminator's learning rate. rate: reached after `warmup` steps, from where it
    falls along a cosine to last_rate. draw: for patterns of file names (as in a shell; the first that fits counts), how
    often these faces are drawn, where 1 is once; for what the data has too few of. calm: share of the augmentation's bend
    and compose that goes towards the end of the run, between 60 and 85 % of it, so that it ends on faces as they are.
    recurrent: share of steps on clips of 2 to `frames` frames, where the last is learnt from and the network's own
    answer to the one before is its second input; flicker: weight of what changes between the two and should not.
    memory_only: leave everything else in the network as it is. teacher: a restorer whose answers take the place of the
    truth (as load_restorer knows it), which needs whole crops in every stage; None for the truth. Flicker stays measured
    against the truth. on_device: make all but footage on the device that trains, in batches, which takes 1.2 MB of its
    memory a picture and knows no clips; None does on a GPU. workers: processes that make the rest, or all.
    """

    data: Path
    run: Path
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    stages: tuple[Stage, ...] = STAGES
    rate: float = 4e-4
    last_rate: float = 1e-5
    warmup: int = 200
    decay: float = 1e-4
    ema: float = 0.999
    clip: float = 1.0
    l1: float = 1.0
    alex: float = 0.5
    vgg: float = 0.5
    grid: float = 0.1
    id: float = 0.0
    recurrent: float = 0.5
    frames: int = 4
    flicker: float = 0.5
    memory_only: bool = False
    gan: float = 0.0
    gan_start: float = 0.6
    gan_rate: float = 1e-4
    lpips_alex: Path | None = None
    lpips_vgg: Path | None = None
    identity: Path | None = None
    identity_norm: str = "arcface"
    network: LiteConfig = field(default_factory=lambda: LITE)
    mixture: Mixture = field(default_factory=Mixture)
    augmentation: Augmentation = field(default_factory=Augmentation)
    motion: Motion = field(default_factory=Motion)
    draw: dict[str, float] = field(default_factory=dict)
    calm: float = 0.0
    start: Path | None = None
    teacher: str | None = None
    device: str = "auto"
    on_device: bool | None = None
    workers: int = 1
    threads: int | None = None
    save_every: float = 180.0
    log_every: int = 20

    @classmethod
    def of(cls, table: Mapping[str, Any], **given: Any) -> TrainConfig:
        """A configuration of such tables as a TOML file has; given: settings in place of its own, None for no change."""
        return filled(cls, merged(table, {k: v for k, v in given.items() if v is not None}))

    def check(self) -> None:
        """UsageError where options contradict each other."""
        check_length(self.steps, self.minutes)
        check_seed(self.seed)
        for name, weight, path in (("alex", self.alex, self.lpips_alex), ("vgg", self.vgg, self.lpips_vgg)):
            if weight and path is None:
                raise UsageError(f"the {name} loss needs its LPIPS weight file: give --lpips-{name} FILE or --{name} 0")
        if self.id and self.identity is None:
            raise UsageError("the id loss needs a face embedding: give --identity FILE.onnx or --id 0")
        if self.identity is not None and not self.id:
            raise UsageError("a face embedding was given, but its loss weighs nothing: give --id 0.1 or so")
        if self.id and not any(s.size == CROP_SIZE for s in self.stages):
            raise UsageError(f"the id loss needs a stage of whole crops ({CROP_SIZE} pixels)")
        if not 0 <= self.calm <= 1:
            raise UsageError("calm is a share of what bends and composes faces: give it from 0 to 1")
        if not 0 <= self.gan_start < 1:
            raise UsageError("the adversarial loss starts at a share of the run: give --gan-start from 0 to below 1")
        if any(weight < 0 for weight in self.draw.values()):
            raise UsageError("faces cannot be drawn less than never: give draw numbers from 0")
        if self.gan and any(min(s.size, s.gan) < SMALLEST for s in self.stages):
            raise UsageError(f"the adversarial loss needs windows of at least {SMALLEST} pixels in every stage")
        if self.recurrent and (not self.network.memory or self.frames < 2):
            raise UsageError("training on clips needs a network with memory and clips of at least 2 frames")
        if self.recurrent and self.on_device:
            raise UsageError("clips are not made on the device: leave on_device out, or give --recurrent 0")
        if self.memory_only and (self.recurrent < 1 or self.start is None):
            raise UsageError("to train the memory alone give the weights to --start from, and --recurrent 1")
        if self.teacher is not None and any(s.size != CROP_SIZE for s in self.stages):
            raise UsageError(f"a teacher restores whole crops: every stage must have windows of {CROP_SIZE} pixels")
        if not self.stages or self.stages[-1].until < 1 or any(s.size % 32 or s.size > CROP_SIZE for s in self.stages):
            raise UsageError("stages must reach 1.0, with window sizes that are multiples of 32 up to 512")
