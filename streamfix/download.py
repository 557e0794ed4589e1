"""One file over HTTP: resumed where it broke off, and whole before anyone sees it."""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from email.message import Message
from http.client import HTTPMessage
from pathlib import Path
from typing import IO

BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
"""What zipfile raises at a damaged archive; RuntimeError where a flipped bit speaks of a password or of a strange method."""

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all; 0 where the server does not say)."""


class CorruptedError(Exception):
    """A file is not what it should be; the message is a clause such as "its sha256 differs"."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps what the first answer says of the file: Hugging Face names the sha256 there, and not at the end of the chain."""

    def __init__(self) -> None:
        self.first: Message | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """See urllib."""
        self.first = self.first or headers
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, target: Path, progress: Progress | None = None) -> str | None:
    """Bring a file, going on where `target` ends; the sha256 that the server publishes for it, or None.

    Raises urllib's errors and OSError; what has come so far stays in `target`.
    """
    if "://" not in url:  # a mirror's bare name, of which urllib says no more than "unknown url type"
        raise OSError("an address begins with https://")
    have = target.stat().st_size if target.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    redirects = _Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part we hold is the whole file already
            raise
        return _published(redirects.first, error.headers)
    with response, target.open("ab" if response.status == 206 else "wb") as file:
        have = have if response.status == 206 else 0
        stated = response.headers.get("Content-Length") or "0"
        if not stated.isdecimal():
            raise OSError(f"the server says that the file has {stated!r} bytes")
        length = int(stated)
        total = have + length if length else 0
        room = shutil.disk_usage(target.parent).free
        if length > room:
            raise OSError(f"it takes {length / 1e9:.1f} GB more and {target.parent} has {room / 1e9:.1f} GB left")
        while chunk := response.read(1 << 20):
            file.write(chunk)
            have += len(chunk)
            if progress:
                progress(have, total)
    if total and have < total:
        raise OSError(f"the connection broke after {have} of {total} bytes; pull again to go on from there")
    return _published(redirects.first, response.headers)


def _published(*answers: Message | None) -> str | None:
    for answer in answers:
        tag = ((answer.get("X-Linked-Etag") if answer else None) or "").removeprefix("W/").strip('"').lower()
        if len(tag) == 64 and set(tag) <= set("0123456789abcdef"):
            return tag
    return None


def check_whole(path: Path, kind: str) -> None:
    """CorruptedError unless the file is whole, as far as its own format tells.

    kind: the suffix of its final name. torch's files are zip archives with a checksum for every tensor; safetensors say
    how long they are; JSON can be read or not.
    """
    if kind in (".pth", ".pt", ".bin"):
        with path.open("rb") as file:
            old = file.read(1) == b"\x80"  # a bare pickle, as torch wrote before 1.6: no checksums
        if old:
            return
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except BROKEN_ZIP as error:
            raise CorruptedError("it is not a whole PyTorch file") from error
        if broken is not None:
            raise CorruptedError(f"the checksum of {broken} in it differs")
    elif kind == ".safetensors":
        size = path.stat().st_size
        with path.open("rb") as file:
            start = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(start)) if start < size else None
                end = max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__") if header else -1
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise CorruptedError("it is not a safetensors file") from error
        if 8 + start + end != size:
            raise CorruptedError(f"it is not a whole safetensors file ({size} bytes)")
    elif kind == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # the latter at thousands of brackets in one another
            raise CorruptedError("it is not JSON") from error
