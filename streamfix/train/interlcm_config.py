"""What decides a training of InterLCM's encoders: a TOML file, of which the other trainings are variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from streamfix.errors import UsageError
from streamfix.train.adversary import SMALLEST
from streamfix.train.data import Augmentation
from streamfix.train.degradations import Mixture
from streamfix.train.settings import check_seed, filled, merged, read_settings
from streamfix.types import CROP_SIZE

PUBLISHED_MIXTURE = Mixture(paper=1.0, heavy=0.0, footage=0.0, mild=0.0, none=0.0, grey=0.0, old=0.0, border=0.0)
PUBLISHED_AUGMENTATION = Augmentation(turn=0.0, zoom=0.0, shift=0.0, gamma=0.0, tint=0.0, soft=1.0)  # mirrored, no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """[model]: which networks are trained, and how the face goes through them.

    steps: of the network at the published start, 1 to 4; the schedule has one more. start_step: the first step of the
    schedule that the network computes, 1 (from noise alone) to steps + 1; published: 2. guidance: 1 to 20. embeds: what
    the UNet's cross-attention is given: "visual" (the visual encoder, which is trained then) or "text" (the prompt; "" is
    null text). spatial: whether there is a spatial encoder, which is trained then. vae: "full" or
    "tiny". visual_start, spatial_start: released weights (.pth, .safetensors) to go on from; without them the visual
    encoder begins at random and the spatial one as the UNet's copy.
    """

    steps: int = 3
    start_step: int = 2
    guidance: float = 8.0
    embeds: Literal["visual", "text"] = "visual"
    prompt: str = ""
    spatial: bool = True
    vae: Literal["full", "tiny"] = "full"
    visual_start: Path | None = None
    spatial_start: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Faces:
    """[faces]: what is learnt from.

    task: "restore", "colorize" (the degraded face in grey) or "inpaint" (strokes painted white). size: side in pixels, a
    multiple of 8, at most 512; None is the UNet's own. fit: "resize" (whole faces at that size) or "window" (parts of faces
    at the template's scale). mixture, augmentation: see degradations.Mixture and data.Augmentation.
    """

    task: Literal["restore", "colorize", "inpaint"] = "restore"
    size: int | None = None
    fit: Literal["resize", "window"] = "resize"
    mixture: Mixture = PUBLISHED_MIXTURE
    augmentation: Augmentation = PUBLISHED_AUGMENTATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """[loss]: what is paid for.

    objective: "image" (on the face that comes out, through all steps) or "noise" (the UNet's prediction at a random time,
    as plain ControlNets are trained; the rest has no meaning then). l1, lpips, gan: weights. gan_from: the first iteration
    with the adversary. gan_adaptive: its weight times the ratio of the gradients of l1 + lpips and of it, on the face that comes
    out (VQGAN has it on the decoder's last layer, which is frozen here).
    """

    objective: Literal["image", "noise"] = "image"
    l1: float = 1.0
    lpips: float = 1.0
    gan: float = 0.1
    gan_from: int = 10_001
    gan_adaptive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InterLCMConfig:
    """Everything that decides a run.

    data: folder of aligned faces. run: folder of the run. base: folder with the networks that are not trained, in the layout
    of a release; None is the models folder. lpips: LPIPS weight file, over VGG16 (published) or AlexNet. iterations: length
    of the run. batch: faces an iteration, of all processes; micro_batch: faces that a process computes at a time (the
    gradients of the rest are added up). rate, last_rate: of Adam, along a cosine, for the encoders and the discriminator.
    ema: decay of the averaged weights. clip: largest norm of the gradient, 0 for any. checkpointing: compute activations again
    on the way back instead of keeping them. precision: of the computation; the trained weights and what Adam keeps are
    float32. save_every: seconds between checkpoints; log_every: iterations between lines of the log. workers: processes
    that prepare data.
    """

    data: Path
    run: Path
    base: Path | None = None
    lpips: Path | None = None
    model: Chain = field(default_factory=Chain)
    faces: Faces = field(default_factory=Faces)
    loss: Loss = field(default_factory=Loss)
    iterations: int = 15_001
    batch: int = 1
    micro_batch: int = 1
    rate: float = 5e-5
    last_rate: float = 2e-5
    ema: float = 0.997
    clip: float = 0.0
    checkpointing: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    device: str = "auto"
    workers: int = 1
    save_every: float = 900.0
    log_every: int = 20

    @classmethod
    def load(cls, source: str | Path, **given: Any) -> InterLCMConfig:
        """A shipped configuration by name, or a TOML file; given: settings in place of its own, None for no change."""
        return cls.of(read_settings(source), **given)

    @classmethod
    def of(cls, table: Mapping[str, Any], **given: Any) -> InterLCMConfig:
        """A configuration of such tables as a TOML file has."""
        config = filled(cls, merged(table, {k: v for k, v in given.items() if v is not None}))
        config.check()
        return config

    @property
    def name(self) -> str:
        """What the release calls weights of this kind: 3step, colorization_1step ..."""
        task = {"restore": "", "colorize": "colorization_", "inpaint": "inpainting_"}[self.faces.task]
        return f"{task}{self.model.steps}step"

    def check(self) -> None:
        """UsageError where settings contradict each other."""
        m, f, c = self.model, self.faces, self.loss
        check_seed(self.seed)
        if not 1 <= m.steps <= 4 or not 1 <= m.start_step <= m.steps + 1:
            raise UsageError("model.steps lies between 1 and 4, and model.start_step between 1 and model.steps + 1")
        if not 1.0 <= m.guidance <= 20.0:
            raise UsageError(f"model.guidance lies between 1 and 20, not at {m.guidance:g}")
        if m.embeds == "text" and not m.spatial:
            raise UsageError("there is nothing to train: give model.embeds = 'visual' or model.spatial = true")
        if m.prompt and m.embeds != "text":
            raise UsageError("model.prompt is used with model.embeds = 'text' only")
        if (m.visual_start and m.embeds != "visual") or (m.spatial_start and not m.spatial):
            raise UsageError("model.visual_start or model.spatial_start is given for an encoder that is not there")
        if f.size is not None and (f.size % 8 or not SMALLEST <= f.size <= CROP_SIZE):
            raise UsageError(f"faces.size is a multiple of 8 from {SMALLEST} to {CROP_SIZE}, not {f.size}")
        if self.iterations < 1 or self.batch < 1 or self.micro_batch < 1 or self.log_every < 1:
            raise UsageError("iterations, batch, micro_batch and log_every are at least 1")
        if c.objective == "image":
            if min(c.l1, c.lpips, c.gan) < 0 or not c.l1 + c.lpips:
                raise UsageError("loss.l1 or loss.lpips must weigh something, and no weight is negative")
            if c.lpips and self.lpips is None:
                raise UsageError("loss.lpips needs its weight file: give --lpips FILE, or loss.lpips = 0")
