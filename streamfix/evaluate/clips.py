"""`streamfix evaluate clips DIR`: what it brings that the restorer sees its answer to the frame before.

Stills become clips of a moving head, coded at a low bit rate (see `streamfix.train`); the same restorer runs over them
with and without its memory.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streamfix.compose import face_mask
from streamfix.errors import UsageError
from streamfix.evaluate.metrics import Metrics, Picture
from streamfix.evaluate.video import gradient_energy
from streamfix.restore.base import RecurrentRestorer, Restorer, restore_images
from streamfix.restore.recurrence import Recurrence
from streamfix.train.codecs import Rng
from streamfix.train.data import face_files, read_face, template_crop
from streamfix.train.degradations import starved
from streamfix.train.motion import Motion

KINDS = ("input", "frame by frame", "recurrent")


@dataclass(slots=True)
class ClipScores:
    """Means over all clips, by kind (KINDS) and metric.

    flicker: mean |(R_t - R_t-1) - (G_t - G_t-1)| inside the face mask, in 1/255. sharpness: gradient energy relative to
    the truth's. cut: by kind, the error (mean |R - G| inside the face mask, in 1/255) of the first and the second frame
    after another face in the same track.
    """

    clips: int = 0
    means: dict[str, dict[str, float]] = field(default_factory=dict)
    cut: dict[str, tuple[float, float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def evaluate_clips(
    folder: Path,
    restorer: Restorer,
    metrics: Metrics,
    *,
    limit: int = 24,
    frames: int = 12,
    every: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ClipScores:
    """Measure on the first `limit` faces of a folder (sorted by a hash of their names), a clip of `frames` of each.

    every: the costly image metrics run on each n-th frame. Raises UsageError for a restorer without memory, InputError
    for the folder.
    """
    if not isinstance(restorer, RecurrentRestorer) or not restorer.recurrent:
        raise UsageError(f"the restorer {restorer.name} does not look at the frame before: there is nothing to compare")
    files = sorted(face_files(folder), key=lambda p: zlib.crc32(p.name.encode()))[:limit]
    sums: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in KINDS}
    cuts: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS[1:]}
    last: tuple[list[Picture], list[Picture]] | None = None
    for number, file in enumerate(files):
        rng = np.random.default_rng([seed, zlib.crc32(file.name.encode())])
        truth, seen = _clip(template_crop(read_face(file)), frames, rng)
        alone = restore_images(restorer, seen)
        for kind, pictures in zip(KINDS, (seen, alone, _recurrent(restorer, seen)), strict=True):
            _measure(pictures, truth, metrics, every, sums[kind])
        if last is not None:
            after = _recurrent(restorer, [*last[1][-4:], *seen[:2]])[-2:]
            for kind, pair in zip(KINDS[1:], (alone[:2], after), strict=True):
                first, second = (_error(r, g) for r, g in zip(pair, truth[:2], strict=True))
                cuts[kind].append((first, second))
        last = truth, seen
        if progress is not None:
            progress(number + 1, len(files))
    means = {kind: {name: float(np.mean(v)) for name, v in columns.items()} for kind, columns in sums.items()}
    cut = {kind: tuple(np.mean(pairs, axis=0).tolist()) for kind, pairs in cuts.items() if pairs}
    return ClipScores(clips=len(files), means=means, cut=cut, missing=list(metrics.missing))


def _clip(still: Picture, frames: int, rng: Rng) -> tuple[list[Picture], list[Picture]]:
    poses = Motion(still=0.0, pan=1.0).draw(frames, rng)
    truth = [pose.face(still) for pose in poses]
    seen = starved([pose.seen(f) for pose, f in zip(poses, truth, strict=True)], rng)
    return truth, [pose.aligned(f) for pose, f in zip(poses, seen, strict=True)]


def _recurrent(restorer: Restorer, seen: Sequence[Picture]) -> list[Picture]:
    recurrence = Recurrence(restorer)
    return [recurrence.restore(n, [0], [picture])[0] for n, picture in enumerate(seen)]


def _error(image: Picture, truth: Picture) -> float:
    mask = face_mask()[..., None]
    return 255 * float((np.abs(image - truth) * mask).sum() / (3 * mask.sum()))


def _measure(
    pictures: Sequence[Picture], truth: Sequence[Picture], metrics: Metrics, every: int, sums: dict[str, list[float]]
) -> None:
    for n, (image, clean) in enumerate(zip(pictures, truth, strict=True)):
        if n:
            sums["flicker"].append(_error(image - pictures[n - 1], clean - truth[n - 1]))
        sums["sharpness"].append(gradient_energy(image) / max(gradient_energy(clean), 1e-6))
        if n % every == every - 1:
            for name, value in metrics.compare(image, clean).items():
                sums[name].append(value)
