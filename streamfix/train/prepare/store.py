"""The folder of prepared faces: pictures, and what was found in each source, so that a further run goes on.

```
OUT/train/*.png, OUT/val/*.png   the faces, for `streamfix train --data OUT/train`
OUT/index.csv, kept.png, dropped.png
OUT/.prepare/settings.json       what the faces were chosen by
OUT/.prepare/KEY.json            what was found in one source, written when all of it is there
OUT/.prepare/spare/*.png         faces that are kept in reserve: duplicates of others
```
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import InputError, OutputError, UsageError
from streamfix.media.part import explain, write_whole
from streamfix.train.prepare.measure import Picture
from streamfix.types import Image

PLACES = ("train", "val", "spare")
_THUMB = 112


@dataclass(slots=True, kw_only=True)
class Found:
    """One face of a source: what index.csv says of it, and what the choice is made by.

    name: of its file, without suffix. time: seconds, None for pictures. box: x1 y1 x2 y2, stored pixels. size, yaw, sharpness, inside:
    as in Options; sharpness is None for what was dropped before it was measured. enlarged: template pixels for a source pixel.
    side: of its picture, 0 where none was made. reason: why it was dropped, "" where it was not. hash: hexadecimal.
    thumb: a small JPEG in base64.
    """

    name: str
    time: float | None
    box: list[float]
    size: float
    yaw: float
    score: float
    inside: float
    enlarged: float
    sharpness: float | None = None
    side: int = 0
    reason: str = ""
    hash: str = ""
    embedding: list[float] | None = None
    thumb: str = ""

    @property
    def bits(self) -> npt.NDArray[np.uint8]:
        """The perceptual hash, uint8 (32,)."""
        return np.frombuffer(bytes.fromhex(self.hash), np.uint8)


@dataclass(slots=True, kw_only=True)
class Record:
    """What one source gave. key: of the source. size, changed: of the file, bytes and ns. error: why it could not be read, or "".

    frames: looked at. equal: frames that were left out because they look like the one before.
    """

    source: str
    key: str
    size: int
    changed: int
    frames: int = 0
    equal: int = 0
    error: str = ""
    faces: list[Found] = field(default_factory=list)


def key_of(path: Path) -> str:
    """A short name of a source that no other has."""
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:10]


class Store:
    """Such a folder. Raises OutputError where it cannot be written, UsageError where it belongs to something else."""

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        self.root, self._notes = root, root / ".prepare"
        try:
            if root.is_dir() and any(root.iterdir()) and not self._notes.is_dir():
                raise UsageError(f"{root} holds other files; name a new folder for the faces")
            for place in PLACES:
                self.folder(place).mkdir(parents=True, exist_ok=True)
            self._same_settings(settings)
        except OSError as error:
            raise OutputError(explain(error, root)) from error

    def _same_settings(self, settings: dict[str, Any]) -> None:
        path = self._notes / "settings.json"
        if not path.exists():
            write_whole(path, json.dumps(settings, indent=1).encode())
            return
        before = _read_json(path)
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            told = ", ".join(f"{n.replace('_', '-')} was {before.get(n)}, is {settings[n]}" for n in changed)
            raise UsageError(
                f"the faces in {self.root} were chosen by other settings ({told}); name another folder, or use those"
            )

    def folder(self, place: str) -> Path:
        """Where the pictures of train, val or spare lie."""
        return self._notes / "spare" if place == "spare" else self.root / place

    def record(self, path: Path) -> Record | None:
        """What is known of a source, None where it is new or has changed since."""
        note = self._notes / f"{key_of(path)}.json"
        if not note.exists():
            return None
        known, now = _record(note), path.stat()
        return known if (known.size, known.changed) == (now.st_size, now.st_mtime_ns) else None

    def records(self) -> list[Record]:
        """Of all sources of this and earlier runs, by name."""
        notes = (p for p in self._notes.glob("*.json") if p.name != "settings.json")
        return sorted((_record(p) for p in notes), key=lambda r: (r.source, r.key))

    def forget(self, key: str) -> None:
        """Remove what a source gave."""
        (self._notes / f"{key}.json").unlink(missing_ok=True)
        for place in PLACES:
            for picture in self.folder(place).glob(f"*-{key}-*.png"):
                picture.unlink()

    def note(self, record: Record) -> None:
        """A source is done: its pictures are there, and this says so."""
        write_whole(self._notes / f"{record.key}.json", json.dumps(asdict(record)).encode())

    def picture(self, name: str, crop: Picture) -> None:
        """Write the picture of a face, in reserve until it is chosen."""
        write_whole(self.folder("spare") / f"{name}.png", encoded(".png", to_bytes(crop)))

    def pictures(self) -> dict[str, str]:
        """Name -> place of every picture that is there."""
        return {p.stem: place for place in PLACES for p in sorted(self.folder(place).glob("[!.]*.png"))}

    def move(self, name: str, before: str, after: str) -> None:
        """Put a picture into another place."""
        if before != after:
            os.replace(self.folder(before) / f"{name}.png", self.folder(after) / f"{name}.png")


def to_bytes(crop: Picture) -> Image:
    """Float [0, 1] as uint8."""
    return np.rint(np.clip(crop, 0, 1) * 255).astype(np.uint8)


def encoded(suffix: str, image: Image) -> bytes:
    """A picture file of RGB uint8 (H, W, 3)."""
    done, data = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise OutputError(f"a picture of {image.shape[1]}x{image.shape[0]} cannot be encoded as {suffix}")
    return bytes(data.tobytes())


def thumb(crop: Picture) -> str:
    """A small JPEG of a crop, in base64."""
    small = cv2.resize(crop, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
    return base64.b64encode(encoded(".jpg", to_bytes(np.asarray(small, np.float32)))).decode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    raise InputError(f"{path} is damaged; remove it, and its source is looked at again")


def _record(path: Path) -> Record:
    facts = _read_json(path)
    try:
        faces = [Found(**face) for face in facts.pop("faces")]
        return Record(**{f.name: facts[f.name] for f in fields(Record) if f.name != "faces"}, faces=faces)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; remove it, and its source is looked at again") from error
