"""`streamfix evaluate video CLEAN DEGRADED RESTORED`: quality and steadiness of restored faces against the truth.

Faces are found and followed in the clean video only; the same smoothed crop is then cut out of all three, so that a number speaks of
the pictures and never of the detector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.compose import face_mask
from streamfix.errors import InputError
from streamfix.evaluate.landmarks import Landmarks
from streamfix.evaluate.metrics import Metrics, Picture
from streamfix.evaluate.temporal import FaceTrace, summary
from streamfix.faces import CutDetector, Detected, follow
from streamfix.faces.detect import Detector, detect_upright
from streamfix.media.color import cut_out, to_rgb
from streamfix.media.source import open_source
from streamfix.types import Frame

_FLOW_CHECK = 1.0
"""Forward and backward flow must meet within this many pixels; elsewhere something was covered or uncovered."""


@dataclass(slots=True)
class _Track:
    """What the measures in time need of the frame before."""

    index: int
    pictures: tuple[Picture, Picture, Picture]


@dataclass(slots=True)
class VideoScores:
    """Means over all faces of all frames; each of `degraded` and `restored` maps a metric to its value.

    flicker: mean |(R_t - R_t-1) - (G_t - G_t-1)| inside the face mask, in 1/255. warping: mean |R_t - warp(R_t-1)| along the optical
    flow of the truth where it is consistent, in 1/255; E_warp: the same squared, in 1/1000, as Lai et al. 2018 (arXiv
    1808.00449) have it. spread: 1 - mean cosine of a track's embeddings to their mean. sharpness: gradient energy relative to the
    truth's. AKD, sigma-AKD, TLME, sigma-IDS, VIDD: see temporal.py.
    """

    frames: int = 0
    faces: int = 0
    degraded: dict[str, float] = field(default_factory=dict)
    restored: dict[str, float] = field(default_factory=dict)
    strip: list[tuple[Picture, Picture, Picture]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def _detected(
    frames: Iterator[tuple[Frame, Frame, Frame]], detector: Detector, others: dict[int, tuple[Frame, Frame]]
) -> Iterator[Detected]:
    cuts = CutDetector()
    for clean, degraded, restored in frames:
        if len({(f.width, f.height) for f in (clean, degraded, restored)}) > 1:
            raise InputError("the three videos differ in size; compare videos of one size")
        image = to_rgb(clean)
        others[clean.index] = (degraded, restored)
        yield Detected(frame=clean, faces=detect_upright(detector, image, clean.rotation), cut=cuts.is_cut(image))


def _in_step(paths: tuple[Path, Path, Path]) -> Iterator[tuple[Frame, Frame, Frame]]:
    with open_source(paths[0]) as a, open_source(paths[1]) as b, open_source(paths[2]) as c:
        iterators = iter(a), iter(b), iter(c)
        while True:
            frames = [next(i, None) for i in iterators]
            if None in frames:
                if any(f is not None for f in frames):
                    raise InputError("the three videos have different numbers of frames; compare videos of one length")
                return
            yield frames[0], frames[1], frames[2]  # type: ignore[misc]  # none is None here


def evaluate_video(
    clean: Path,
    degraded: Path,
    restored: Path,
    *,
    detector: Detector,
    metrics: Metrics,
    every: int = 8,
    keep: int = 6,
    progress: Callable[[int], None] | None = None,
    landmarks: Landmarks | None = None,
) -> VideoScores:
    """Compare frame by frame. every: the costly image metrics run on each n-th frame, the measures in time on all.

    landmarks: for AKD and TLME, which are left out without them: three searches a face and frame.

    Raises InputError when the videos do not match frame by frame or the clean one shows no face.
    """
    scores = VideoScores(missing=list(metrics.missing))
    others: dict[int, tuple[Frame, Frame]] = {}
    sums: tuple[dict[str, list[float]], dict[str, list[float]]] = (defaultdict(list), defaultdict(list))
    traces: dict[tuple[int, int], FaceTrace] = defaultdict(FaceTrace)
    before: dict[int, _Track] = {}
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    for frame, placements in follow(_detected(_in_step((clean, degraded, restored)), detector, others)):
        pair = others.pop(frame.index)
        scores.frames += 1
        for placement in (p for p in placements if p.strength > 0.5):
            scores.faces += 1
            truth, low, high = (cut_out(f, placement.matrix) for f in (frame, *pair))
            for which, image in enumerate((low, high)):
                sums[which]["sharpness"].append(gradient_energy(image) / max(gradient_energy(truth), 1e-6))
                if frame.index % every == 0:
                    for name, value in metrics.compare(image, truth).items():
                        sums[which][name].append(value)
            _trace(traces, placement.track_id, frame.index, (truth, low, high), metrics, landmarks)
            due = frame.index % every == 0 and frame.index // every % max(1, 64 // every) == 0
            if (due or not scores.strip) and len(scores.strip) < keep:  # a face that comes late is shown too
                scores.strip.append((low, high, truth))
            last = before.get(placement.track_id)
            if last is not None and last.index == frame.index - 1:
                _in_time(last.pictures, (truth, low, high), flow, sums)
            before[placement.track_id] = _Track(frame.index, (truth, low, high))
        if progress is not None:
            progress(scores.frames)
    if scores.faces == 0:
        raise InputError(f"no face was found in {clean}; nothing can be measured")
    for which, target in enumerate((scores.degraded, scores.restored)):
        target.update({name: float(np.mean(values)) for name, values in sums[which].items()})
        own = [trace for (w, _), trace in traces.items() if w == which]
        spreads = [_spread(np.stack([e for e, _ in t.embeddings.values()])) for t in own if len(t.embeddings) > 1]
        if spreads:
            target["spread"] = float(np.mean(spreads))
        target.update(summary(own))
    return scores


def _trace(
    traces: dict[tuple[int, int], FaceTrace],
    track: int,
    frame: int,
    pictures: tuple[Picture, Picture, Picture],
    metrics: Metrics,
    landmarks: Landmarks | None,
) -> None:
    if metrics.identity is not None:
        truth, *others = (metrics.identity(p) for p in pictures)
        for which, embedding in enumerate(others):
            traces[which, track].embeddings[frame] = embedding, truth
    points = [landmarks(p) for p in pictures] if landmarks is not None else [None]
    for which, found in enumerate(points[1:]):
        if found is not None and points[0] is not None:
            traces[which, track].points[frame] = found, points[0]


def gradient_energy(image: Picture) -> float:
    """Mean gradient energy of the luma inside the face mask."""
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    dx, dy = np.diff(luma, axis=1)[:-1], np.diff(luma, axis=0)[:, :-1]
    weight = face_mask()[:-1, :-1]
    return float(((dx**2 + dy**2) * weight).sum() / weight.sum())


def _spread(vectors: npt.NDArray[np.float32]) -> float:
    centre = vectors.mean(axis=0)
    return float(1.0 - (vectors @ (centre / np.linalg.norm(centre))).mean())


def _in_time(
    last: tuple[Picture, Picture, Picture],
    now: tuple[Picture, Picture, Picture],
    flow: cv2.DISOpticalFlow,
    sums: tuple[dict[str, list[float]], dict[str, list[float]]],
) -> None:
    mask = face_mask()[..., None]
    grey = [np.rint(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) * 255).astype(np.uint8) for p in (last[0], now[0])]
    back = np.asarray(flow.calc(grey[1], grey[0], None), np.float32)  # type: ignore[call-overload]
    forth = np.asarray(flow.calc(grey[0], grey[1], None), np.float32)  # type: ignore[call-overload]
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32)
    map_x, map_y = x + back[..., 0], y + back[..., 1]
    returned = cv2.remap(forth, map_x, map_y, cv2.INTER_LINEAR)
    consistent = (np.linalg.norm(back + returned, axis=-1) < _FLOW_CHECK)[..., None] * mask
    for which in (0, 1):
        change = (now[which + 1] - last[which + 1]) - (now[0] - last[0])
        sums[which]["flicker"].append(255 * float((np.abs(change) * mask).sum() / (3 * mask.sum())))
        if consistent.sum() > 0.1 * mask.sum():
            warped = cv2.remap(last[which + 1], map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            error = np.abs(now[which + 1] - warped) * consistent
            sums[which]["warping"].append(255 * float(error.sum() / (3 * consistent.sum())))
            squared = (now[which + 1] - warped) ** 2 * consistent
            sums[which]["E_warp"].append(1000 * float(squared.sum() / (3 * consistent.sum())))
