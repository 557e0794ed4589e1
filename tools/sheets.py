"""Contact sheets of what a restorer does to faces: `python tools/sheets.py DIR --out SHEETS [--model lite]`.

Input and restored face side by side, before anything is laid back. Photos share pages (photos-1.png ...), every clip has its own, with
a frame of each face once in `--every` frames. Files that cannot be read or show no face are named.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from streamfix import Pipeline, load_pipeline
from streamfix.errors import StreamfixError
from streamfix.media.source import open_source
from streamfix.restore.base import describe

Pair = tuple[np.ndarray, np.ndarray, str]
COLUMNS = 3


def pairs(pipeline: Pipeline, path: Path, *, every: int, limit: int, frames: int) -> tuple[bool, list[Pair]]:
    """(is a still, the first `limit` of input, restored and label): the first `frames` frames of a clip are looked at."""
    with open_source(path) as source:
        still = source.is_still
        detected = pipeline.detect(itertools.islice(iter(source), frames))
        cropped = pipeline.cut_out(pipeline.place_still(detected) if still else pipeline.place(detected))
        if pipeline.recurrent and not still:
            restored = pipeline.restore_next(cropped)  # every frame: each leans on the one before
        else:
            restored = pipeline.restore(c for c in cropped if c[0].index % every == 0)

        def wanted() -> Iterator[Pair]:
            for frame, results in restored:
                if frame.index % every:
                    continue
                for crop, image in results:
                    yield crop.image, image, path.stem if still else f"{frame.time:.2f} s, id {crop.placement.track_id}"

        return still, list(itertools.islice(wanted(), limit))


def cell(picture: np.ndarray, side: int) -> np.ndarray:
    return np.rint(cv2.resize(np.clip(picture, 0, 1), (side, side), interpolation=cv2.INTER_AREA) * 255).astype(
        np.uint8
    )


def page(part: list[Pair], side: int) -> np.ndarray:
    sheet = np.full((-(-len(part) // COLUMNS) * (side + 16), COLUMNS * (2 * side + 6), 3), 24, np.uint8)
    for number, (before, after, label) in enumerate(part):
        y, x = number // COLUMNS * (side + 16), number % COLUMNS * (2 * side + 6)
        sheet[y : y + side, x : x + 2 * side] = np.concatenate((cell(before, side), cell(after, side)), axis=1)
        place = (x + 2, y + side + 12)
        cv2.putText(sheet, label[-60:], place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
    return sheet


def save(found: list[Pair], out: Path, name: str, options: argparse.Namespace) -> None:
    rows = COLUMNS * options.rows
    for number, start in enumerate(range(0, len(found), rows), 1):
        target = out / f"{name}-{number}.png"
        cv2.imwrite(str(target), page(found[start : start + rows], options.side)[..., ::-1])
        print(f"{target}: {len(found[start : start + rows])} faces")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--match", default="*", help="glob of the files to take")
    parser.add_argument("--every", type=int, default=25, help="of a clip's frames, show each n-th")
    parser.add_argument("--limit", type=int, default=12, help="faces a file")
    parser.add_argument("--frames", type=int, default=300, help="of a clip, look at the first n")
    parser.add_argument("--side", type=int, default=256, help="of a face, in pixels")
    parser.add_argument("--rows", type=int, default=4, help="of a page")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(model=options.model)
    print(describe(pipeline.restorer))
    photos: list[Pair] = []
    for path in sorted(p for p in options.folder.glob(options.match) if p.is_file()):
        try:
            still, found = pairs(pipeline, path, every=options.every, limit=options.limit, frames=options.frames)
        except StreamfixError as error:
            print(f"left out {path.name}: {error}")
            continue
        if not found:
            print(f"no face in {path.name}")
        elif still:
            photos += found
        else:
            save(found, options.out, path.stem, options)
    save(photos, options.out, "photos", options)


if __name__ == "__main__":
    main()
