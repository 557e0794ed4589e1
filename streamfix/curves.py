"""Why each face is restored as far as it is: per-track curves over time, as columns and as a picture."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamfix.errors import DependencyError, OutputError
from streamfix.faces.align import YAW_RAMP, yaw
from streamfix.faces.select import size_of
from streamfix.media.part import explain, part_of
from streamfix.restraint import Restraint
from streamfix.types import Facts, Frame, Image, Placement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("time_s", "strength", "score", "trust", "sharpness", "cover", "size_px", "yaw_deg")
MOST_TRACKS = 12
"""Drawn at most: those seen in the most frames. The columns have all."""
_DPI = 100
_INK = {"restored": "#2a7fb8", "strength": "#123a55", "score": "#f0b429", "trust": "#000000"}
_INK |= {"sharpness": "#2c9c4b", "cover": "#c8321f", "size_px": "#123a55", "yaw_deg": "#7b3fa0"}


class TrackCurves:
    """One track, a row a frame. Numbers that a frame does not have (no detection, not restored) are NaN.

    strength: 0..1 as Placement has it. score, yaw_deg (0..90): of that frame's detection. trust: see faces/trust.py.
    sharpness: 0 (sharp already, left alone) .. 1; cover: share of the face that is covered; both from restraint.py.
    size_px: source pixels.
    """

    def __init__(self, track_id: int) -> None:
        self.track_id = track_id
        self.frames = array("q")
        self._columns = {name: array("d") for name in COLUMNS}

    def add(self, frame: Frame, placement: Placement) -> None:
        """The next frame in which the track is."""
        face = placement.face
        self.frames.append(frame.index)
        for name, value in (
            ("time_s", frame.time),
            ("strength", placement.strength),
            ("score", face.score if face is not None else math.nan),
            ("trust", placement.trust),
            ("sharpness", math.nan),
            ("cover", math.nan),
            ("size_px", size_of(placement)),
            ("yaw_deg", yaw(face.landmarks) if face is not None else math.nan),
        ):
            self._columns[name].append(value)

    def judged(self, frame: Frame, restraint: Restraint) -> None:
        """What restoration itself made of one of the latest frames."""
        row = len(self.frames) - 1
        while row >= 0 and self.frames[row] != frame.index:
            row -= 1
        if row < 0:
            raise ValueError(f"track {self.track_id} is not in frame {frame.index}")
        self._columns["sharpness"][row] = restraint.sharp
        if restraint.sharp > 0:  # else nobody looked for what covers it
            self._columns["cover"][row] = restraint.covered

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """float64 (N,)."""
        return np.array(self._columns[name], np.float64)

    def restored(self) -> npt.NDArray[np.float64]:
        """What is left of the strength after sharpness and cover, 0..1; NaN where the face was not restored."""
        used = self.column("strength") * self.column("sharpness")
        return np.where(used == 0, used, used * (1 - self.column("cover")))

    @property
    def facts(self) -> Facts:
        """JSON-able columns of equal length, null for NaN."""
        numbers: Facts = {"track": self.track_id, "frame": self.frames.tolist()}
        for name in COLUMNS:
            numbers[name] = [None if math.isnan(v) else round(v, 4) for v in self._columns[name]]
        return numbers


class Curves:
    """The curves of all tracks, in order of appearance."""

    def __init__(self) -> None:
        self._tracks: dict[int, TrackCurves] = {}

    def add(self, frame: Frame, placements: Sequence[Placement]) -> None:
        """Where the faces of the next frame lie."""
        for placement in placements:
            track = self._tracks.setdefault(placement.track_id, TrackCurves(placement.track_id))
            track.add(frame, placement)

    def judged(self, frame: Frame, track_id: int, restraint: Restraint) -> None:
        """See TrackCurves.judged."""
        self._tracks[track_id].judged(frame, restraint)

    @property
    def tracks(self) -> list[TrackCurves]:
        """In order of appearance."""
        return list(self._tracks.values())

    def save(self, path: Path, *, title: str, faces: Mapping[int, Image]) -> None:
        """Draw a PNG: a row a track. faces: a thumbnail for each track that has one. OutputError where it cannot be written."""
        data = BytesIO()
        _draw(self.tracks, title, faces).savefig(data, format="png", dpi=_DPI)
        part = part_of(path)
        try:
            part.write_bytes(data.getvalue())
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise OutputError(explain(error, path)) from error


def check_plotting() -> None:
    """DependencyError where curves cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"drawing curves needs matplotlib ({error}); pip install 'streamfix[plot]'") from error


def _draw(tracks: Sequence[TrackCurves], title: str, faces: Mapping[int, Image]) -> Any:
    check_plotting()
    from matplotlib.figure import Figure

    longest = sorted(tracks, key=lambda t: -len(t.frames))[:MOST_TRACKS]
    shown = [t for t in tracks if t in longest]
    rows = max(len(shown), 1)
    figure = Figure(figsize=(19, 1.3 + 2.1 * rows), layout="constrained")
    left_out = f"; the {len(shown)} longest of {len(tracks)} tracks" if len(shown) < len(tracks) else ""
    figure.suptitle(f"{title}: why each face is restored as far as it is{left_out}", fontsize=13)
    if not shown:
        figure.text(0.5, 0.4, "no face found", ha="center", fontsize=13)
        return figure
    axes = figure.subplots(rows, 5, squeeze=False, width_ratios=[0.42, 1, 1, 0.8, 0.8])
    for row, track in zip(axes, shown, strict=True):
        _head(row[0], track, faces.get(track.track_id))
        _track(row[1:], track)
    heads = (
        "how far it is restored\n(0: left as it was, 1: in full)",
        "what decides, besides fading in and out",
        "size of the face, source pixels",
        "turned away, degrees",
    )
    for axis, head in zip(axes[0, 1:], heads, strict=True):
        axis.set_title(head, fontsize=10)
    for axis in axes[-1, 1:]:
        axis.set_xlabel("seconds", fontsize=9)
    for column in (1, 2):
        handles, labels = axes[0, column].get_legend_handles_labels()
        axes[-1, column].legend(
            handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=2, fontsize=8.5, frameon=False
        )
    return figure


def _head(axis: Axes, track: TrackCurves, face: Image | None) -> None:
    """Who it is, left of the row."""
    axis.axis("off")
    if face is not None:
        axis.imshow(face)
    times = track.column("time_s")
    axis.set_title(f"track {track.track_id}\n{times[0]:.1f} to {times[-1]:.1f} s", fontsize=9)


def _track(axes: Sequence[Axes], track: TrackCurves) -> None:
    # a line breaks where the track was not seen, and a track of one picture is a dot
    gaps = np.flatnonzero(np.diff(np.array(track.frames)) > 1) + 1
    marker = "o" if len(track.frames) - len(gaps) < 3 else ""

    def line(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.insert(values, gaps, np.nan)

    times = line(track.column("time_s"))

    def plot(axis: Axes, name: str, label: str, **style: Any) -> None:
        axis.plot(times, line(track.column(name)), color=_INK[name], label=label, marker=marker, **style)

    result, causes, size, turn = axes
    used = np.nan_to_num(line(track.restored()))
    result.fill_between(times, used, color=_INK["restored"], alpha=0.35, linewidth=0, label="used in the end")
    plot(result, "strength", "strength, before sharpness and cover", linewidth=1.6)
    # most lie at 1 most of the time: the thick one below, the dotted one on top, and all can be told
    plot(causes, "score", "detection score", linewidth=4.0, alpha=0.7)
    plot(causes, "sharpness", "detail missing (0: sharp already, left)", linewidth=1.8)
    plot(causes, "trust", "trust in small faces' landmarks", linewidth=1.2, linestyle=":")
    plot(causes, "cover", "covered share (hand, hair ...)", linewidth=1.4)
    plot(size, "size_px", "", linewidth=1.4)
    turn.axhspan(*YAW_RAMP, color=_INK["yaw_deg"], alpha=0.12, linewidth=0)
    turn.text(0.01, (sum(YAW_RAMP) / 2) / 90, " fades out here", transform=turn.transAxes, fontsize=8, va="center")
    plot(turn, "yaw_deg", "", linewidth=1.4)
    for axis in (result, causes):
        axis.set_ylim(-0.04, 1.06)
        axis.set_yticks([0, 0.5, 1])
    size.set_ylim(0, 1.15 * float(np.nanmax(track.column("size_px"))))
    turn.set_ylim(0, 90)
    turn.set_yticks([0, 30, 60, 90])
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.01)
        axis.spines[["top", "right"]].set_visible(False)
