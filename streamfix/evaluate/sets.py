"""The pictures of a test set: pairs of folders, clean faces that are degraded by a seed, or faces without a truth."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from streamfix.errors import InputError, UsageError
from streamfix.evaluate.faces import check_degradation, degraded_face
from streamfix.evaluate.metrics import Picture
from streamfix.evaluate.published import PaperSet
from streamfix.train.data import face_files, read_face, template_crop

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """One face of a set. load: gives what is restored and the truth, None where there is none; float32 (512, 512, 3) in [0, 1]."""

    name: str
    load: Callable[[], tuple[Picture, Picture | None]]


def samples_of(
    paper_set: PaperSet,
    folder: Path,
    *,
    limit: int | None = None,
    degradation: str = "paper",
    seed: int = 0,
    cut: Callable[[Path], Picture] | None = None,
) -> list[Sample]:
    """The first `limit` faces of a set, sorted by a hash of their names, so that sources mix.

    A paired set is a folder with `lq` and `gt`, pictures of the same name in both; or one of clean aligned faces, each
    degraded by a generator seeded with (seed, its name). Other sets are folders of aligned faces; with `cut` of whole
    pictures, from which it takes the face; one without is left out with a warning. Raises InputError, UsageError.
    """
    check_degradation(degradation)
    if paper_set.paired:
        if cut is not None:
            raise UsageError(f"{paper_set.name} has aligned faces with a truth; leave --photos to the other sets")
        if (folder / "lq").is_dir() and (folder / "gt").is_dir():
            pairs = _pairs(folder / "lq", folder / "gt")
            return [Sample(low.stem, partial(_pair, low, high)) for low, high in _mixed(pairs, limit)]
        files = [(f,) for f in face_files(folder)]
        return [Sample(f.stem, partial(degraded_face, f, degradation, seed)) for (f,) in _mixed(files, limit)]
    alone = (f for (f,) in _mixed([(f,) for f in face_files(folder)], None) if cut is None or _has_face(f, cut))
    samples = [Sample(f.stem, partial(_alone, f, cut)) for f in islice(alone, limit)]
    if not samples:
        raise InputError(f"none of the pictures of {folder} has a face; give another folder")
    return samples


def _has_face(file: Path, cut: Callable[[Path], Picture]) -> bool:
    try:
        cut(file)
    except InputError as error:
        _log.warning("%s is left out: %s", file.name, str(error).partition(";")[0])
        return False
    return True


def aligned_face(file: Path) -> Picture:
    """See read_face and template_crop."""
    return template_crop(read_face(file))


def _mixed(files: Sequence[tuple[Path, ...]], limit: int | None) -> list[tuple[Path, ...]]:
    return sorted(files, key=lambda f: zlib.crc32(f[0].name.encode()))[:limit]


def _pairs(low: Path, high: Path) -> list[tuple[Path, ...]]:
    first, second = ({f.stem: f for f in face_files(folder)} for folder in (low, high))
    alone = sorted(first.keys() ^ second.keys())
    if alone:
        raise InputError(f"{alone[0]} and {len(alone) - 1} more are not in both of {low} and {high}; name pairs alike")
    return [(first[stem], second[stem]) for stem in sorted(first)]


def _pair(low: Path, high: Path) -> tuple[Picture, Picture]:
    return aligned_face(low), aligned_face(high)


def _alone(file: Path, cut: Callable[[Path], Picture] | None) -> tuple[Picture, None]:
    return (aligned_face(file) if cut is None else cut(file)), None
