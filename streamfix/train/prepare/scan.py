"""From photos and videos to measured faces: what one source gives."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import InputError, UsageError
from streamfix.faces.align import yaw
from streamfix.faces.detect import Detector, detect_upright
from streamfix.media.color import to_rgb
from streamfix.media.images import IMAGE_SUFFIXES
from streamfix.media.source import UNREAD, VIDEO_SUFFIXES, open_source
from streamfix.train.prepare.cut import best_side, cut_face, enlargement, inside
from streamfix.train.prepare.measure import picture_hash, sharpness
from streamfix.train.prepare.options import Options
from streamfix.train.prepare.store import Found, Record, Store, key_of, thumb
from streamfix.types import CROP_SIZE, Face, Frame

_log = logging.getLogger(__name__)

_CELLS = (24, 18)
_EQUAL = 4.0
"""Levels of 255: frames of which no cell's mean differs by more look alike."""


def find_sources(inputs: list[Path], out: Path) -> list[Path]:
    """Every photo and video that the inputs name: files as they are, folders with all below them, hidden ones left out.

    Raises InputError where there is none, UsageError where they lie in the folder of the faces, which is not searched.
    """
    found: dict[Path, None] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(f"there is no file or folder {path}; check the path")
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise UsageError(f"the faces cannot go into {out}, where the input {path} is; name another folder")
        found |= dict.fromkeys(_below(path, out) if path.is_dir() else [path])
    if not found:
        raise InputError(f"{', '.join(map(str, inputs))}: no photo and no video is there; name a folder that has some")
    return list(found)


def _below(folder: Path, out: Path) -> list[Path]:
    files = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and out.resolve() not in path.resolve().parents and path.is_file():
            files.append(path)
    unread = [p for p in files if p.suffix.lower() in UNREAD]
    if unread:
        kinds = ", ".join(sorted({p.suffix.lower() for p in unread}))
        _log.warning(
            "%d pictures of %s are skipped (%s): convert them to JPEG or PNG first", len(unread), folder, kinds
        )
    return [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]


def scan(path: Path, detector: Detector, store: Store, options: Options, progress: Callable[[Record], None]) -> Record:
    """Find and measure the faces of one photo or video, and write the pictures of those that are good enough.

    A file that cannot be read is a record with its error: one bad file among many is told, and stops nothing. progress is called
    after every frame that was looked at.
    """
    now = path.stat()
    record = Record(source=str(path), key=key_of(path), size=now.st_size, changed=now.st_mtime_ns)
    store.forget(record.key)
    try:
        with open_source(path) as source:
            frames: Iterable[Frame] = source if source.is_still else _sampled(source, options.every, record)
            for frame in frames:
                record.frames += 1
                time = None if source.is_still else frame.time
                for face in detect_upright(detector, to_rgb(frame), frame.rotation):
                    name = _name(path, record.key, time, len(record.faces))
                    record.faces.append(_measured(frame, face, name, time, store, options))
                progress(record)
    except InputError as error:
        record.error = str(error)
        _log.warning("skipped: %s", error)
    store.note(record)
    return record


def _sampled(frames: Iterable[Frame], every: float, record: Record) -> Iterator[Frame]:
    """One frame in so many seconds, without those that look like the last one."""
    due, before = -math.inf, None
    for frame in frames:
        if frame.time < due:
            continue
        due = (math.floor(frame.time / every + 1e-6) + 1) * every - 1e-6  # on a grid, so that nothing drifts
        cells = _cells(frame)
        if before is not None and before.shape == cells.shape and np.abs(cells - before).max() < _EQUAL:
            record.equal += 1
            continue
        before = cells
        yield frame


def _cells(frame: Frame) -> npt.NDArray[np.float32]:
    grey = cv2.cvtColor(to_rgb(frame), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, _CELLS, interpolation=cv2.INTER_AREA), np.float32)


def _measured(frame: Frame, face: Face, name: str, time: float | None, store: Store, options: Options) -> Found:
    points = face.landmarks
    found = Found(
        name=name,
        time=None if time is None else round(time, 3),
        box=[round(float(v), 1) for v in face.box],
        size=round(face.size, 1),
        yaw=round(yaw(points), 1),
        score=round(float(face.score), 3),
        inside=round(inside(points, CROP_SIZE, frame.width, frame.height), 3),
        enlarged=round(enlargement(points), 3),
        embedding=None if face.embedding is None else [round(float(v), 5) for v in face.embedding],
    )
    crop = cut_face(frame, points, CROP_SIZE)
    found.thumb = thumb(crop)
    found.reason = _first_fault(found, options)
    if found.reason:
        return found
    found.sharpness = round(sharpness(crop), 1)
    if found.sharpness < options.min_sharpness:
        found.reason = "soft"
        return found
    found.side = best_side(points, frame.width, frame.height)
    found.hash = picture_hash(crop).tobytes().hex()
    store.picture(found.name, crop if found.side == CROP_SIZE else cut_face(frame, points, found.side))
    return found


def _first_fault(found: Found, options: Options) -> str:
    if found.score < options.min_score:
        return "unsure"
    if found.size < options.min_size:
        return "small"
    if found.yaw > options.max_yaw:
        return "turned"
    return "cut off" if found.inside < options.min_inside else ""


def _name(path: Path, key: str, time: float | None, number: int) -> str:
    """Of a face's picture: one that every disk takes, and that sorts by source and time."""
    stem = "".join(c if c.isalnum() or c in "._" else "_" for c in path.stem)[:60].strip(".") or "face"
    when = "" if time is None else f"{round(time * 1000):08d}ms-"
    return f"{stem}-{key}-{when}{number:02d}"
