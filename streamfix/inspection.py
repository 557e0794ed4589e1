"""What is in a file: its streams, the people in it, and a contact sheet of their faces."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamfix._cv2 import cv2
from streamfix.curves import Curves, check_plotting
from streamfix.errors import OutputError, UsageError
from streamfix.faces import follow
from streamfix.faces.detect import load_detector
from streamfix.media.color import cut_out
from streamfix.media.source import find_media, open_source
from streamfix.pipeline import Pipeline, Report
from streamfix.prefetch import prefetch
from streamfix.restore.base import load_restorer
from streamfix.restraint import Guard
from streamfix.types import Facts, Frame, Image, Placement

THUMB = 128
ROW = 10


@dataclass(slots=True)
class TrackSummary:
    """One person of the file: frames in which the track is visible, its first and last time in seconds, face sizes in pixels."""

    track_id: int
    frames: int = 0
    detected: int = 0
    first: float = 0.0
    last: float = 0.0
    sizes: list[float] = field(default_factory=list)
    score: float = 0.0
    thumbs: list[tuple[float, Image]] = field(default_factory=list)
    _every: int = 1

    def add(self, frame: Frame, placement: Placement, thumb: Callable[[], Image]) -> None:
        """Count one frame; keep a thumbnail of every n-th, n doubling so that memory stays bounded."""
        if self.frames == 0:
            self.first = frame.time
        self.last = frame.time
        if self.frames % self._every == 0:
            self.thumbs.append((frame.time, thumb()))
            if len(self.thumbs) >= 2 * ROW:
                self.thumbs, self._every = self.thumbs[::2], self._every * 2
        self.frames += 1
        if placement.face is not None:
            self.detected += 1
            self.score += placement.face.score
            self.sizes = [*self.sizes[-999:], placement.face.size]

    @property
    def facts(self) -> Facts:
        """JSON-able summary."""
        return {
            "track": self.track_id,
            "frames": self.frames,
            "detected": self.detected,
            "first_s": round(self.first, 3),
            "last_s": round(self.last, 3),
            "face_px": round(float(np.median(self.sizes)), 1) if self.sizes else None,
            "mean_score": round(self.score / self.detected, 3) if self.detected else None,
        }


@dataclass(slots=True)
class Inspection:
    """The result of `inspect`: facts for JSON, and what the sheet is drawn from."""

    facts: Facts
    tracks: list[TrackSummary]
    curves: Curves | None = None

    def save_curves(self, path: Path) -> None:
        """Draw the curves that `inspect` was asked for. PNG; OutputError where it cannot be written."""
        if self.curves is None:
            raise UsageError("there are no curves to draw; inspect with curves=True")
        faces = {t.track_id: t.thumbs[len(t.thumbs) // 2][1] for t in self.tracks}
        self.curves.save(path, title=Path(self.facts["path"]).name, faces=faces)

    def print(self, console: Console) -> None:
        """Two tables: streams and tracks."""
        # Text, not strings: brackets in a name are no markup
        streams = Table("stream", "kind", "codec", "details", title=Text(str(self.facts["path"])))
        for stream in self.facts["media"].get("streams", []):
            details = Text(", ".join(_details(stream)))
            streams.add_row(
                str(stream.get("index", "")), str(stream.get("type", "")), str(stream.get("codec", "")), details
            )
        console.print(streams)
        if not self.tracks:
            console.print(f"no face in {self.facts['frames']} frames")
            return
        people = Table("track", "from", "to", "frames", "detected", "face size", "mean score")
        for track in self.tracks:
            f = track.facts
            people.add_row(
                str(f["track"]),
                f"{f['first_s']:.2f} s",
                f"{f['last_s']:.2f} s",
                str(f["frames"]),
                str(f["detected"]),
                "-" if f["face_px"] is None else f"{f['face_px']:.0f} px",
                "-" if f["mean_score"] is None else f"{f['mean_score']:.2f}",
            )
        console.print(people)

    def save_sheet(self, path: Path) -> None:
        """One row a track: aligned faces at even distances, each with its time. PNG; OutputError where it cannot be written."""
        rows = [_row(track) for track in self.tracks] or [
            _label(np.full((40, 400, 3), 32, np.uint8), "no face found", 10, 26)
        ]
        width = max(row.shape[1] for row in rows)
        sheet = np.concatenate(
            [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=32) for row in rows]
        )
        done, data = cv2.imencode(".png", sheet[..., ::-1])
        if not done:
            raise OutputError(
                f"the contact sheet of {len(rows)} rows is too large for a PNG; inspect a part with --start and --end"
            )
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(data.tobytes())
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write {path}: {error.strerror}; choose another place for the contact sheet"
            ) from error


def _details(stream: Facts) -> Iterator[str]:
    """What people look for in a stream, briefly; --json has everything."""
    for key, value in stream.items():
        if key in {"index", "type", "codec", "metadata", "time_base", "restored"} or value in (
            None,
            "",
            "und",
            0,
            False,
            {},
            [],
        ):
            continue
        if isinstance(value, dict):
            known = [str(v) for v in value.values() if v not in (None, "unspecified")]
            value = "/".join(known) or "untagged"
        elif isinstance(value, list):
            value = " ".join(map(str, value))
        elif isinstance(value, float):
            value = f"{value:.6g}"
        yield f"{key.replace('_', ' ')} {value}"


def check_sheet(path: Path, *, source: str | Path, what: str = "the contact sheet") -> None:
    """Before the work: UsageError where a picture to write is no PNG, or one of the inputs; OutputError without its folder."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"{what} is a PNG, and {path} is not named like one; call it .png")
    inputs = find_media(source) if os.path.exists(path) else []
    if any(os.path.samefile(path, one) for one in inputs):
        which = "the input itself" if len(inputs) == 1 else "one of the inputs"
        raise UsageError(f"{path} is {which}; choose another name for {what}")
    if not os.path.isdir(path.parent):
        raise OutputError(f"the folder of {path} does not exist; create it first")


def _label(image: Image, text: str, x: int, y: int) -> Image:
    (wide, high), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    image[max(y - high - 2, 0) : y + below, max(x - 2, 0) : x + wide + 2] //= 3  # a dark ground reads on any face
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return image


def _row(track: TrackSummary) -> Image:
    picks = np.linspace(0, len(track.thumbs) - 1, min(ROW, len(track.thumbs))).round().astype(int)
    head = _label(np.full((THUMB, 64, 3), 32, np.uint8), f"id {track.track_id}", 8, 70)
    cells = [_label(track.thumbs[i][1].copy(), f"{track.thumbs[i][0]:.2f}s", 4, THUMB - 6) for i in picks]
    return np.concatenate([head, *cells], axis=1)


def _upright(crop: npt.NDArray[np.float32]) -> Image:
    small = cv2.resize(crop, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    return np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)


def inspect(
    source: str | Path,
    *,
    detector: str = "auto",
    start: float | None = None,
    end: float | None = None,
    curves: bool = False,
    model: str = "auto",
    device: str = "auto",
    progress: Callable[[Report], None] | None = None,
) -> Inspection:
    """Decode, detect and track the whole file. Raises InputError or ModelError.

    curves: restore the faces too, with that model on that device, and note why each is restored as far as it is.
    """
    if curves:
        check_plotting()
    restorer = load_restorer(model, device=device) if curves else load_restorer("passthrough")
    pipeline = Pipeline(restorer=restorer, detector=load_detector(detector))
    tracks: dict[int, TrackSummary] = {}
    report, noted = Report(), Curves() if curves else None
    with open_source(source, start=start, end=end) as opened, ExitStack() as threads:
        report.total = opened.frames
        decoded = threads.enter_context(closing(prefetch(iter(opened), 4)))
        detected = threads.enter_context(closing(prefetch(pipeline.detect(decoded), 4)))
        placed = pipeline.place_still(detected) if opened.is_still else follow(detected, lookahead=pipeline.lookahead)
        if noted is not None:
            placed = _noting(pipeline, placed, noted, still=opened.is_still)
        for frame, placements in placed:
            for placement in placements:
                if placement.strength <= 0:
                    continue
                track = tracks.setdefault(placement.track_id, TrackSummary(placement.track_id))
                track.add(frame, placement, lambda f=frame, p=placement: _upright(cut_out(f, p.matrix)))  # type: ignore[misc]
                report.faces += 1
            report.frames += 1
            report.damaged = opened.damaged
            if progress is not None:
                progress(report)
        facts: Facts = {
            "path": str(source),
            "media": opened.facts(),
            "frames": report.frames,
            "damaged": report.damaged,
            "tracks": [t.facts for t in tracks.values()],
        }
        if noted is not None:
            facts["curves"] = [t.facts for t in noted.tracks]
    return Inspection(facts=facts, tracks=list(tracks.values()), curves=noted)


def _noting(
    pipeline: Pipeline, placed: Iterable[tuple[Frame, list[Placement]]], curves: Curves, *, still: bool
) -> Iterator[tuple[Frame, list[Placement]]]:
    """The same placements, after their faces have been restored and both have been noted."""
    waiting: deque[list[Placement]] = deque()

    def noted() -> Iterator[tuple[Frame, list[Placement]]]:
        for frame, placements in placed:
            curves.add(frame, placements)
            waiting.append(placements)
            yield frame, placements

    guard = Guard(pipeline.parser)
    cropped = pipeline.cut_out(noted())
    for frame, pairs in (
        pipeline.restore_next(cropped) if pipeline.recurrent and not still else pipeline.restore(cropped)
    ):
        for crop, image in pairs:
            track = crop.placement.track_id
            curves.judged(frame, track, guard.restrain(frame.index, track, crop.image, image))
        yield frame, waiting.popleft()
