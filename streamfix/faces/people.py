"""A TOML file that says whom to restore, and how much: `--faces people.toml`."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamfix.errors import InputError, UsageError

_TOP = ("others", "others_strength", "person")
_PERSON = ("name", "photo", "photos", "strength", "restore")
_EXAMPLE = '[[person]], name = "Anna", photo = "anna.jpg"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One [[person]]. photos: at least one, files that exist. strength: 0 (left: restore = false) .. 1."""

    name: str
    photos: tuple[Path, ...]
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleFile:
    """entries: in the order of the file, at least one. others: strength of everybody else; 0 leaves them."""

    entries: tuple[Entry, ...]
    others: float


def read_people(path: Path) -> PeopleFile:
    """Read such a file; photos are looked for beside it.

    others = "leave" (the default) or "restore", others_strength = 0..1; for each [[person]]: name, photo = "FILE" or
    photos = ["FILE", ...], strength = 0..1 (default 1), restore = true (the default) or false. Raises InputError where
    it or a photo cannot be read, UsageError for what is no TOML, unknown keys, wrong types and values.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); give a TOML file of people") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no TOML that can be read ({error}); write {_EXAMPLE}") from error
    _known(data, _TOP, where=f"{path}")
    people = data.get("person", [])
    if not isinstance(people, list) or not all(isinstance(p, dict) for p in people):
        raise UsageError(f"{path}: person must be tables, each begun with [[person]], not {_shown(people)}")
    if not people:
        raise UsageError(f"{path} names nobody; write {_EXAMPLE}")
    entries = tuple(_entry(path, number, person) for number, person in enumerate(people, start=1))
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{path}: there are two people called {twice[0]}; give both photos to one, or another name")
    return PeopleFile(entries=entries, others=_others(path, data))


def _others(path: Path, data: Mapping[str, Any]) -> float:
    others = data.get("others", "leave")
    if others not in ("restore", "leave"):
        raise UsageError(f'{path}: others must be "restore" or "leave", not {_shown(others)}')
    if others == "leave" and "others_strength" in data:
        raise UsageError(f'{path}: others_strength is of use with others = "restore" only; add that or leave it out')
    return 0.0 if others == "leave" else _strength(data, "others_strength", where=f"{path}")


def _entry(path: Path, number: int, person: Mapping[str, Any]) -> Entry:
    where = f"{path}: [[person]] number {number}"
    _known(person, _PERSON, where=where)
    name = person.get("name")
    if name is None:
        raise UsageError(f'{where} has no name; add name = "..."')
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"{where}: name must be a text that is not empty, not {_shown(name)}")
    where = f"{path}: {name}"
    restore = person.get("restore", True)
    if not isinstance(restore, bool):
        raise UsageError(f"{where}: restore must be true or false, not {_shown(restore)}")
    strength = _strength(person, "strength", where=where)
    if ("photo" in person) == ("photos" in person):
        raise UsageError(f'{where} needs either photo = "FILE" or photos = ["FILE", ...]')
    photos = [person["photo"]] if "photo" in person else person["photos"]
    key = "photo" if "photo" in person else "photos"
    if not isinstance(photos, list) or not photos or not all(isinstance(p, str) and p for p in photos):
        wanted = "the name of a file" if key == "photo" else "a list of names of files"
        raise UsageError(f"{where}: {key} must be {wanted}, not {_shown(person[key])}")
    files = [path.parent / os.path.expanduser(photo) for photo in photos]
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"{where}: there is no photo {file}; photos are looked for beside the TOML file")
    return Entry(name=name, photos=tuple(files), strength=strength if restore else 0.0)


def _strength(table: Mapping[str, Any], key: str, *, where: str) -> float:
    value = table.get(key, 1.0)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value <= 1:
        raise UsageError(f"{where}: {key} must be a number from 0 (input) to 1 (restored), not {_shown(value)}")
    return float(value)


def _known(table: Iterable[str], keys: tuple[str, ...], *, where: str) -> None:
    for key in table:
        if key in _TOP and keys is _PERSON:  # TOML gives all that follows a [[person]] to that person
            raise UsageError(f"{where}: {key} is said of the whole file; write it above the first [[person]]")
        if key not in keys:
            near = difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.0)[0]
            raise UsageError(f"{where}: there is no key {key!r}; did you mean {near}? Known are {', '.join(keys)}")


def _shown(value: object) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
