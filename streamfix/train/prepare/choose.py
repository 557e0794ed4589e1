"""Of the faces that are good enough: which show the same picture again, who is who, and what is kept for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamfix.train.prepare.measure import Hash, hash_distance
from streamfix.train.prepare.store import Found, Record

Vectors = npt.NDArray[np.float32]

COPY = 0.1
"""Distance of two hashes up to which two faces are one picture. Copies lie below 0.02 (see measure.picture_hash), frames of a clip
a second apart at 0.03 to 0.15 where the face is still, another expression begins at 0.12."""
ALIKE = (0.18, 0.9)
"""The same where embeddings are there to ask: hashes may differ by the first where the embeddings' cosine reaches the second."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the faces, by the names of their pictures.

    places: "train" or "val" of those that are kept. identities: of those, who it is, called by the first name in the group, which says
    where to look. repeats: the better face that a duplicate repeats. removed: deleted from the folder by hand. by_embedding: identities
    are people, not files. nearest: see nearest().
    """

    places: dict[str, str]
    identities: dict[str, str]
    repeats: dict[str, str]
    removed: frozenset[str]
    by_embedding: bool
    nearest: float | None

    def reason(self, face: Found) -> str:
        """Why a face is not kept, "" where it is."""
        if face.name in self.repeats:
            return "duplicate"
        return "removed by hand" if face.name in self.removed else face.reason


def decide(records: Sequence[Record], lying: Mapping[str, str], *, same: float, val: float) -> Verdict:
    """From what was found in all sources, and where its pictures lie (name -> place), to what becomes of each face."""
    good = [face for record in records for face in record.faces if not face.reason]
    best = sorted((f for f in good if f.name in lying), key=_rank)
    vectors = None
    if best and all(f.embedding is not None for f in best):
        vectors = np.array([f.embedding for f in best], np.float32)
    twins = duplicates(np.array([f.bits for f in best], np.uint8).reshape(-1, 32), vectors, same)
    kept = [i for i, twin in enumerate(twins) if twin is None]
    names = [best[i].name for i in kept]
    source = {face.name: record.key for record in records for face in record.faces}
    labels: Sequence[int | str] = [source[n] for n in names] if vectors is None else people(vectors[kept], same)
    # a hand before the mouth makes somebody else of a face: what is in one video stays on one side all the same
    ties = [
        {label, source[best[i].name]} if best[i].time is not None else {label}
        for i, label in zip(kept, labels, strict=True)
    ]
    places = split(list(_groups(names, tied(ties)).values()), lying, val)
    return Verdict(
        places=places,
        identities={name: min(group) for group in _groups(names, labels).values() for name in group},
        repeats={best[i].name: best[twin].name for i, twin in enumerate(twins) if twin is not None},
        removed=frozenset(f.name for f in good if f.name not in lying),
        by_embedding=vectors is not None,
        nearest=None if vectors is None else nearest(vectors[kept], [places[name] for name in names]),
    )


def _groups(names: Sequence[str], labels: Sequence[int | str]) -> dict[int | str, list[str]]:
    groups: dict[int | str, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        groups.setdefault(label, []).append(name)
    return groups


def _rank(face: Found) -> tuple[float, float, str]:
    """Best first: most source pixels up to those of the template, then sharpest."""
    return -min(1 / face.enlarged, 1.0), -(face.sharpness or 0.0), face.name


def duplicates(hashes: Hash, vectors: Vectors | None, same: float) -> list[int | None]:
    """For each face, best first, the index of a better one that it repeats, or None where it is kept.

    hashes: (N, 32). vectors: float32 (N, D) of unit length, or None without embeddings; where they are there, two faces are never
    one picture unless they are also one person (cosine from `same` on).
    """
    kept: list[int] = []
    result: list[int | None] = []
    for number in range(len(hashes)):
        found = None
        if kept:
            distance = hash_distance(hashes[kept], hashes[number])
            copy = distance <= COPY
            if vectors is not None:
                likeness = vectors[kept] @ vectors[number]
                copy = (copy & (likeness >= same)) | ((distance <= ALIKE[0]) & (likeness >= ALIKE[1]))
            if copy.any():
                found = kept[int(np.argmin(np.where(copy, distance, np.inf)))]
        result.append(found)
        if found is None:
            kept.append(number)
    return result


def people(vectors: Vectors, same: float) -> list[int]:
    """A number for each of (N, D) embeddings of unit length, the same for faces of one person.

    Each face joins the person whose mean it resembles most, from a cosine of `same` on, else it begins a new one; then people whose
    means resemble each other become one, until none do. Means, because a chain of likenesses would join everybody.
    """
    sums = np.zeros_like(vectors)
    labels = np.zeros(len(vectors), np.int64)
    count = 0
    for number, vector in enumerate(vectors):
        likeness = _units(sums[:count]) @ vector
        best = int(np.argmax(likeness)) if count else 0
        if not count or likeness[best] < same:
            best, count = count, count + 1
        sums[best] += vector
        labels[number] = best
    sums = sums[:count]
    while len(sums) > 1:
        likeness = _units(sums) @ _units(sums).T
        np.fill_diagonal(likeness, -1)
        one, other = sorted(int(i) for i in np.unravel_index(int(np.argmax(likeness)), likeness.shape))
        if likeness[one, other] < same:
            break
        sums[one] += sums[other]
        sums = np.delete(sums, other, axis=0)
        labels[labels == other] = one
        labels[labels > other] -= 1
    return [int(n) for n in labels]


def tied(keys: Sequence[Set[int | str]]) -> list[int]:
    """A number for each set of keys, the same for sets that share one, if only through others."""
    labels = list(range(len(keys)))
    first: dict[int | str, int] = {}

    def root(number: int) -> int:
        while labels[number] != number:
            labels[number] = number = labels[labels[number]]
        return number

    for number, own in enumerate(keys):
        for key in own:
            one, other = sorted((root(first.setdefault(key, number)), root(number)))
            labels[other] = one
    return [root(number) for number in range(len(keys))]


def split(groups: Sequence[Sequence[str]], before: Mapping[str, str], share: float) -> dict[str, str]:
    """Name of each face -> "train" or "val"; all of a group go together.

    groups: of names that belong together. before: where faces lay after an earlier run: nobody who was trained on moves to val, and
    who was in val stays there unless found to be somebody in train. share: of the faces that val gets, as nearly as whole
    groups allow; at least one group where there are two. Which ones is decided by the names alone, so further data does not reshuffle.
    """
    result: dict[str, str] = {}
    undecided = []
    for group in groups:
        places = {before.get(name) for name in group}
        if "train" in places or "val" in places:
            result |= dict.fromkeys(group, "train" if "train" in places else "val")
        else:
            undecided.append(group)
    wanted = share * sum(len(group) for group in groups)
    chosen = sum(place == "val" for place in result.values())
    undecided.sort(key=lambda group: hashlib.sha256(min(group).encode()).digest())
    if undecided and not chosen and share > 0 and len(groups) > 1:
        first = min(undecided, key=len)
        undecided.remove(first)
        result |= dict.fromkeys(first, "val")
        chosen = len(first)
    for group in undecided:
        place = "val" if len(groups) > 1 and chosen + len(group) / 2 <= wanted else "train"
        chosen += len(group) if place == "val" else 0
        result |= dict.fromkeys(group, place)
    return result


def nearest(vectors: Vectors, places: Sequence[str]) -> float | None:
    """Highest cosine between a face of train and one of val: how well they are apart. None where one is empty."""
    apart = [vectors[[p == place for p in places]] for place in ("train", "val")]
    if not len(apart[0]) or not len(apart[1]):
        return None
    return max(float((apart[0] @ vector).max()) for vector in apart[1])


def _units(sums: Vectors) -> Vectors:
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9), np.float32)
