"""The variants of Table 2 as models of ours: where the loop starts, and which of the two encoders speaks."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from streamfix.errors import UsageError
from streamfix.restore.base import Restorer, load_restorer
from streamfix.restore.interlcm.options import PUBLISHED, split_spec
from streamfix.restore.interlcm.restorer import InterLCMRestorer

PROMPT = "a high-quality photo of a face"
"""Of the variant with a text: the paper's own wording is not published."""
_ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")


def variants(model: str, *, prompt: str = PROMPT) -> dict[str, str]:
    """Label -> what load_restorer takes, for an InterLCM model; labels as in `published.TABLE_2`, the full model first.

    The paper trained a network for each line of its table. These take the given weights and switch parts off, or start
    elsewhere than they were trained for: a study of what these weights rely on. UsageError for other models.
    """
    named = split_spec(model)
    if named is None:
        raise UsageError(f"{model} has no encoders to leave out; choose an InterLCM model")
    name, options = named
    steps = PUBLISHED[name].steps if options.steps is None else options.steps
    start = options.start_step

    def spec(**changes: object) -> str:
        return model + (":" if ":" not in model else ",") + ",".join(f"{k}={v}" for k, v in changes.items())

    lines = {f"VE + SE, start at the {_ORDINALS[start - 1]} step": model}
    for other in range(1, steps + 2):
        lines.setdefault(f"VE + SE, start at the {_ORDINALS[other - 1]} step", spec(start_step=other))
    lines["SE with null text"] = spec(visual="off")
    lines["SE with a text prompt"] = spec(prompt=prompt)
    lines["VE alone"] = spec(spatial="off")
    lines["null text alone"] = spec(visual="off", spatial="off")
    return lines


class Loader:
    """Loads one variant after the other; those that need the same networks share them, and only one set is held at a time."""

    def __init__(self, *, device: str = "auto", dtype: str = "auto") -> None:
        self._device, self._dtype = device, dtype
        self._held: tuple[object, Restorer] | None = None

    @contextmanager
    def restorer(self, spec: str) -> Iterator[Restorer]:
        """The restorer of a variant. Raises what load_restorer does."""
        key = _networks(spec)
        if self._held is None or self._held[0] != key:
            self._held = None
            gc.collect()
            self._held = key, load_restorer(spec, device=self._device, dtype=self._dtype)
        held, named = self._held[1], split_spec(spec)
        yield held.with_options(named[1]) if named is not None and isinstance(held, InterLCMRestorer) else held


def _networks(spec: str) -> object:
    """Equal for variants that differ in what `with_options` can change."""
    named = split_spec(spec)
    if named is None:
        return spec
    fixed: Mapping[str, object] = {"steps": None, "start_step": 2, "guidance": 8.0, "noise": "shared", "seed": 0}
    return named[0], replace(named[1], **fixed)  # type: ignore[arg-type]  # values of their own types
