"""Jobs: one input restored into one output, and gone on with where it was broken off."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from copy import copy
from dataclasses import astuple
from itertools import chain, islice
from pathlib import Path

import numpy as np

from streamfix.errors import UsageError
from streamfix.faces.detect import Detector
from streamfix.media.segments import SEGMENT, Segments
from streamfix.media.sink import open_sink
from streamfix.media.source import Source, open_source
from streamfix.pipeline import Pipeline, Report, TrackFigures, load_pipeline, provenance
from streamfix.sidecar import check_sidecar, write_sidecar
from streamfix.types import Face, Image

_log = logging.getLogger(__name__)

Progress = Callable[[Report], None]


def enhance(
    source: str | Path | Source,
    output: str | Path,
    *,
    pipeline: Pipeline | None = None,
    model: str | Path = "auto",
    detector: str = "auto",
    device: str = "auto",
    faces: str | Path = "all",
    min_size: float = 0.0,
    strength: float = 1.0,
    start: float | None = None,
    end: float | None = None,
    compare: bool = False,
    codec: str = "auto",
    crf: int | None = None,
    preset: str | None = None,
    drop: Collection[str] = (),
    overwrite: bool = False,
    resume: bool = False,
    sidecar: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Restore the faces of a video, an image, or a folder of images, and write the result.

    source: what `open_source` takes, or a Source (which has its own range, and is closed at the end). output: its suffix
    chooses the container. pipeline: from `load_pipeline`, when many files are to share one; else model, detector, device,
    faces, min_size (source pixels) and strength (0..1) describe it, never both. start, end: seconds. compare: write input and output
    side by side. codec, crf, preset, drop: as `open_sink` has them.
    resume: keep what is done of a video in a hidden folder beside the output until that is whole, and begin with what was
    kept there by a job that was broken off; of a folder of images nothing is kept. The output is the same then as without
    the break, encoded in stretches of 128 frames.
    sidecar: write `output`.json too: where the restored faces come from, and how much of each was used (see sidecar.py).
    progress: called after every written frame with the report so far, always the same object.
    Raises a StreamfixError whose message is one sentence; nothing is left at `output` then.
    """
    given = (model, detector, device, faces, min_size, strength)
    if pipeline is None:
        pipeline = load_pipeline(
            model=model, detector=detector, device=device, faces=faces, min_size=min_size, strength=strength
        )
    elif given != ("auto", "auto", "auto", "all", 0.0, 1.0):
        raise UsageError(
            "model, detector, device, faces, min_size and strength are load_pipeline's where a pipeline is given"
        )
    target, report, began = Path(output), Report(), time.monotonic()
    options = {"compare": compare, "codec": codec, "crf": crf, "preset": preset, "drop": sorted(map(str, drop))}
    with open_source(source, start=start, end=end) if not isinstance(source, Source) else source as opened:
        report.total = opened.frames
        options |= {"from": opened.start, "to": opened.end}
        tags = {"enhanced": provenance(pipeline)}
        if sidecar:
            check_sidecar(target, source=opened.path, overwrite=overwrite)
        kept = None
        if resume and not opened.is_still:
            kept = _Kept(target, opened, pipeline, options, report)
            pipeline = kept.pipeline
            report.resumed = kept.segments.done
        try:
            with (
                open_sink(
                    target,
                    like=opened,
                    codec=codec,
                    crf=crf,
                    preset=preset,
                    drop=drop,
                    overwrite=overwrite,
                    tags=tags,
                    segments=kept.segments if kept else None,
                ) as sink,
                closing(
                    pipeline.run(
                        iter(opened), still=opened.is_still, compare=compare, report=report, since=report.resumed
                    )
                ) as frames,
            ):
                for frame in frames:
                    sink.write(frame)
                    report.frames += 1
                    if kept and report.frames == report.resumed:
                        kept.count()
                    report.damaged, report.seconds = opened.damaged, time.monotonic() - began
                    if progress is not None:
                        progress(report)
        except BaseException:
            if kept:
                kept.leave()
            raise
        if kept:
            kept.segments.remove()
        if sidecar:
            write_sidecar(target, source=opened.path, pipeline=pipeline, report=report, options=options)
    report.seconds = time.monotonic() - began
    return report


class _Kept:
    """What a job keeps beside its output: encoded stretches, and with each what was detected and counted by then."""

    def __init__(
        self, output: Path, source: Source, pipeline: Pipeline, options: dict[str, object], report: Report
    ) -> None:
        file = source.path.stat()
        settings = {
            "input": f"{source.path.name}, {file.st_size} bytes, {file.st_mtime_ns}",
            "restored": provenance(pipeline),
            "deinterlace": getattr(source, "deinterlace", None),
            **pipeline.settings,
            **options,
        }
        self.segments = Segments(output.with_name(f".{output.name}.job"), settings, self._notes)
        self._report = report
        self._found = _Remembered(pipeline.detector, self._read())
        self.pipeline = copy(pipeline)
        self.pipeline.detector = self._found

    def _read(self) -> Iterator[list[Face]]:
        for number in range(self.segments.done // SEGMENT):
            with np.load(io.BytesIO(self.segments.notes(number))) as kept:
                entries = zip(kept["boxes"], kept["landmarks"], kept["scores"], kept["embedded"], strict=True)
                vectors = iter(kept["embeddings"])
                faces = (
                    Face(box=box, landmarks=points, score=float(score), embedding=next(vectors) if embedded else None)
                    for box, points, score, embedded in entries
                )
                yield from [list(islice(faces, count)) for count in kept["counts"]]

    def _notes(self) -> bytes:
        """For a stretch that is whole: what was detected since the last one, and the counts of the report."""
        calls, report, file = self._found.take(), self._report, io.BytesIO()
        faces = list(chain.from_iterable(calls))
        np.savez(
            file,
            counts=np.array([len(found) for found in calls], np.int64),
            boxes=np.array([f.box for f in faces]),
            landmarks=np.array([f.landmarks for f in faces]),
            scores=np.array([f.score for f in faces]),
            embedded=np.array([f.embedding is not None for f in faces], bool),
            embeddings=np.array([f.embedding for f in faces if f.embedding is not None]),
            report=np.array([report.faces, report.frames_with_faces]),
            tracks=np.array([[track, *astuple(f)] for track, f in report.figures.items()], np.float64),
        )
        return file.getvalue()

    def count(self) -> None:
        """Put into the report what was counted over the frames that are kept."""
        with np.load(io.BytesIO(self.segments.notes(self.segments.done // SEGMENT - 1))) as kept:
            self._report.faces, self._report.frames_with_faces = (int(n) for n in kept["report"])
            self._report.figures = {
                int(track): TrackFigures(int(frames), *(float(v) for v in values))
                for track, frames, *values in kept["tracks"]
            }

    def leave(self) -> None:
        """The job is broken off."""
        self.segments.leave()
        if self.segments.kept:
            words = "%d frames are done and kept in %s: the same call goes on from them"
            _log.warning(words, self.segments.kept, self.segments.folder)


class _Remembered:
    """A Detector that repeats what it found before, call by call, and goes on from there."""

    def __init__(self, detector: Detector, before: Iterator[list[Face]]) -> None:
        self.name, self._detector, self._before = detector.name, detector, before
        self._fresh: list[list[Face]] = []

    def detect(self, image: Image) -> list[Face]:
        """See Detector."""
        known = next(self._before, None)
        if known is not None:
            return known
        found = self._detector.detect(image)
        self._fresh.append(found)
        return found

    def take(self) -> list[list[Face]]:
        """What was found since the last time, call by call."""
        taken = self._fresh[:]  # another thread adds to it meanwhile
        del self._fresh[: len(taken)]
        return taken
