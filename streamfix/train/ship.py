"""Put trained weights where they travel with the package, with their checksum."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from streamfix.errors import ModelError
from streamfix.models import sha256_of

LIMIT = 24 * 1000 * 1000
"""Largest embedded weight file in bytes: the repository and the wheel have to stay small."""


def ship(weights: Path, folder: Path, *, name: str = "lite.safetensors") -> str:
    """Copy `weights` to `folder`/`name` and write its line into `folder`/SHA256SUMS; returns the digest.

    Raises ModelError when the file is missing or larger than 24 MB.
    """
    if not weights.is_file():
        raise ModelError(f"there is no weight file {weights} to ship; train first")
    if weights.stat().st_size > LIMIT:
        raise ModelError(
            f"{weights} is {weights.stat().st_size / 1e6:.1f} MB; embedded weights may have {LIMIT / 1e6:.0f} MB"
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    shutil.copyfile(weights, part)
    digest = sha256_of(part)
    os.replace(part, folder / name)
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.is_file() else []
    kept = [line for line in lines if line.split() and line.split()[-1] != name]
    sums.write_text("\n".join(sorted([*kept, f"{digest}  {name}"], key=lambda line: line.split()[-1])) + "\n")
    return digest
