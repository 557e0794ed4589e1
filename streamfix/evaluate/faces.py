"""`streamfix evaluate faces DIR`: degrade clean aligned faces by a seed, restore them, measure."""

from __future__ import annotations

import csv
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streamfix.errors import InputError, UsageError
from streamfix.evaluate.metrics import Metrics, Picture
from streamfix.evaluate.peers import Peer
from streamfix.restore.base import Restorer, restore_images
from streamfix.train.data import face_files, read_face, template_crop
from streamfix.train.degradations import HEAVY, MILD, PAPER, footage, published

DEGRADATIONS: dict[str, Callable[[Sequence[Picture], np.random.Generator], Sequence[Picture]]] = {
    "paper": lambda frames, rng: published(frames, PAPER, rng),
    "heavy": lambda frames, rng: published(frames, HEAVY, rng),
    "mild": lambda frames, rng: published(frames, MILD, rng),
    "footage": footage,
}
"""What can be done to a clean face before it is restored, by name; see train.degradations."""


def check_degradation(name: str) -> None:
    """UsageError where it is none of DEGRADATIONS."""
    if name not in DEGRADATIONS:
        raise UsageError(f"there is no degradation called {name!r}; choose one of: {', '.join(DEGRADATIONS)}")


def degraded_face(file: Path, degradation: str, seed: int) -> tuple[Picture, Picture]:
    """(degraded, truth) of a clean aligned face, by a generator seeded with (seed, its name): a face depends on no other."""
    truth = template_crop(read_face(file))
    rng = np.random.default_rng([seed, zlib.crc32(file.name.encode())])
    return DEGRADATIONS[degradation]([truth], rng)[0], truth


@dataclass(slots=True)
class PeerScores:
    """Scores of every face as a peer restores it, and how long each took."""

    after: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class FaceScores:
    """Scores of every face: of the degraded input and of the restored output against the truth.

    peers: the same by others, by name. strip: rows of pictures: input, the peers in order, restored, truth.
    """

    names: list[str] = field(default_factory=list)
    before: list[dict[str, float]] = field(default_factory=list)
    after: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peers: dict[str, PeerScores] = field(default_factory=dict)
    strip: list[tuple[Picture, ...]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def mean(self, which: str, column: str, subset: Sequence[int] | None = None) -> float:
        """Mean of a column over all faces, or over those indices. which: "before" or "after"."""
        rows: list[dict[str, float]] = getattr(self, which)
        return float(np.mean([rows[i][column] for i in (range(len(rows)) if subset is None else subset)]))

    def table(self) -> list[tuple[str, float, float, float]]:
        """(metric, input, restored, restored / input) for every column."""
        columns = list(self.before[0])
        rows = [(c, self.mean("before", c), self.mean("after", c)) for c in columns]
        return [(c, a, b, b / a if a else float("nan")) for c, a, b in rows]

    def contest(self, name: str) -> list[tuple[str, float, dict[str, float]]]:
        """(who, median seconds a face, mean of every column) for the input, every peer, and the restorer as `name`."""
        entries = [("input", PeerScores(self.before, [0.0])), *self.peers.items()]
        entries.append((name, PeerScores(self.after, self.seconds)))
        return [
            (who, float(np.median(s.seconds)), {c: float(np.mean([row[c] for row in s.after])) for c in s.after[0]})
            for who, s in entries
        ]

    def groups(self, labels: Mapping[str, str]) -> dict[str, list[int]]:
        """Label -> numbers of the faces whose name has it."""
        members: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            if name in labels:
                members.setdefault(labels[name], []).append(index)
        return dict(sorted(members.items()))


def evaluate_faces(
    folder: Path,
    restorer: Restorer,
    metrics: Metrics,
    *,
    peers: Mapping[str, Peer] | None = None,
    degradation: str = "paper",
    limit: int = 60,
    seed: int = 0,
    keep: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> FaceScores:
    """Measure a restorer on the first `limit` faces of a folder (sorted by a hash of their names, so that sources mix).

    folder: aligned faces, 512x512 or larger with a margin (see `streamfix train`). degradation: one of DEGRADATIONS, as
    degraded_face has it. peers: others that restore the same degraded faces, by name. keep: how many rows of pictures to
    keep for a strip. Raises InputError or UsageError.
    """
    check_degradation(degradation)
    files = sorted(face_files(folder), key=lambda p: zlib.crc32(p.name.encode()))[:limit]
    scores = FaceScores(missing=list(metrics.missing), peers={name: PeerScores() for name in peers or {}})
    for number, file in enumerate(files):
        degraded, truth = degraded_face(file, degradation, seed)
        restored, seconds = _timed(lambda x: np.clip(restore_images(restorer, [x])[0], 0, 1), degraded)
        scores.seconds.append(seconds)
        scores.names.append(file.name)
        others = []
        for name, peer in (peers or {}).items():
            answer, seconds = _timed(peer, degraded)
            scores.peers[name].after.append(metrics.compare(answer, truth))
            scores.peers[name].seconds.append(seconds)
            others.append(answer)
        scores.before.append(metrics.compare(degraded, truth))
        scores.after.append(metrics.compare(restored, truth))
        if len(scores.strip) < keep:
            scores.strip.append((degraded, *others, restored, truth))
        if progress is not None:
            progress(number + 1, len(files))
    return scores


def _timed(restore: Peer, face: Picture) -> tuple[Picture, float]:
    began = time.perf_counter()
    return restore(face), time.perf_counter() - began


def read_groups(index: Path, column: str) -> dict[str, str]:
    """File name -> group from a CSV with a `file` column; numbers are cut into thirds, words are groups as they are."""
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{index} is no CSV file in UTF-8 ({error}); save it as one") from error
    except OSError as error:
        raise InputError(f"cannot read {index}: {error.strerror}; give a CSV file with a `file` column") from error
    if not rows or "file" not in rows[0] or column not in rows[0]:
        raise InputError(f"{index} has no columns `file` and `{column}`; name a column that it has")
    values = {Path(row["file"]).name: row[column] for row in rows if row[column] not in ("", None)}
    try:
        numbers = {name: float(value) for name, value in values.items()}
    except ValueError:
        return values
    low, high = np.quantile(list(numbers.values()), [1 / 3, 2 / 3])
    bounds = (f"{column} < {low:.1f}", f"{column} {low:.1f}..{high:.1f}", f"{column} > {high:.1f}")
    return {name: bounds[int(v >= low) + int(v > high)] for name, v in numbers.items()}
