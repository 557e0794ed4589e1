"""Settings from TOML files into dataclasses: every key must be known and every value of its kind."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from streamfix.errors import UsageError

T = TypeVar("T")
_SHIPPED = files("streamfix.train") / "configs"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in _SHIPPED.iterdir() if f.name.endswith(".toml"))


def read_settings(source: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, or of the shipped one of that name, upon those of the file that it `extends`.

    `extends` names another shipped one, or a path from the file's own folder. Raises UsageError.
    """
    return _read(str(source), Path(), ())


def _read(source: str, folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    path = folder / source
    if source in shipped() and not path.is_file():
        text, key, inside = (_SHIPPED / f"{source}.toml").read_text(encoding="utf-8"), source, Path()
    else:
        try:
            text, key, inside = path.read_text(encoding="utf-8"), str(path.resolve()), path.parent
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is no TOML: it is no text in UTF-8") from error
        except OSError as error:
            known = ", ".join(shipped())
            raise UsageError(f"there is no configuration {path}; give a TOML file, or one of: {known}") from error
    if key in seen:
        raise UsageError(f"the configuration {source} extends itself")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise UsageError(f"`extends` in {path} names one other configuration, as a text")
    return merged(_read(base, inside, (*seen, key)), table)


def check_seed(seed: int) -> None:
    """UsageError for a seed that not every generator takes."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed is a whole number from 0 to 2^63 - 1, not {seed}")


def check_length(steps: int | None, minutes: float | None) -> None:
    """UsageError unless a run has one length, and one that it can reach."""
    if (steps is None) == (minutes is None):
        raise UsageError("give the length of the run as either steps or minutes")
    if (steps is not None and steps < 1) or (minutes is not None and not minutes >= 0):
        raise UsageError("give the length of the run as at least 1 step, or as minutes from 0")


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables upon tables: what both have is the latter's."""
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def filled(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """A dataclass with the values of a table, those of dataclasses within it from tables within; UsageError else."""
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise UsageError(f"there is no setting {where}{key}; here are known: {', '.join(known)}")
    missing = [f.name for f in fields(kind) if f.name not in table and _is_required(f)]  # type: ignore[arg-type]
    if missing:
        raise UsageError(f"the setting {where}{missing[0]} is missing")
    return kind(**{key: _value(hints[key], value, f"{where}{key}") for key, value in table.items()})


def _is_required(field: Any) -> bool:
    from dataclasses import MISSING

    return field.default is MISSING and field.default_factory is MISSING


def _value(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) is UnionType:
        if value is None:
            return None
        (kind,) = [k for k in get_args(kind) if k is not NoneType]
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or (kinds[-1] is not Ellipsis and len(value) != len(kinds)):
            raise UsageError(
                f"{where} is a list of {'settings' if kinds[-1] is Ellipsis else len(kinds)}, not {value!r}"
            )
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if is_dataclass(kind) or get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} is a table of settings, not {value!r}")
        if get_origin(kind) is dict:
            return {name: _value(get_args(kind)[1], v, f"{where}.{name}") for name, v in value.items()}
        return filled(kind, value, f"{where}.")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UsageError(f"{where} is one of {', '.join(map(str, get_args(kind)))}, not {value!r}")
        return value
    plain = isinstance(value, kind) or (kind is Path and isinstance(value, str))
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (plain if kind is not int else whole) and not (kind is float and whole):
        raise UsageError(f"{where} is {_WORDS[kind]}, not {value!r}")
    return kind(value)
