"""Restore every file of a folder and check what must survive: `python tools/check_media.py CLIPS --out DIR [--codec ffv1]`.

Prints one line a file: frames, time stamps, rotation, tags and the other streams' packets, input against output. Leaves with 1 if one
differs. With --codec ffv1 (outputs become .mkv) it also compares every sample outside the faces' boxes: they must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from streamfix import enhance, load_pipeline
from streamfix.compose import compose
from streamfix.errors import StreamfixError
from streamfix.media.source import open_source
from streamfix.types import Crop, Frame

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def facts(path: Path) -> dict[str, object]:
    """What must be the same in input and output, as plain comparable values."""
    packets: dict[int, list[str]] = defaultdict(list)
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.stream.type != "video" and packet.size:
                packets[packet.stream.index].append(hashlib.sha256(bytes(packet)).hexdigest())
    with av.open(str(path)) as container:
        frames = list(times(container))
        video = container.streams.video[0]
        context = video.codec_context
        return {
            "frames": len(frames),
            "pts": [t for t, _ in frames],
            "rotation": {r for _, r in frames},
            "size": (context.width, context.height),
            "sample aspect": video.sample_aspect_ratio or 1,
            "tags": (
                int(context.color_range),
                int(context.colorspace),
                int(context.color_primaries),
                int(context.color_trc),
            ),
            "packets": sorted((len(p), hashlib.sha256("".join(p).encode()).hexdigest()) for p in packets.values()),
        }


def times(container: av.container.InputContainer):
    for frame in container.decode(video=0):
        assert frame.pts is not None
        yield Fraction(frame.pts) * Fraction(frame.time_base), frame.rotation


def ticks_equal(ours: list[Fraction], theirs: list[Fraction], unit: Fraction) -> bool:
    """Equal to the tick of the output's time base (Matroska's is a millisecond)."""
    return len(ours) == len(theirs) and all(abs(a - b) <= unit / 2 for a, b in zip(ours, theirs, strict=True))


class Watch:
    """Notes the region that each face may have changed, so that everything else can be compared."""

    def __init__(self) -> None:
        self.boxes: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)

    def __call__(self, frame: Frame, crop: Crop, restored: np.ndarray, *, weight: np.ndarray | None = None) -> Frame:
        linear = np.linalg.inv(crop.placement.matrix[:, :2])
        corners = (np.array([[0, 0], [511, 0], [0, 511], [511, 511]]) - crop.placement.matrix[:, 2]) @ linear.T
        low, high = np.floor(corners.min(axis=0)).astype(int) - 4, np.ceil(corners.max(axis=0)).astype(int) + 5
        self.boxes[frame.index].append((*np.maximum(low, 0).tolist(), *np.maximum(high, 0).tolist()))
        return compose(frame, crop, restored, weight=weight)


def elsewhere(source: Path, output: Path, watch: Watch) -> tuple[float, int]:
    """(largest difference of any sample outside the boxes, samples compared); planes as they are stored."""
    worst, compared = 0.0, 0
    with open_source(source) as ours, av.open(str(output)) as theirs:
        for frame, other in zip(ours, theirs.decode(video=0), strict=True):
            picture = frame.picture
            if other.format.name.replace("yuvj", "yuv") != picture.format.name.replace("yuvj", "yuv"):
                other = other.reformat(format=picture.format.name)
            for one, two in zip(picture.planes, other.planes, strict=True):
                a, b = (
                    np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width]
                    for p in (one, two)
                )
                keep = np.ones(a.shape, bool)
                for x0, y0, x1, y1 in watch.boxes[frame.index]:
                    sx, sy = picture.width / a.shape[1], picture.height / a.shape[0]
                    keep[int(y0 / sy) : int(np.ceil(y1 / sy)), int(x0 / sx) : int(np.ceil(x1 / sx))] = False
                difference = np.abs(a[keep].astype(int) - b[keep].astype(int))
                worst, compared = max(worst, float(difference.max(initial=0))), compared + int(keep.sum())
    return worst, compared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codec", default="auto")
    parser.add_argument("--suffix", default="", help="container of the outputs, such as .mkv; the input's by default")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline()
    bad = 0
    for source in sorted(p for p in options.folder.iterdir() if p.suffix.lower() != ".md"):
        suffix = options.suffix or (
            ".mkv" if options.codec == "ffv1" and source.suffix not in IMAGES else source.suffix
        )
        target = options.out / (source.stem + suffix)
        try:
            import streamfix.pipeline

            watch = Watch()
            streamfix.pipeline.compose = watch  # type: ignore[assignment]
            report = enhance(source, target, pipeline=pipeline, codec=options.codec, overwrite=True)
        except StreamfixError as error:
            print(f"FAILED {source.name}: {error}")
            bad += 1
            continue
        if source.suffix.lower() in IMAGES:
            print(f"ok {source.name}: {report.faces} faces")
            continue
        ours, theirs = facts(source), facts(target)
        with av.open(str(target)) as container:
            unit = container.streams.video[0].time_base or Fraction(1, 1000)
        wrong = [k for k in ours if k != "pts" and ours[k] != theirs[k]]
        exact = ours["pts"] == theirs["pts"]
        if not exact and not ticks_equal(ours["pts"], theirs["pts"], unit):  # type: ignore[arg-type]
            wrong.append("pts")
        words = [
            f"{report.frames} frames",
            f"{report.faces} faces",
            f"{len(report.tracks)} tracks",
            f"{report.fps:.1f} fps",
        ]
        words.append("pts exact" if exact else f"pts to the tick of {unit} s")
        if options.codec == "ffv1":
            worst, compared = elsewhere(source, target, watch)
            words.append(f"elsewhere differs by {worst:g} over {compared / 1e6:.0f} M samples")
            wrong += ["elsewhere"] if worst else []
        print(
            f"{'ok' if not wrong else 'DIFFERS in ' + ', '.join(wrong)} {source.name}: {', '.join(words)}", flush=True
        )
        for key in wrong:
            if key in ours and key != "pts":
                print(f"    {key}: {ours[key]} -> {theirs[key]}")
        bad += bool(wrong)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
