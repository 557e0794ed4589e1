"""Which of the followed faces to restore, and how much: all, the largest, the one in the centre, or people by reference photos."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np

from streamfix._cv2 import cv2
from streamfix.errors import InputError, ModelError, UsageError
from streamfix.faces.align import Similarity
from streamfix.faces.detect import DEFAULT_PACK, Detector
from streamfix.faces.embedding import Embedding
from streamfix.faces.people import read_people
from streamfix.faces.track import BIRTH_SCORE
from streamfix.types import CROP_SIZE, Frame, Placement

_log = logging.getLogger(__name__)

_MARGIN = 1.25
"""A rival must be so many times larger, or nearer to the centre, to take the place of the face that has been chosen."""
_SIZE_MARGIN = 0.9
FACE_SHARE = 0.6
"""Size of a detected face (square root of its box's area) as a share of its crop's side."""
BACKGROUND = (0.4, 0.5)
"""Sizes as shares of the frame's largest face: below the second a face does not come to the fore, below the first it
falls back. A person at twice the distance of another appears at half the size."""
SAME = (0.35, 0.1)
"""Cosines of face embeddings: above the first it is the person; a face that has been stays down to the second.

Measured with a MobileFaceNet on faces averaged over 17 frames: one person 0.65 to 0.98, different people in clips up to
0.28, in 3,160 pairs of portraits 0.24 at the 95th percentile. Single frames of one person fall to 0.15 behind a hand and
to 0.17 at 14 kb/s."""
_ONE_PERSON = 0.65
"""Cosine of two photos from which they are worth a word where they are said to show two people."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be done with a face. strength: 0 (left) .. 1, a factor. person: whose face it is, "" where nobody asked."""

    strength: float = 1.0
    person: str = ""


Choices = Mapping[int, Choice]
"""By track id; a face that is not in it is left."""
_NOBODY: Choices = {}


class Selector(Protocol):
    """Decides whom to restore. It holds no state: what was chosen before comes in."""

    def choose(self, frame: Frame, placements: Sequence[Placement], *, current: Choices = _NOBODY) -> Choices:
        """What to do with which of the placements.

        current: the answer for the previous frame, which is favoured so that the choice does not flip to and fro; empty
        for a picture that stands alone.
        """


def size_of(placement: Placement) -> float:
    """Size of the face in source pixels (about the square root of its box's area)."""
    return float(np.exp(Similarity.of(placement.matrix).log_scale)) * CROP_SIZE * FACE_SHARE


class SelectAll:
    """Every face of at least min_size source pixels; ignore_background leaves those much smaller than the frame's largest."""

    def __init__(self, *, min_size: float = 0.0, ignore_background: bool = False) -> None:
        if not (np.isfinite(min_size) and min_size >= 0):
            raise UsageError(f"the smallest face to restore must be 0 or more source pixels, not {min_size:g}")
        self.min_size, self.ignore_background = min_size, ignore_background

    def choose(self, frame: Frame, placements: Sequence[Placement], *, current: Choices = _NOBODY) -> Choices:
        """See Selector."""
        return {p.track_id: Choice() for p in self.large_enough(placements, current)}

    def large_enough(self, placements: Sequence[Placement], current: Choices) -> list[Placement]:
        """Those that min_size and ignore_background leave."""
        sizes = {p.track_id: size_of(p) for p in placements}
        main = max(sizes.values(), default=0.0) if self.ignore_background else 0.0
        stay, come = (max(self.min_size * a, main * b) for a, b in zip((_SIZE_MARGIN, 1.0), BACKGROUND, strict=True))
        return [p for p in placements if sizes[p.track_id] >= (stay if p.track_id in current else come)]


class SelectOne(SelectAll):
    """The one face with the highest merit."""

    def choose(self, frame: Frame, placements: Sequence[Placement], *, current: Choices = _NOBODY) -> Choices:
        """See Selector."""
        large = self.large_enough(placements, current)
        if not large:
            return {}
        best = max(large, key=lambda p: self.merit(frame, p) * (_MARGIN if p.track_id in current else 1.0))
        return {best.track_id: Choice()}

    def merit(self, frame: Frame, placement: Placement) -> float:
        """Positive; higher is better."""
        raise NotImplementedError


class SelectLargest(SelectOne):
    """The largest face."""

    def merit(self, frame: Frame, placement: Placement) -> float:
        """Size in pixels."""
        return size_of(placement)


class SelectCenter(SelectOne):
    """The face nearest to the middle of the frame."""

    def merit(self, frame: Frame, placement: Placement) -> float:
        """Inverse distance; within a twentieth of the diagonal all are equally central."""
        place = Similarity.of(placement.matrix)
        distance = float(np.hypot(place.cx - (frame.width - 1) / 2, place.cy - (frame.height - 1) / 2))
        return 1.0 / (distance + 0.05 * float(np.hypot(frame.width, frame.height)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Person:
    """Somebody who is to be known again. embeddings: of one photo or more; strength: 0 (left) .. 1, a factor."""

    name: str
    embeddings: Sequence[Embedding]
    strength: float = 1.0

    def likeness(self, embedding: Embedding) -> float:
        """Cosine to the likest photo."""
        return max(float(known @ embedding) for known in self.embeddings)


class SelectPeople(SelectAll):
    """People by their photos, each with a strength of their own: in each frame at most one face a person, the likest.

    others: strength of everybody else; 0 leaves them. Raises UsageError for strengths outside 0..1, ModelError for
    embeddings of different length.
    """

    def __init__(
        self,
        people: Iterable[Person],
        *,
        others: float = 0.0,
        min_size: float = 0.0,
        ignore_background: bool = False,
    ) -> None:
        super().__init__(min_size=min_size, ignore_background=ignore_background)
        self.people, self.others = list(people), others
        for name, strength in [("everybody else", others), *((p.name, p.strength) for p in self.people)]:
            if not 0.0 <= strength <= 1.0:
                raise UsageError(
                    f"the strength of {name} must lie between 0 (input) and 1 (restored), not {strength:g}"
                )
        lengths = {len(embedding) for person in self.people for embedding in person.embeddings}
        if len(lengths) > 1:
            raise ModelError(
                f"the people's embeddings are of different length ({', '.join(map(str, sorted(lengths)))}); take one model for all"
            )

    def choose(self, frame: Frame, placements: Sequence[Placement], *, current: Choices = _NOBODY) -> Choices:
        """See Selector. A face without an embedding (it is out of sight for long) stays who it was."""
        large = self.large_enough(placements, current)
        candidates = []
        for placement in large:
            was = current.get(placement.track_id, Choice()).person
            for number, person in enumerate(self.people):
                held = person.name == was
                likeness = SAME[0] if held else -1.0
                if placement.embedding is not None:
                    likeness = person.likeness(placement.embedding)
                if likeness >= (SAME[1] if held else SAME[0]):
                    likeness += SAME[0] - SAME[1] if held else 0.0
                    candidates.append((-likeness, number, placement.track_id))
        known: dict[int, Person] = {}
        for _, number, track in sorted(candidates):  # the likest pairs first; nobody is in two places
            if track not in known and self.people[number] not in known.values():
                known[track] = self.people[number]
        result = {track: Choice(person.strength, person.name) for track, person in known.items()}
        if self.others > 0:
            result |= {p.track_id: Choice(self.others) for p in large if p.track_id not in known}
        return result


def parse_select(
    spec: str | Path, detector: Detector, *, min_size: float = 0.0, ignore_background: bool = False
) -> Selector:
    """The selector of that name: "all", "largest", "center", the path of a photo, or of a TOML file of people.

    min_size: leave faces smaller than this many source pixels. ignore_background: leave faces much smaller than the
    frame's largest. A photo needs a detector that gives embeddings (`load_detector(embedding=...)`, or an insightface
    pack with one). Raises UsageError for an unknown name, InputError for an unreadable photo or one without a face,
    ModelError where the detector gives no embeddings, and what `read_people` does.
    """
    spec = str(spec)
    match spec:
        case "all":
            return SelectAll(min_size=min_size, ignore_background=ignore_background)
        case "largest":
            return SelectLargest(min_size=min_size, ignore_background=ignore_background)
        case "center" | "centre":
            return SelectCenter(min_size=min_size, ignore_background=ignore_background)
    path = Path(os.path.expanduser(spec))
    if not os.path.isfile(path):
        raise UsageError(
            f"faces must be all, largest, center, a photo or a TOML file of people, and there is no file {spec!r}"
        )
    people, others = [], 0.0
    if path.suffix.lower() == ".toml":
        file = read_people(path)
        others = file.others
        for entry in file.entries:
            embeddings = [_reference(photo, detector) for photo in entry.photos]
            people.append(Person(name=entry.name, embeddings=embeddings, strength=entry.strength))
    else:
        people.append(Person(name=path.stem, embeddings=[_reference(path, detector)]))
    for one, other in combinations(people, 2):
        if max(one.likeness(embedding) for embedding in other.embeddings) >= _ONE_PERSON:
            _log.warning(
                "%s and %s look like one person in their photos; each face is taken for one of them only",
                one.name,
                other.name,
            )
    return SelectPeople(people, others=others, min_size=min_size, ignore_background=ignore_background)


def _reference(path: Path, detector: Detector) -> Embedding:
    """The embedding of the largest face of a photo."""
    if not getattr(detector, "has_embeddings", False):
        raise ModelError(
            f"telling people apart by a photo needs a face embedding, and {detector.name} has none; give an ArcFace-style "
            f"model with --embedding FILE.onnx, or run `streamfix models pull {DEFAULT_PACK}` and choose --detector insightface"
        )
    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); give a photo of the person") from error
    except cv2.error as error:
        raise InputError(f"{path} is a picture that cannot be decoded ({error.err}); give another photo") from error
    if image is None:
        raise InputError(f"{path} is not a picture that can be read; give a JPEG or PNG photo of the person")
    faces = [f for f in detector.detect(np.ascontiguousarray(image[..., ::-1])) if f.score >= 0.5]
    if not faces:
        raise InputError(f"no face is found in {path}; give a photo that shows the person's face clearly")
    largest = max(faces, key=lambda f: f.size)
    rivals = sum(f.size >= BACKGROUND[1] * largest.size and f.score >= BIRTH_SCORE for f in faces)
    if rivals > 1:
        _log.warning("%s shows %d faces; the largest of them is taken for the person", path, rivals)
    embedding = largest.embedding
    if embedding is None:
        raise InputError(f"the face in {path} gives no embedding; give a sharper photo of the person")
    return embedding
