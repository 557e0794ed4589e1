"""Files that the user names: a wrong path is told as one, and not as a file of another kind."""

from __future__ import annotations

from pathlib import Path

from streamfix.errors import ModelError


def check_file(path: Path) -> None:
    """ModelError where there is no such file."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}; check the path")
