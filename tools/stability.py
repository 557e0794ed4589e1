"""How steady restored faces are, against the truth: `python tools/stability.py CLEAN DEGRADED [--model M] [--lpips F] ...`.

Restores DEGRADED (made of CLEAN by degrade_video.py) in several ways with one restorer: frame by frame with raw
landmarks (InterLCM: and fresh noise), then with what streamfix adds, one after the other. Prints a Markdown table; each
line says which share of the first line's flicker is left. Two lines say what can be had at all: the truth itself, blurred
until it is as sharp as the input, and as the restored faces. Detail that is not there cannot move as the truth does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from streamfix import enhance
from streamfix.evaluate.metrics import Metrics
from streamfix.evaluate.video import evaluate_video, gradient_energy
from streamfix.faces import Detected
from streamfix.faces.align import fit_similarity
from streamfix.faces.detect import Detector, load_detector
from streamfix.media.source import open_source
from streamfix.pipeline import Pipeline, Restored
from streamfix.restore.base import Restorer, load_restorer
from streamfix.restore.interlcm.options import split_spec
from streamfix.restore.noise import shared_noise
from streamfix.types import Crop, Frame, Placement


class Raw(Pipeline):
    """Every crop where its own landmarks put it, as restorers of still images have it."""

    def place(self, detected: Iterable[Detected]) -> Iterator[tuple[Frame, list[Placement]]]:
        for frame, placements in super().place(detected):
            yield (
                frame,
                [p if p.face is None else replace(p, matrix=fit_similarity(p.face.landmarks)) for p in placements],
            )


class NoisePerTrack(Pipeline):
    """Every face with a noise of its own, the same in all frames."""

    def restore(
        self, cropped: Iterable[tuple[Frame, list[Crop]]]
    ) -> Iterator[tuple[Frame, list[tuple[Crop, Restored]]]]:
        for frame, crops in cropped:
            answers = []
            for crop in crops:
                noise = shared_noise(self.restorer.noise_shape(), seed=1 + crop.placement.track_id)
                lq = torch.from_numpy(crop.image).permute(2, 0, 1)[None] * 2 - 1
                answers.append(self.restorer.restore(lq, noise)[0].permute(1, 2, 0).numpy() * 0.5 + 0.5)
            yield frame, list(zip(crops, answers, strict=True))


class Blur:
    """The truth with less detail, as a restorer of the clean video."""

    name, sha256, device, dtype = "blur", None, torch.device("cpu"), torch.float32

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def restore(self, crops: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        faces = [cv2.GaussianBlur(c, (0, 0), self.sigma) for c in crops.permute(0, 2, 3, 1).contiguous().numpy()]
        return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)


def as_sharp(clean: Path, detector: Detector, sharpness: float) -> Blur:
    """The blur after which the faces of `clean` have this share of their gradient energy."""
    nothing = Pipeline(restorer=load_restorer("passthrough"), detector=detector)
    with open_source(clean) as source:
        cropped = nothing.cut_out(nothing.place(nothing.detect(iter(source))))
        faces = [crop.image for _, crops in islice(cropped, 0, None, 12) for crop in crops]
    whole = sum(map(gradient_energy, faces))
    low, high = 0.2, 20.0
    for _ in range(12):
        sigma = (low * high) ** 0.5
        left = sum(gradient_energy(cv2.GaussianBlur(f, (0, 0), sigma)) for f in faces) / whole
        low, high = (sigma, high) if left > sharpness else (low, sigma)
    return Blur(sigma)


ALONE = {"recurrent": False, "protect": False}


def ways(model: str) -> list[tuple[str, type[Pipeline], Restorer, dict[str, bool]]]:
    """What is compared: a name, the pipeline, its restorer and options."""
    restorer, spec = load_restorer(model), split_spec(model)
    if spec is None:
        return [
            ("raw landmarks, frame by frame", Raw, restorer, ALONE),
            ("smoothed crops", Pipeline, restorer, ALONE),
            ("and the frame before", Pipeline, restorer, {"recurrent": True, "protect": False}),
            ("all defaults", Pipeline, restorer, {}),
        ]
    fresh, carrying = (
        restorer.with_options(replace(restorer.options, **change)) for change in ({"noise": "fresh"}, {"carry": 0.5})
    )
    return [
        ("raw landmarks, fresh noise", Raw, fresh, ALONE),
        ("raw landmarks, shared noise", Raw, restorer, ALONE),
        ("smoothed crops, fresh noise", Pipeline, fresh, ALONE),
        ("smoothed crops, noise per track", NoisePerTrack, restorer, ALONE),
        ("smoothed crops, shared noise", Pipeline, restorer, ALONE),
        ("and carried detail", Pipeline, carrying, {"protect": False}),
        ("all defaults", Pipeline, restorer, {}),
    ]


COLUMNS = ("flicker", "warping", "spread", "sharpness", "identity", "PSNR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clean", type=Path)
    parser.add_argument("degraded", type=Path)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--start", type=float, help="second of the clip to begin at")
    parser.add_argument("--end", type=float, help="second of the clip to end at")
    parser.add_argument("--lpips", type=Path, action="append", default=[])
    parser.add_argument("--identity", type=Path, help="ONNX face embedding")
    parser.add_argument("--identity-norm", default="arcface")
    args = parser.parse_args()
    detector = load_detector("auto")
    metrics = Metrics.load(lpips=args.lpips, identity=args.identity, norm=args.identity_norm)
    columns = [*COLUMNS, *(f"LPIPS-{n.kind}" for n in metrics.lpips)]
    print("| | " + " | ".join(columns) + " | flicker left | s |")
    print("|---|" + "---|" * (len(columns) + 2))
    first = 0.0

    def line(name: str, scores: dict[str, float], seconds: float | None = None) -> None:
        cells = (f"{scores.get(c, float('nan')):.4f}" for c in columns)
        left = f"{scores['flicker'] / first:.2f}" if first else ""
        print(f"| {name} | {' | '.join(cells)} | {left} | {'' if seconds is None else f'{seconds:.0f}'} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        clean, degraded, out = (Path(folder) / f"{name}.mkv" for name in ("clean", "degraded", "out"))
        nothing = Pipeline(restorer=load_restorer("passthrough"), detector=detector)
        for path, source in ((clean, args.clean), (degraded, args.degraded)):
            enhance(source, path, pipeline=nothing, start=args.start, end=args.end, codec="ffv1")
        bounds: dict[str, float] = {}
        for name, kind, restorer, options in ways(args.model):
            began = time.monotonic()
            pipeline = kind(restorer=restorer, detector=detector, **options)
            enhance(degraded, out, pipeline=pipeline, codec="ffv1", overwrite=True)
            seconds = time.monotonic() - began
            scores = evaluate_video(clean, degraded, out, detector=detector, metrics=metrics)
            if not bounds:
                line("input", scores.degraded)
                first = scores.restored["flicker"]
                bounds = {"the input": scores.degraded["sharpness"], name: scores.restored["sharpness"]}
            line(name, scores.restored, seconds)
        for name, sharpness in bounds.items():
            pipeline = Pipeline(restorer=as_sharp(clean, detector, sharpness), detector=detector, **ALONE)
            enhance(clean, out, pipeline=pipeline, codec="ffv1", overwrite=True)
            scores = evaluate_video(clean, degraded, out, detector=detector, metrics=metrics)
            line(f"the truth, as sharp as {name}", scores.restored)


if __name__ == "__main__":
    main()
