"""Files that the user names: a wrong path is told as one, and not as a file of another kind. And what JSON files hold."""

from __future__ import annotations

from numbers import Real
from pathlib import Path

from streamfix.errors import ModelError


def check_file(path: Path) -> None:
    """ModelError where there is no such file."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}; check the path")


def plain_value(value: object) -> float | str:
    """For json: what a caller gave as a number of another kind (NumPy's, a Fraction), or as a Path and the like."""
    return float(value) if isinstance(value, Real) else str(value)
