"""Outputs appear whole or not at all: the part file, and what the errors of the system mean."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from streamfix.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows refuses to move a file that another program has open
    fcntl = None  # type: ignore[assignment]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_claimed: dict[Path, BinaryIO] = {}
"""Part files of this process, locked while they are open."""


def part_of(path: Path) -> Path:
    """Where an output grows before it is moved: beside it, hidden, with the suffix that names the format."""
    path = path if path.name else path.absolute()  # "." has no name
    return path.with_name(f".{path.stem}.part{path.suffix}")


def explain(error: BaseException, path: Path) -> str:
    """One sentence for an error of the system or of FFmpeg while `path` was written."""
    code = getattr(error, "errno", None)
    if code in _FULL:
        return f"there is no space left to write {path}; free some, or choose another disk"
    if code in _FORBIDDEN:
        return f"{path} cannot be written: permission denied; choose another folder"
    if code == errno.ENOENT:
        return f"the folder of {path} does not exist; create it first"
    if code == errno.ENAMETOOLONG:
        return f"the name {path.name} is too long for this disk; choose a shorter one"
    reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return f"{path} cannot be written: {reason[:1].lower() + reason[1:]}"


def prepare(path: Path, *, source: Path, overwrite: bool, touch: bool = True) -> None:
    """Check that an output can be put at `path`; with `touch` the empty part file is created to make sure, and claimed.

    Raises OutputError when it is the input itself, exists without `overwrite`, is a folder, is being written by
    another run, or cannot be written.
    """
    try:
        if path.exists() and source.exists() and os.path.samefile(path, source):
            raise OutputError(f"{path} is the input itself; choose another name")
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file in it")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already; choose another name, or allow to overwrite it (--overwrite)")
        if touch:
            _claim(path)
        else:
            with suppress(FileNotFoundError):
                part_of(path).stat()  # its name, the longer one, may be too long
    except OSError as error:
        raise OutputError(explain(error, path)) from error


def _claim(path: Path) -> None:
    """Create the part file, and lock it while it exists: two runs that write one file give neither's."""
    part = part_of(path).absolute()
    file = part.open("ab")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OutputError(f"{path} is being written by another run; wait for it, or choose another name") from error
    except OSError:  # a file system without locks
        pass
    file.truncate(0)
    _claimed[part] = file


def release(path: Path) -> None:
    """Let go of the part file of an output that was moved into place or given up: held open, it would keep its space on the disk."""
    file = _claimed.pop(part_of(path).absolute(), None)
    if file is not None:
        file.close()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when whole. Raises OutputError."""
    part = part_of(path)
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException as error:  # a key press too leaves nothing half behind
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(explain(error, path)) from error
        raise
