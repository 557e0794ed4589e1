"""Degrade a clean video as a bad camera and a starved encoder would: `python tools/degrade_video.py CLEAN OUT`.

Down to 1/3 size, blur, noise, H.264 at 60 kb/s, back up to the old size; same frames, same time stamps, no sound. One seed, one result.
"""

from __future__ import annotations

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from streamfix.media.encoder import X264_PARAMS


def encode(
    path: Path, clean: Path, make, *, rate: Fraction, options: dict[str, str], bit_rate: int | None = None
) -> None:
    """Write every frame of `clean` after `make(image, number)`, with its own time stamp."""
    with av.open(str(clean)) as source, av.open(str(path), "w") as target:
        video = source.streams.video[0]
        stream = None
        for number, frame in enumerate(source.decode(video)):
            image = make(frame.to_ndarray(format="rgb24"), number)
            if stream is None:
                steady = {"x264-params": ":".join(X264_PARAMS)}
                stream = target.add_stream("libx264", rate=rate, options={**steady, **options})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.time_base = stream.codec_context.time_base = video.time_base
                if bit_rate:
                    stream.bit_rate = bit_rate
            out = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="yuv420p")
            out.pts, out.time_base = frame.pts, frame.time_base
            target.mux(stream.encode(out))
        target.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clean", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--blur", type=float, default=0.8, help="sigma in pixels of the small picture")
    parser.add_argument("--noise", type=float, default=5.0, help="sigma in 1/255")
    parser.add_argument("--kbps", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with av.open(str(options.clean)) as container:
        video = container.streams.video[0]
        rate, width, height = video.average_rate, video.width, video.height
    small = (2 * round(width / options.scale / 2), 2 * round(height / options.scale / 2))

    def shrink(image: np.ndarray, number: int) -> np.ndarray:
        rng = np.random.default_rng([options.seed, number])
        tiny = cv2.GaussianBlur(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (0, 0), options.blur)
        return np.clip(tiny + rng.normal(0, options.noise, tiny.shape), 0, 255).round().astype(np.uint8)

    def enlarge(image: np.ndarray, _: int) -> np.ndarray:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)

    with tempfile.TemporaryDirectory() as folder:
        middle = Path(folder) / "small.mkv"
        starved = {"preset": "veryfast", "bf": "0"}
        encode(middle, options.clean, shrink, rate=rate, options=starved, bit_rate=int(options.kbps * 1000))
        encode(options.out, middle, enlarge, rate=rate, options={"crf": "14", "preset": "veryfast", "bf": "0"})


if __name__ == "__main__":
    main()
