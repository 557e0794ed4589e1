"""Following faces with no look ahead: each frame gets its placements at once, detected or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from streamfix.errors import UsageError
from streamfix.faces.align import frontal, ramp
from streamfix.faces.flow import Grey, carry, working
from streamfix.faces.follower import SCORE_RAMP, SIZE_RAMP
from streamfix.faces.one_euro import SimilarityFilter
from streamfix.faces.select import Choices, Selector
from streamfix.faces.track import MAX_GAP, Tracker
from streamfix.types import Face, Frame, Image, Placement

_HOLD = 3
"""Frames without a face that are taken for a slip of the detector: strength stays; then it fades until MAX_GAP."""
_SCORE_SHARE = 0.3
"""Weight of the newest score and size in their running mean."""
_LEAST_TICK = 1e-3
_URGENT = 2
"""Frames between detections while a face appears or is out of sight."""


@dataclass(slots=True)
class _Followed:
    """State of one track from frame to frame."""

    filter: SimilarityFilter = field(default_factory=SimilarityFilter)
    strength: float = 0.0
    chosen: float | None = None
    score: float = 0.0
    size: float = 0.0
    frontal: float = 0.0


class LiveFollower:
    """Causal counterpart of `follow`: One-Euro smoothing, coasting through MAX_GAP frames, fades limited in slope.

    fade: seconds over which a face that appears, or is chosen, comes up to its strength. select: which tracks to restore.
    """

    def __init__(self, *, fade: float = 0.25, select: Selector | None = None) -> None:
        if fade < 0:
            raise UsageError(f"fade (seconds) cannot be negative, got {fade = }")
        self.select = select
        self._fade = fade
        self._restart()

    def _restart(self) -> None:
        self._tracker = Tracker(lookahead=0)
        self._position = -1
        self._followed: dict[int, _Followed] = {}
        self._current: Choices = {}
        self._before: Grey | None = None
        self._clock: float | None = None
        self._since = 0
        self._urgent = True

    def wants_detection(self, every: int) -> bool:
        """Whether the next frame should be searched, at a cadence of `every` frames (1: all of them).

        More often than that while a face appears or is lost; on the first frame in any case.
        """
        return self._position < 0 or self._since + 1 >= (min(every, _URGENT) if self._urgent else every)

    def step(self, frame: Frame, image: Image, faces: Sequence[Face] | None, *, cut: bool = False) -> list[Placement]:
        """Where every followed face lies in the next frame, with its strength.

        image: the frame as RGB. faces: what the detector found (stored coordinates), None where it was not asked: known faces
        are then carried on by optical flow. cut: the frame begins a new scene.
        """
        time = frame.time if self._clock is None else max(frame.time, self._clock + _LEAST_TICK)
        elapsed = 0.0 if self._clock is None else time - self._clock
        self._clock = time
        grey, scale = working(image)
        before, self._before = self._before, grey
        self._since = 0 if faces is not None else self._since + 1
        if faces is None:
            faces = [] if cut or before is None else self._carried(before, grey, scale)
        self._position += 1
        self._tracker.step(faces, time=time, cut=cut)
        self._tracker.forget(self._position)
        alive = [t for t in self._tracker.tracks if not t.closed]
        self._followed = {t.id: self._followed.get(t.id) or _Followed() for t in alive}
        placements = []
        for track in alive:
            state = self._followed[track.id]
            hit = track.hits.get(self._position)
            gap = self._position - track.last
            if hit is not None:
                share = _SCORE_SHARE if state.size else 1.0
                state.score += share * (hit.face.score - state.score)
                state.size += share * (hit.sample.size - state.size)
                state.frontal += share * (frontal(hit.face.landmarks) - state.frontal)
                place = state.filter.update(hit.sample.similarity, size=hit.sample.size, time=time)
            else:
                place = state.filter.coast(time=time)
            wanted = ramp(state.score, *SCORE_RAMP) * ramp(state.size, *SIZE_RAMP) * state.frontal
            wanted *= min(max((MAX_GAP + 1 - gap) / (MAX_GAP + 1 - _HOLD), 0.0), 1.0)
            rise = elapsed / self._fade if self._fade > 0 else 1.0
            state.strength = min(wanted, state.strength + rise)
            placements.append(
                Placement(
                    track_id=track.id,
                    matrix=place.matrix(),
                    strength=state.strength,
                    face=hit.face if hit is not None else None,
                    embedding=track.embedding,
                )
            )
        self._urgent = self._tracker.unsettled
        return self._chosen(frame, placements, elapsed)

    def _carried(self, before: Grey, now: Grey, scale: float) -> list[Face]:
        """Faces of confirmed tracks seen in the frame before; what is not sure to be a face is left to the detector."""
        tracks = [t for t in self._tracker.tracks if not t.closed and t.last == self._position]
        moved = carry(before, now, [t.hits[t.last].face for t in tracks], scale=scale)
        return [face for face in moved if face is not None]

    def _chosen(self, frame: Frame, placements: list[Placement], elapsed: float) -> list[Placement]:
        if self.select is None:
            return placements
        self._current = self.select.choose(frame, placements, current=self._current)
        step = elapsed / self._fade if self._fade > 0 else 1.0
        result = []
        for placement in placements:
            state = self._followed[placement.track_id]
            choice = self._current.get(placement.track_id)
            goal = choice.strength if choice is not None else 0.0
            was = goal if state.chosen is None else state.chosen
            state.chosen = min(goal, was + step) if goal > was else max(goal, was - step)
            if goal > 0 or state.chosen > 0:
                result.append(replace(placement, strength=placement.strength * state.chosen))
        return result
