"""One method on one test set, with the metrics of the paper's tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamfix.errors import DependencyError, UsageError
from streamfix.evaluate.frechet import Features, Moments, frechet_distance, load_moments
from streamfix.evaluate.landmarks import Landmarks, landmark_distance
from streamfix.evaluate.metrics import Metrics, Picture, tensor
from streamfix.evaluate.quality import WEIGHTS, Musiq
from streamfix.evaluate.sets import Sample, aligned_face
from streamfix.files import check_file
from streamfix.restore.base import Restorer, restore_images
from streamfix.train.data import face_files

if TYPE_CHECKING:
    from streamfix.evaluate.inception import Inception

_BATCH = 8


@dataclass(slots=True)
class PaperMetrics:
    """Everything that a table may hold; None, and a sentence in `missing`, for what is not at hand.

    pair: PSNR, SSIM, LPIPS, identity, which name what lacks themselves. reference: moments of clean faces for FID (FFHQ's, in the paper).
    """

    pair: Metrics
    landmarks: Landmarks | None = None
    inception: Inception | None = None
    reference: Moments | None = None
    musiq: Musiq | None = None
    missing: list[str] = field(default_factory=list)

    def measure(self, picture: Picture, truth: Picture | None) -> dict[str, float]:
        """What can be said of one picture; IDS in degrees, LMD in pixels of the crop (left out where no face is found)."""
        values: dict[str, float] = {}
        if truth is not None:
            values = self.pair.compare(picture, truth)
            if "identity" in values:
                values["IDS"] = math.degrees(math.acos(min(1.0, max(-1.0, values["identity"]))))
            points = [self.landmarks(p) for p in (picture, truth)] if self.landmarks is not None else [None]
            if all(p is not None for p in points):
                values["LMD"] = landmark_distance(*points)
        if self.musiq is not None:
            values["MUSIQ"] = self.musiq(picture)
        return values


def load_paper_metrics(
    pair: Metrics,
    *,
    landmarks: Landmarks | None = None,
    inception: Path | None = None,
    fid_stats: Path | None = None,
    fid_reference: Path | None = None,
    musiq: Path | None = None,
    device: torch.device | None = None,
) -> PaperMetrics:
    """PaperMetrics from the files at hand; what lacks is named in `missing`.

    fid_stats: a file that load_moments takes. fid_reference: a folder of clean aligned faces in its place. Raises
    ModelError for files of another kind, UsageError for both.
    """
    if fid_stats is not None and fid_reference is not None:
        raise UsageError("--fid-stats and --fid-reference are two ways to name one reference; give one of them")
    if fid_stats is not None:
        check_file(fid_stats)  # a wrong path is told without the network too
    clean = face_files(fid_reference) if fid_reference is not None else []
    made = PaperMetrics(pair=pair, landmarks=landmarks)
    if inception is None:
        made.missing.append("FID (give its network: --inception pt_inception-2015-12-05-6726825d.pth)")
    else:
        from streamfix.evaluate.inception import Inception as Net

        made.inception = net = Net(inception, device=device)
        if fid_stats is not None:
            made.reference = load_moments(fid_stats)
        elif clean:
            rows = [net(tensor(aligned_face(f))) for f in clean]
            if len(rows) < 2:
                raise UsageError(f"{fid_reference} has one face; a reference for FID needs many")
            made.reference = Moments.of(np.concatenate(rows))
        else:
            made.missing.append(
                "FID against clean faces (give theirs: --fid-stats FILE, or a folder --fid-reference DIR)"
            )
    if musiq is None:
        made.missing.append(f"MUSIQ (give its weights: --musiq {WEIGHTS})")
    else:
        try:
            made.musiq = Musiq(musiq, device=device)
        except DependencyError as error:
            made.missing.append(f"MUSIQ ({error})")
    return made


@dataclass(slots=True)
class MethodScores:
    """Means of one method over the faces of one set. unfound: faces without landmarks. pictures: the first few, restored."""

    means: dict[str, float]
    faces: int
    unfound: int = 0
    pictures: list[Picture] = field(default_factory=list)


def score_method(
    samples: Sequence[Sample],
    restorer: Restorer | None,
    metrics: PaperMetrics,
    *,
    keep: int = 0,
    progress: Callable[[], None] | None = None,
) -> MethodScores:
    """Restore every sample and measure; restorer None measures the input itself.

    Pictures are rounded to 8 bits first, as if they had been saved: published figures are of files. FID is against
    `metrics.reference`, FID-GT against the truth of the same set. Raises what the restorer does.
    """
    rows: list[dict[str, float]] = []
    features: tuple[list[Features], list[Features]] = ([], [])
    kept: list[Picture] = []
    for start in range(0, len(samples), _BATCH):
        pairs = [sample.load() for sample in samples[start : start + _BATCH]]
        given = [low for low, _ in pairs]
        restored = given if restorer is None else restore_images(restorer, given)
        for answer, (_, truth) in zip(restored, pairs, strict=True):
            picture = eight_bits(answer)
            rows.append(metrics.measure(picture, truth))
            if metrics.inception is not None:
                features[0].append(metrics.inception(tensor(picture)))
                if truth is not None:
                    features[1].append(metrics.inception(tensor(truth)))
            kept += [picture] if len(kept) < keep else []
            if progress is not None:
                progress()
    columns = dict.fromkeys(name for row in rows for name in row)
    means = {c: float(np.mean([row[c] for row in rows if c in row])) for c in columns}
    if len(features[0]) > 1:
        own = Moments.of(np.concatenate(features[0]))
        if metrics.reference is not None:
            means["FID"] = frechet_distance(own, metrics.reference)
        if features[1]:
            means["FID-GT"] = frechet_distance(own, Moments.of(np.concatenate(features[1])))
    unfound = sum("PSNR" in row and "LMD" not in row for row in rows) if metrics.landmarks is not None else 0
    return MethodScores(means=means, faces=len(rows), unfound=unfound, pictures=kept)


def eight_bits(picture: Picture) -> Picture:
    """Rounded to 256 levels, float32 in [0, 1]."""
    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255) / np.float32(255), np.float32)


def stacked(samples: Sequence[Sample], most: int = _BATCH) -> torch.Tensor:
    """The inputs of the first few samples as the restorer takes them: (N, 3, 512, 512) in [-1, 1]."""
    return torch.cat([tensor(sample.load()[0]) for sample in samples[:most]]) * 2 - 1
