"""What a user may choose about InterLCM, and how it is written in one line."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from streamfix.errors import UsageError
from streamfix.released import ENCODERS

MODELS = tuple(ENCODERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What belongs to a checkpoint: the steps it was trained for, and its colour fix."""

    steps: int
    color_fix: str
    grey: str


PUBLISHED = {
    "interlcm": Published(steps=3, color_fix="wavelet", grey="published"),
    "interlcm-1step": Published(steps=1, color_fix="wavelet", grey="published"),
    "interlcm-colorize": Published(steps=1, color_fix="none", grey="off"),
    "interlcm-inpaint": Published(steps=1, color_fix="none", grey="published"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything has its published value; None means that of the checkpoint.

    steps: network steps of the published start, 1 to 4 (the schedule has one more). start_step: the first step of the schedule
    that the network computes; `start_step - 1` steps are replaced by the latent of the input (published: 2; 1 begins from
    noise). guidance: 1 to 20. color_fix: "wavelet", "adain" or "none". visual, spatial: the two encoders; without the visual
    one, null text takes its place. prompt: a text in its place. vae: "full", or "tiny" (TAESD). noise: "shared" by all
    faces and frames, or "fresh" for every call, as the published code draws it. seed: of either. grey: what keeps grey
    inputs grey, "published", "smooth" (goes over smoothly from grey to colour, sepia too) or "off". compile: torch.compile. batch: faces
    computed together; None is 1 on a CPU, where a face is then the same bit for bit whoever else is there, and elsewhere as
    many as come (in bfloat16 on a CPU 4 take half the time a face, and agree but for rounding). dtype: of
    the networks; "auto" is the fastest that the device is good at. carry: share of the detail that a face of a video takes from
    the frame before where the input has not changed, 0 (each frame on its own) to below 1. encoders: a folder with encoders of
    one's own, as `train interlcm` leaves them; base: a folder with the other networks, laid out as a release. None is the models
    folder.
    """

    steps: int | None = None
    start_step: int = 2
    guidance: float = 8.0
    color_fix: Literal["wavelet", "adain", "none"] | None = None
    visual: bool = True
    spatial: bool = True
    prompt: str | None = None
    vae: Literal["full", "tiny"] = "full"
    noise: Literal["shared", "fresh"] = "shared"
    seed: int = 0
    grey: Literal["published", "smooth", "off"] | None = None
    compile: bool = False
    batch: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    carry: float = 0.0
    encoders: str | None = None
    base: str | None = None

    def of(self, model: str) -> Options:
        """The same with the checkpoint's own values filled in; UsageError for a value out of its range."""
        own = PUBLISHED[model]
        steps = own.steps if self.steps is None else self.steps
        if not 1 <= steps <= 4:
            raise UsageError(f"InterLCM takes 1 to 4 steps, not {steps}")
        if not 1 <= self.start_step <= steps + 1:
            raise UsageError(f"with {steps} steps the start lies between 1 and {steps + 1}, not at {self.start_step}")
        if not 1.0 <= self.guidance <= 20.0:
            raise UsageError(f"guidance lies between 1 and 20, not at {self.guidance:g}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"at least 1 face is computed at a time, not {self.batch}")
        if not 0.0 <= self.carry < 1.0:
            raise UsageError(f"carry lies between 0 and below 1, not at {self.carry:g}")
        color_fix: Any = own.color_fix if self.color_fix is None else self.color_fix
        grey: Any = own.grey if self.grey is None else self.grey
        prompt = "" if self.prompt is None and not self.visual else self.prompt
        return replace(self, steps=steps, color_fix=color_fix, grey=grey, prompt=prompt)


def split_spec(spec: str) -> tuple[str, Options] | None:
    """Model and options of "interlcm" or "interlcm-1step:steps=2,noise=fresh,prompt=a face"; None for another model.

    Truth values are written on and off. Raises UsageError for an unknown option or value.
    """
    name, colon, rest = spec.partition(":")
    if name not in MODELS:
        return None
    given = re.split(r",(?=\w+=)", rest) if rest else []
    if colon and not given:
        raise UsageError(f"{spec!r} ends in a colon; write options after it, such as {name}:steps=2,guidance=6")
    kinds = get_type_hints(Options)
    values: dict[str, Any] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if key not in kinds or not equals:
            raise UsageError(
                f"InterLCM has no option {item!r}; it has {', '.join(f.name for f in fields(Options))}, written as key=value"
            )
        values[key] = _value(key, text, kinds[key])
    return name, Options(**values)


def _value(key: str, text: str, kind: Any) -> Any:
    choices = [c for k in (kind, *get_args(kind)) for c in get_args(k) if isinstance(c, str)]
    if choices:
        if text not in choices:
            raise UsageError(f"{key} is one of {', '.join(choices)}, not {text!r}")
        return text
    if kind is bool:
        if text not in ("on", "off"):
            raise UsageError(f"{key} is on or off, not {text!r}")
        return text == "on"
    (plain,) = [k for k in get_args(kind) or (kind,) if k is not NoneType]
    try:
        return plain(text)
    except ValueError as error:
        raise UsageError(f"{key} is a number, not {text!r}") from error
