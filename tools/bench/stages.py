"""Where the time goes: `python tools/bench/stages.py [CLIP] [--frames 100]`.

Runs the stages one after the other (wall milliseconds a frame, and their share), then the whole threaded job, as a ratio to the same job at
strength 0, which decodes, detects and encodes, and to plain decoding and encoding.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from streamfix import enhance, load_pipeline
from streamfix.faces import Detected
from streamfix.media.color import to_rgb
from streamfix.media.sink import open_sink
from streamfix.media.source import open_source

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "webcam.mp4"


def timed(work) -> tuple[float, list]:
    began = time.perf_counter()
    result = list(work)
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--frames", type=int, default=100)
    options = parser.parse_args()
    pipeline = load_pipeline()
    list(pipeline.run(itertools.islice(iter(open_source(options.clip)), 8)))  # warm
    seconds = {}
    with open_source(options.clip) as source, tempfile.TemporaryDirectory() as folder:
        seconds["decode"], frames = timed(itertools.islice(iter(source), options.frames))
        seconds["to RGB"], images = timed(to_rgb(f) for f in frames)
        seconds["detect"], faces = timed(pipeline.detector.detect(i) for i in images)
        found = [Detected(frame=f, faces=x, cut=False) for f, x in zip(frames, faces, strict=True)]
        seconds["place"], placed = timed(pipeline.place(found))
        seconds["cut out"], crops = timed(pipeline.cut_out(placed))
        seconds["restore"], restored = timed(pipeline.restore(crops))
        seconds["lay back"], out = timed(pipeline.lay_back(restored))
        with open_sink(Path(folder) / "out.mp4", like=source) as sink:
            seconds["encode"], _ = timed(map(sink.write, out))
    total = sum(seconds.values())
    for stage, value in seconds.items():
        print(f"{stage:9s} {1e3 * value / len(frames):7.2f} ms a frame {100 * value / total:5.1f} %")
    end = len(frames) / source.frame_rate
    with tempfile.TemporaryDirectory() as folder:
        jobs = {"restored": pipeline, "strength 0": load_pipeline(strength=0.0)}
        walls = {}
        for name, job in jobs.items():
            report = enhance(options.clip, Path(folder) / f"{len(walls)}.mp4", pipeline=job, end=end)
            walls[name] = report.seconds
            print(f"{name}: {report.fps:.1f} fps")
    print(f"restored takes {walls['restored'] / walls['strength 0']:.2f} of the time at strength 0;", end=" ")
    print(f"{walls['restored'] / (seconds['decode'] + seconds['encode']):.1f} of decoding and encoding alone;", end=" ")
    print(f"{walls['restored'] / total:.2f} of its own stages one after the other")


if __name__ == "__main__":
    main()
