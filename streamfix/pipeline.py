"""The stages as generators, and the way to drive them over a file.

`Pipeline` holds what is loaded once (restorer, detector, choice of faces) and offers every stage on its own; `run` chains them with
bounded prefetch threads, so that decoding, detection, restoration and encoding overlap and memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streamfix import __version__
from streamfix.compose import compose
from streamfix.errors import UsageError
from streamfix.faces import CutDetector, Detected, follow
from streamfix.faces.align import fit_similarity
from streamfix.faces.detect import Detector, detect_upright, load_detector
from streamfix.faces.follower import still_quality
from streamfix.faces.parsing import FaceParser
from streamfix.faces.select import Selector, parse_select, size_of
from streamfix.media.color import copy_picture, cut_out, side_by_side, to_rgb
from streamfix.models import sha256_of
from streamfix.prefetch import prefetch
from streamfix.restore.base import Restorer, load_restorer, recurs, restore_images
from streamfix.restore.recurrence import WARM_UP, WINDOW, Recurrence
from streamfix.restraint import WINDOW as SHARPNESS_WINDOW
from streamfix.restraint import Guard
from streamfix.types import Crop, Face, Frame, Image, Placement, RestoredFrame

T = TypeVar("T")
Restored = npt.NDArray[np.float32]


@dataclass(slots=True)
class TrackFigures:
    """One face, over the frames in which it was restored.

    first, last: seconds. size: sum of its sizes, source pixels. used, most: sum and largest of how much of the restored face was
    used, 0 (left as it was) .. 1: its strength, times what its sharpness leaves (not known of enlarged pictures).
    """

    frames: int = 0
    first: float = 0.0
    last: float = 0.0
    size: float = 0.0
    used: float = 0.0
    most: float = 0.0

    def add(self, time: float, size: float, used: float) -> None:
        """One more frame."""
        self.first, self.last = time if self.frames == 0 else self.first, time
        self.frames, self.size = self.frames + 1, self.size + size
        self.used, self.most = self.used + used, max(self.most, used)


@dataclass(slots=True)
class Report:
    """What a job did, counted while it runs.

    frames: written. faces: crops restored. frames_with_faces: frames with at least one. figures: of each face followed, by the
    id of its track (in pictures that stand alone, of every face restored).
    damaged: corrupt packets and frames that the decoder met. seconds: wall time so far. total: frames to come in all,
    None where nobody knows. resumed: of the frames, those of a job that was broken off.
    """

    frames: int = 0
    total: int | None = None
    resumed: int = 0
    faces: int = 0
    frames_with_faces: int = 0
    figures: dict[int, TrackFigures] = field(default_factory=dict)
    damaged: int = 0
    seconds: float = 0.0

    @property
    def fps(self) -> float:
        """Frames restored per second of wall time."""
        return max(self.frames - self.resumed, 0) / self.seconds if self.seconds else 0.0

    @property
    def tracks(self) -> set[int]:
        """Ids of the faces followed."""
        return set(self.figures)

    def count(self, frame: Frame, used: Sequence[tuple[Placement, float]]) -> None:
        """The faces laid back into a frame, and how much of each was used."""
        self.faces += len(used)
        self.frames_with_faces += bool(used)
        for placement, share in used:
            figures = self.figures.setdefault(placement.track_id, TrackFigures())
            figures.add(frame.time, size_of(placement), share)


class Pipeline:
    """Faces of a stream of frames, restored.

    restorer, detector: as `load_restorer` and `load_detector` give them. select: which tracks to restore, None for all.
    strength: 0 (input) .. 1 (restored). lookahead: frames of delay that smoothing and fades may use; 0 for pictures that
    have nothing to do with each other. batch_size: crops restored in one call, over several frames and faces. recurrent:
    let a restorer that can see its answer to the frame before (its calls hold the faces of one frame then); None is what the
    restorer says of itself. protect: leave
    faces that are sharp already, and what covers a face, as they are (see restraint.py). parser: keeps the restored face
    within the pixels that are face; None lets it reach as far as the crop's mask.
    told: what else `load_pipeline` and the like were told, plain values.
    """

    def __init__(
        self,
        *,
        restorer: Restorer,
        detector: Detector,
        select: Selector | None = None,
        strength: float = 1.0,
        lookahead: int = 12,
        batch_size: int = 4,
        recurrent: bool | None = None,
        protect: bool = True,
        parser: FaceParser | None = None,
    ) -> None:
        if not 0.0 <= strength <= 1.0:
            raise UsageError(f"strength must lie between 0 (input) and 1 (restored), not {strength:g}")
        if batch_size < 1 or lookahead < 0:
            raise UsageError(
                f"a batch holds at least 1 face, and a lookahead 0 frames: not {batch_size} and {lookahead}"
            )
        self.restorer, self.detector, self.select = restorer, detector, select
        self.strength, self.lookahead, self.batch_size = strength, lookahead, batch_size
        if parser is not None and not protect:
            raise UsageError("face parsing protects what is not face: leave it out, or --no-protect")
        self.protect, self.parser = protect, parser
        self.recurrent = recurs(restorer, recurrent)
        self.told: dict[str, object] = {}

    @property
    def settings(self) -> dict[str, object]:
        """What it is made of and was told, as plain values by which a job knows itself again."""
        own = ("strength", "lookahead", "batch_size", "recurrent", "protect")
        made = {"detector": self.detector.name, "select": type(self.select).__name__ if self.select else None}
        return {**made, **{name: getattr(self, name) for name in own}, **self.told}

    def detect(self, frames: Iterable[Frame]) -> Iterator[Detected]:
        """Faces of every frame, in stored coordinates, and whether the frame begins a new scene."""
        cuts = CutDetector()
        before: Image | None = None
        faces: list[Face] = []
        for frame in frames:
            image = to_rgb(frame)
            cut = cuts.is_cut(image)
            repeated = before is not None and np.array_equal(image, before)
            if not repeated:
                faces = detect_upright(self.detector, image, frame.rotation)
            before = image
            yield Detected(frame=frame, faces=faces, cut=cut, repeated=repeated)

    def place(self, detected: Iterable[Detected]) -> Iterator[tuple[Frame, list[Placement]]]:
        """Where every followed face lies in every frame, smoothed, with its strength."""
        for frame, placements in follow(detected, lookahead=self.lookahead, select=self.select):
            yield frame, [replace(p, strength=p.strength * self.strength) for p in placements]

    def place_still(self, detected: Iterable[Detected]) -> Iterator[tuple[Frame, list[Placement]]]:
        """The same for pictures that stand alone: every face that is certain, each an id of its own, no smoothing."""
        ids = count()
        for found in detected:
            placements = [
                Placement(
                    track_id=next(ids),
                    matrix=fit_similarity(f.landmarks),
                    strength=self.strength * still_quality(f),
                    face=f,
                    embedding=f.embedding,
                )
                for f in found.faces
                if f.score >= STILL_SCORE
            ]
            if self.select is not None:
                choices = self.select.choose(found.frame, placements)
                placements = [
                    replace(p, strength=p.strength * choices[p.track_id].strength)
                    for p in placements
                    if p.track_id in choices
                ]
            yield found.frame, placements

    def cut_out(self, placed: Iterable[tuple[Frame, list[Placement]]]) -> Iterator[tuple[Frame, list[Crop]]]:
        """Aligned crops of the faces whose strength is above zero."""
        for frame, placements in placed:
            yield (
                frame,
                [
                    Crop(frame_index=frame.index, placement=p, image=cut_out(frame, p.matrix))
                    for p in placements
                    if p.strength > 0.0
                ],
            )

    def restore(self, cropped: Iterable[tuple[Frame, list[Crop]]]) -> Iterator[RestoredFrame]:
        """Restore in batches over frames and faces; frames come out in order."""
        waiting: list[tuple[Frame, list[Crop]]] = []
        faces = 0
        before: dict[int, tuple[Restored, Restored]] = {}
        for frame, crops in cropped:
            waiting.append((frame, crops))
            faces += len(crops)
            full = faces >= self.batch_size or len(waiting) >= 2 * self.batch_size or faces == 0
            # at the end of a stretch too: a job that goes on has the batches that it would have had
            if full or (frame.index + 1) % SHARPNESS_WINDOW == 0:
                yield from self._restore(waiting, before)
                waiting, faces = [], 0
        yield from self._restore(waiting, before)

    def restore_next(self, cropped: Iterable[tuple[Frame, list[Crop]]]) -> Iterator[RestoredFrame]:
        """Restore frame by frame, each face guided by the frame before (recurrent restorers)."""
        recurrence = Recurrence(self.restorer, batch_size=self.batch_size)
        for frame, crops in cropped:
            tracks = [crop.placement.track_id for crop in crops]
            images = recurrence.restore(frame.index, tracks, [crop.image for crop in crops])
            yield frame, list(zip(crops, images, strict=True))

    def _restore(
        self, waiting: Sequence[tuple[Frame, list[Crop]]], before: dict[int, tuple[Restored, Restored]]
    ) -> Iterator[RestoredFrame]:
        # before: crop and answer of each track in the last frame; a crop that repeats is not restored again
        # ... but by a restorer that draws fresh noise (pure is False), which answers differently each time
        same = _same if getattr(self.restorer, "pure", True) else _never
        last = {track: image for track, (image, _) in before.items()}
        jobs: list[Restored] = []
        for _, crops in waiting:
            jobs += [c.image for c in crops if not same(last.get(c.placement.track_id), c.image)]
            last = {c.placement.track_id: c.image for c in crops}
        answers = iter(restore_images(self.restorer, jobs, batch_size=self.batch_size) if jobs else [])
        for frame, crops in waiting:
            now = {}
            for crop in crops:
                track = crop.placement.track_id
                old = before.get(track)
                now[track] = old if old is not None and same(old[0], crop.image) else (crop.image, next(answers))
            before.clear()
            before.update(now)
            yield frame, [(crop, now[crop.placement.track_id][1]) for crop in crops]

    def lay_back(
        self,
        restored: Iterable[RestoredFrame],
        *,
        compare: bool = False,
        report: Report | None = None,
    ) -> Iterator[Frame]:
        """Lay the faces back, larger ones last; with compare, input and output side by side."""
        guard = Guard(self.parser)
        for frame, pairs in restored:
            before = copy_picture(frame.picture) if compare else None
            out, used = frame, []
            for crop, image in sorted(pairs, key=lambda pair: -_scale(pair[0].placement.matrix)):
                weight, sharp = None, 1.0
                if self.protect:
                    restraint = guard.restrain(frame.index, crop.placement.track_id, crop.image, image)
                    weight, sharp = restraint.weight, restraint.sharp
                out = compose(out, crop, image, weight=weight)
                used.append((crop.placement, sharp * crop.placement.strength))
            if before is not None:
                out = replace(out, picture=side_by_side(before, out.picture, rotation=frame.rotation))
            if report is not None:
                report.count(frame, used)
            yield out

    def run(
        self,
        frames: Iterable[Frame],
        *,
        still: bool = False,
        compare: bool = False,
        report: Report | None = None,
        since: int = 0,
    ) -> Generator[Frame, None, None]:
        """All stages in a row, in bounded prefetch threads. Frames come out in order, one for one.

        since: number of the first frame that is wanted, a multiple of 64: it and all after it come out as they do when all are.
        Of those before, the first is restored too; most of the others come out as they are.
        Closing this generator ends the threads, as does an exception in any stage, which is raised here.
        """
        with ExitStack() as threads:

            def ahead(items: Iterable[T], size: int) -> Iterator[T]:
                return threads.enter_context(closing(prefetch(items, size)))

            detected = ahead(self.detect(ahead(frames, 4)), 4)
            placed = self.place_still(detected) if still else self.place(detected)
            begin = since - (WINDOW + WARM_UP if self.recurrent else 0) - SHARPNESS_WINDOW
            for entry in placed:
                if entry[0].index >= begin:
                    placed = chain([entry], placed)
                    break
                if entry[0].index == 0:
                    yield from self.lay_back(self.restore(self.cut_out([entry])), compare=compare)
                else:
                    yield entry[0]
            cropped = self.cut_out(placed)
            restored = ahead(self.restore_next(cropped) if self.recurrent and not still else self.restore(cropped), 2)
            yield from self.lay_back(restored, compare=compare, report=report)


STILL_SCORE = 0.7
"""Detection score from which a face in a picture that stands alone is restored (0.5 gives false hits on faceless patches)."""


def _never(old: Restored | None, new: Restored) -> bool:
    return False


def _same(one: Restored | None, other: Restored) -> bool:
    return one is not None and np.array_equal(one, other)


def _scale(matrix: npt.NDArray[np.float64]) -> float:
    return abs(float(np.linalg.det(matrix[:, :2])))


def load_pipeline(
    *,
    model: str | Path = "auto",
    detector: str = "auto",
    device: str = "auto",
    faces: str | Path = "all",
    min_size: float = 0.0,
    strength: float = 1.0,
    lookahead: int = 12,
    batch_size: int = 4,
    recurrent: bool | None = None,
    protect: bool = True,
    ignore_background: bool = False,
    embedding: str | Path | None = None,
    embedding_norm: str = "arcface",
    parsing: str | Path | None = None,
) -> Pipeline:
    """Load restorer and detector by name, once for many files.

    faces: all, largest, center, a reference photo, or a TOML file of people. embedding: an ONNX face embedding that
    tells people apart, and embedding_norm its input scaling, arcface or imagenet. parsing: an ONNX face parsing network
    (faces.parsing.FaceParser). Raises ModelError, UsageError, or
    InputError for a reference photo that cannot be used.
    """
    known = Path(embedding) if embedding is not None else None
    finder = load_detector(detector, embedding=known, embedding_norm=embedding_norm)
    pipeline = Pipeline(
        restorer=load_restorer(model, device=device),
        detector=finder,
        select=parse_select(faces, finder, min_size=min_size, ignore_background=ignore_background),
        strength=strength,
        lookahead=lookahead,
        batch_size=batch_size,
        recurrent=recurrent,
        protect=protect,
        parser=FaceParser(Path(parsing)) if parsing is not None else None,
    )
    pipeline.told |= {"model": str(model), "device": device, "faces": _identified(faces)}
    pipeline.told |= {"min_size": min_size, "ignore_background": ignore_background}
    if parsing is not None:
        pipeline.told["parsing"] = _identified(parsing)
    if embedding is not None:
        pipeline.told |= {"embedding": _identified(embedding), "embedding_norm": embedding_norm}
    return pipeline


def _identified(value: str | Path) -> str:
    # of files the contents count: another network may take the name of the one before (a model's are known to its restorer)
    return f"{value} sha256:{sha256_of(Path(value))[:16]}" if Path(value).is_file() else str(value)


def provenance(pipeline: Pipeline) -> str:
    """Where restored faces come from, as it stands in the output's metadata: detail is synthesised, people must be able to tell."""
    restorer = pipeline.restorer
    digest = f" sha256:{restorer.sha256[:16]}" if restorer.sha256 else ""
    return f"faces restored by streamfix {__version__}; model {restorer.name}{digest}; strength {pipeline.strength:g}"
