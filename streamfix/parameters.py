"""One face under many settings of InterLCM: the sheet by which people choose steps and guidance."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamfix._cv2 import cv2
from streamfix.aligned import AlignedPipeline
from streamfix.errors import InputError, OutputError, UsageError
from streamfix.faces.detect import Detector, load_detector
from streamfix.media.part import explain, part_of, prepare
from streamfix.media.source import open_source
from streamfix.pipeline import Pipeline
from streamfix.restore.interlcm.options import split_spec
from streamfix.restore.interlcm.restorer import InterLCMRestorer
from streamfix.restore.passthrough import Passthrough
from streamfix.types import Image

Picture = npt.NDArray[np.float32]
_LABEL = 24


def face_of(image: Path, *, aligned: bool, detector: str | Detector = "auto") -> Picture:
    """The aligned face of a picture (its largest): float32 (512, 512, 3), RGB in [0, 1]. Raises InputError without one."""
    source = open_source(image)
    with source as opened:
        if not opened.is_still or opened.frames != 1:
            raise UsageError(f"{image} is not one picture; give an image file")
        if aligned:
            pipeline: Pipeline = AlignedPipeline(restorer=Passthrough())
        else:
            finder = load_detector(detector) if isinstance(detector, str) else detector
            pipeline = Pipeline(restorer=Passthrough(), detector=finder, lookahead=0)
        crops = [c for _, found in pipeline.cut_out(pipeline.place_still(pipeline.detect(opened))) for c in found]
    if not crops:
        raise InputError(f"there is no face in {image}; give another picture, or --aligned for one that is a face")
    scale = [abs(float(np.linalg.det(c.placement.matrix[:, :2]))) for c in crops]
    return crops[int(np.argmin(scale))].image  # the fewest crop pixels to a source pixel: the largest face


def compare_parameters(
    face: Picture,
    *,
    model: str = "interlcm",
    steps: Sequence[int] = (2, 3, 4),
    guidance: Sequence[float] = (6.0, 8.0, 12.0),
    device: str = "auto",
    size: int = 320,
    progress: Callable[[], None] | None = None,
) -> Image:
    """Rows of steps, columns of guidance scales, the input at the left of each row, every picture labelled: uint8 RGB.

    face: float32 (512, 512, 3) in [0, 1]. model: as load_restorer takes it. size: side of each picture in pixels. The
    networks are loaded once, and the noise of every setting begins with the same seed. Raises ModelError, UsageError.
    """
    restorers = settings_of(model, steps, guidance, device=device)
    crop = torch.from_numpy(face).permute(2, 0, 1)[None] * 2 - 1
    results = {}
    for setting, restorer in restorers.items():
        results[setting] = _picture(restorer.restore(crop))
        if progress is not None:
            progress()
    return sheet_of(face, results, size=size)


def settings_of(
    model: str, steps: Sequence[int], guidance: Sequence[float], *, device: str = "auto"
) -> dict[tuple[int, float], InterLCMRestorer]:
    """A restorer for every pair of steps and guidance scale, in that order, all over one set of networks.

    Raises UsageError for a model without such settings or values out of range, before anything is loaded; ModelError.
    """
    from streamfix.restore.base import load_restorer

    named = split_spec(model)
    if named is None:
        raise UsageError(f"{model} has no steps and no guidance to compare; choose an InterLCM model")
    name, chosen = named
    settings = {(s, g): replace(chosen, steps=s, guidance=g) for s in steps for g in guidance}
    for options in settings.values():
        options.of(name)  # out of range is told before the networks are loaded
    first = load_restorer(model, device=device)
    assert isinstance(first, InterLCMRestorer)
    return {setting: first.with_options(options) for setting, options in settings.items()}


def sheet_of(face: Picture, results: Mapping[tuple[int, float], Picture], *, size: int = 320) -> Image:
    """The input and its results by (steps, guidance scale), a row for each number of steps, labelled: uint8 RGB."""
    rows = []
    for s in dict.fromkeys(steps for steps, _ in results):
        row = [_labelled(face, "input", size)]
        row += [_labelled(p, f"steps {n}  guidance {g:g}", size) for (n, g), p in results.items() if n == s]
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows, axis=0)


def _picture(face: Tensor) -> Picture:
    return np.asarray(((face[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).cpu().numpy(), np.float32)


def _labelled(picture: Picture, text: str, size: int) -> Image:
    small = cv2.resize(np.rint(picture * 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_AREA)
    out = np.full((size + _LABEL, size, 3), 255, np.uint8)
    out[_LABEL:] = small
    scale = min(0.5, size / 400)
    cv2.putText(out, text, (4, _LABEL - 8), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return out


def save_sheet(sheet: Image, path: Path, *, source: Path, overwrite: bool = False) -> None:
    """Write it as PNG, whole or not at all. Raises OutputError, UsageError."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"the sheet is a PNG, and {path} is not named like one; call it .png")
    prepare(path, source=source, overwrite=overwrite, touch=False)
    _, data = cv2.imencode(".png", sheet[..., ::-1])
    part = part_of(path)
    try:
        part.write_bytes(bytes(data))
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OutputError(explain(error, path)) from error
