"""The pictures of the documentation, from the sample: `python tools/make_pictures.py --out docs`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from streamfix import enhance
from streamfix.media.color import to_rgb
from streamfix.media.source import open_source

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
TIMES = (3.6, 4.4)
FACE = (slice(60, 320), slice(140, 500))  # rows and columns of the sample that show the head


def frame_at(path: Path, seconds: float) -> np.ndarray:
    with open_source(path, start=seconds) as source:
        return to_rgb(next(iter(source)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        restored = Path(folder) / "restored.mp4"
        enhance(SAMPLES / "webcam.mp4", restored, model="lite", crf=12, end=max(TIMES) + 1)
        rows = []
        for seconds in TIMES:
            pictures = [
                frame_at(p, seconds)[FACE] for p in (SAMPLES / "webcam.mp4", restored, SAMPLES / "webcam_clean.mp4")
            ]
            rows.append(np.concatenate(pictures, axis=1))
    sheet = np.concatenate(rows)
    width = sheet.shape[1] // 3
    for index, label in enumerate(("webcam", "streamfix", "truth")):
        (wide, high), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
        x = index * width
        sheet[: high + below + 10, x : x + wide + 12] //= 4
        cv2.putText(sheet, label, (x + 6, high + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    cv2.imwrite(str(options.out / "sample.png"), sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
