"""What becomes of a hand before a face? `python tools/check_cover.py CLIP INDEX:X0,Y0,X1,Y1 ... [--out DIR] [--model M]`.

Each INDEX:X0,Y0,X1,Y1 names a frame and the rectangle in it, in pixels of the upright picture, that the hand fills. Restores the clip as
`enhance` does, and prints how far the rectangle is from the input (mean, 99th percentile and largest difference over channels, in 8-bit
levels), and without the guard that lets covers win. --out: before and after of each frame, as PNG.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from streamfix.media.source import open_source
from streamfix.pipeline import Pipeline, load_pipeline

Box = tuple[int, int, int, int]


def box(text: str) -> tuple[int, Box]:
    """(frame, rectangle) of an argument."""
    index, _, corners = text.partition(":")
    x0, y0, x1, y1 = (int(v) for v in corners.split(","))
    return int(index), (x0, y0, x1, y1)


def pairs(pipeline: Pipeline, clip: Path, wanted: set[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Input and output of the wanted frames: RGB uint8, upright."""
    found = {}
    with open_source(clip) as source:
        for frame in pipeline.run(source, compare=True):
            if frame.index in wanted:
                picture = np.rot90(frame.picture.to_ndarray(format="rgb24"), -frame.rotation // 90)
                half = picture.shape[1] // 2
                found[frame.index] = (picture[:, :half], picture[:, half:])
            if frame.index >= max(wanted):
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("boxes", nargs="+", type=box)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    boxes = dict(options.boxes)
    for name, protect in (("as enhance does", True), ("without the guard", False)):
        found = pairs(load_pipeline(model=options.model, protect=protect), options.clip, set(boxes))
        for index, (x0, y0, x1, y1) in boxes.items():
            before, after = found[index]
            error = np.abs(after.astype(int) - before)
            there = error[y0:y1, x0:x1]
            print(
                f"{options.clip.name} frame {index}, {name}: mean {there.mean():.2f}, 99 % {np.percentile(there, 99):.0f}, "
                f"largest {there.max()} levels in the rectangle; {error.max()} in the whole frame"
            )
            if options.out is not None and protect:
                options.out.mkdir(parents=True, exist_ok=True)
                both = np.concatenate([before, after], 1)
                cv2.imwrite(str(options.out / f"{options.clip.stem}-{index}.png"), both[..., ::-1])


if __name__ == "__main__":
    main()
