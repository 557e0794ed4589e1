"""Is a grid left in restored faces? `python tools/check_grid.py DIR [--model lite] [--limit 60]`.

DIR: clean aligned faces. Measures patterns of 2 and 4 pixels (streamfix/evaluate/grid.py) in the real faces, and in the same faces
degraded by a seed and restored, and names the weaves of any period that the restored faces share. Leaves with 1 when the restored ones
have more of either measure, on average, than the real ones, or a weave of more than WEAVE times its surroundings.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from pathlib import Path

import numpy as np

from streamfix import load_restorer
from streamfix.evaluate.faces import degraded_face
from streamfix.evaluate.grid import lasting_grid, local_grid, weaves
from streamfix.restore.base import describe, restore_images
from streamfix.train.data import face_files

WEAVE = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    restorer = load_restorer(options.model)
    print(describe(restorer))
    measured: dict[str, list[tuple[float, float]]] = {}
    kept: dict[str, list[np.ndarray]] = {}
    for file in sorted(face_files(options.folder), key=lambda p: zlib.crc32(p.name.encode()))[: options.limit]:
        pictures: dict[str, np.ndarray] = {}
        for name in ("paper", "heavy"):
            degraded, pictures["real"] = degraded_face(file, name, options.seed)
            pictures[f"degraded, {name}"] = degraded
            pictures[f"restored, {name}"] = restore_images(restorer, [degraded])[0]
        for name, picture in pictures.items():
            measured.setdefault(name, []).append((local_grid(picture), lasting_grid(picture)))
            kept.setdefault(name, []).append(picture)
    print(
        "| 8-bit levels | local, mean | local, 95 % | lasting, mean | lasting, 95 % |\n| --- | --- | --- | --- | --- |"
    )
    for name, values in measured.items():
        mean, high = np.mean(values, axis=0), np.quantile(values, 0.95, axis=0)
        print(f"| {name} | {mean[0]:.3f} | {high[0]:.3f} | {mean[1]:.3f} | {high[1]:.3f} |")
    woven = False
    for name in (n for n in kept if n.startswith("restored")):
        found = weaves(kept[name], kept["real"])
        woven |= found[0][2] > WEAVE
        print(f"{name}, weaves:", ", ".join(f"{y:.1f} x {x:.1f} px: {power:.0f}" for y, x, power in found))
    limit = np.mean(measured["real"], axis=0)
    grid = any((np.mean(v, axis=0) > limit).any() for n, v in measured.items() if n.startswith("restored"))
    return int(grid or woven)


if __name__ == "__main__":
    sys.exit(main())
