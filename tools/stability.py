"""How steady restored faces are, against the truth: `python tools/stability.py CLEAN DEGRADED [--model M] [--lpips F] ...`.

Restores DEGRADED (made of CLEAN by degrade_video.py) in several ways with one restorer: frame by frame with raw
landmarks, then with what streamfix adds, one after the other. Prints a Markdown table; each line says which share of the
first line's flicker is left.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from streamfix import enhance
from streamfix.evaluate.metrics import Metrics
from streamfix.evaluate.video import evaluate_video
from streamfix.faces import Detected
from streamfix.faces.align import fit_similarity
from streamfix.faces.detect import load_detector
from streamfix.pipeline import Pipeline
from streamfix.restore.base import load_restorer
from streamfix.types import Frame, Placement


class Raw(Pipeline):
    """Every crop where its own landmarks put it, as restorers of still images have it."""

    def place(self, detected: Iterable[Detected]) -> Iterator[tuple[Frame, list[Placement]]]:
        for frame, placements in super().place(detected):
            yield (
                frame,
                [p if p.face is None else replace(p, matrix=fit_similarity(p.face.landmarks)) for p in placements],
            )


WAYS: dict[str, tuple[type[Pipeline], dict[str, bool]]] = {
    "raw landmarks, frame by frame": (Raw, {"recurrent": False, "protect": False}),
    "smoothed crops": (Pipeline, {"recurrent": False, "protect": False}),
    "and the frame before": (Pipeline, {"recurrent": True, "protect": False}),
    "all defaults": (Pipeline, {}),
}
COLUMNS = ("flicker", "warping", "spread", "sharpness", "identity", "PSNR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clean", type=Path)
    parser.add_argument("degraded", type=Path)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--end", type=float, help="seconds of the clip to use")
    parser.add_argument("--lpips", type=Path, action="append", default=[])
    parser.add_argument("--identity", type=Path, help="ONNX face embedding")
    parser.add_argument("--identity-norm", default="arcface")
    args = parser.parse_args()
    restorer, detector = load_restorer(args.model), load_detector("auto")
    metrics = Metrics.load(lpips=args.lpips, identity=args.identity, norm=args.identity_norm)
    columns = [*COLUMNS, *(f"LPIPS-{n.kind}" for n in metrics.lpips)]
    print("| | " + " | ".join(columns) + " | flicker left | s |")
    print("|---|" + "---|" * (len(columns) + 2))
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean.mkv"
        nothing = Pipeline(restorer=load_restorer("passthrough"), detector=detector)
        for path, source in ((clean, args.clean), (Path(folder) / "degraded.mkv", args.degraded)):
            enhance(source, path, pipeline=nothing, end=args.end, codec="ffv1")
        for number, (name, (kind, options)) in enumerate(WAYS.items()):
            out = Path(folder) / f"{number}.mkv"
            began = time.monotonic()
            enhance(path, out, pipeline=kind(restorer=restorer, detector=detector, **options), codec="ffv1")
            seconds = time.monotonic() - began
            scores = evaluate_video(clean, path, out, detector=detector, metrics=metrics)
            if not number:
                cells = (f"{scores.degraded.get(c, float('nan')):.4f}" for c in columns)
                print(f"| input | {' | '.join(cells)} | | |", flush=True)
                first = scores.restored["flicker"]
            cells = (f"{scores.restored.get(c, float('nan')):.4f}" for c in columns)
            left = scores.restored["flicker"] / first
            print(f"| {name} | {' | '.join(cells)} | {left:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
