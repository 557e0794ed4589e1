"""Following faces with no look ahead: each frame gets its placements at once, detected or not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from streamfix.errors import UsageError
from streamfix.faces.flow import Grey, carry, working
from streamfix.faces.follower import MOST_STEP, mean_embedding, quality
from streamfix.faces.one_euro import SimilarityFilter
from streamfix.faces.select import Choices, Selector
from streamfix.faces.smooth import WINDOW
from streamfix.faces.track import MAX_GAP, Hit, Track, Tracker
from streamfix.faces.trust import SMALL, landmark_trust
from streamfix.types import Face, Frame, Image, Placement

_HOLD = 3
"""Frames without a face that are taken for a slip of the detector: strength stays; then it fades until MAX_GAP."""
_LEAST_TICK = 1e-3
_URGENT = 2
"""Frames between detections while a face appears or is out of sight."""
_JUDGED = 3
"""The same while a small face is followed: landmarks that waver show in detections alone, see landmark_trust."""
_LOSS = 1.0 / (MAX_GAP + 1 - _HOLD)
"""Of the strength from frame to frame: a face that is lost has faded when its coasting ends, whatever the fade."""


@dataclass(slots=True)
class _Followed:
    """State of one track from frame to frame. found: its latest faces that a detector found, not optical flow."""

    filter: SimilarityFilter = field(default_factory=SimilarityFilter)
    found: deque[Hit] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))
    strength: float = 0.0

    def trust(self, position: int) -> float:
        """How far the landmarks are to be believed, by all that was found until now."""
        hits = {hit.position: hit for hit in self.found}
        every = (max(hits) - min(hits)) / (len(hits) - 1) if len(hits) > 1 else 1.0
        return landmark_trust(hits, position, every=every)

    @property
    def small(self) -> bool:
        """Whether it is of a size at which landmarks are judged."""
        return bool(self.found) and self.found[-1].sample.size < SMALL[1]


class LiveFollower:
    """Causal counterpart of `follow`: One-Euro smoothing, coasting through MAX_GAP frames, fades limited in slope.

    How far a face is restored (score, size, yaw, trust in its landmarks) is told by the functions of `follow`, from the
    frames so far. fade: seconds over which a face that appears, or is chosen, comes up to its strength. select: which tracks to restore.
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

        More often than that while a face appears, is lost, or is small; on the first frame in any case.
        """
        if self._urgent:
            every = min(every, _URGENT)
        elif any(state.small for state in self._followed.values()):
            every = min(every, _JUDGED)
        return self._position < 0 or self._since + 1 >= every

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
        detected = faces is not None
        self._since = 0 if detected else self._since + 1
        if faces is None:
            faces = [] if cut or before is None else self._carried(before, grey, scale)
        self._position += 1
        self._tracker.step(faces, time=time, cut=cut)
        self._tracker.forget(self._position)
        alive = [t for t in self._tracker.tracks if not t.closed]
        self._followed = {t.id: self._followed.get(t.id) or _begun(t) for t in alive}
        placements = [self._place(track, time, detected) for track in alive]
        self._urgent = self._tracker.unsettled
        return self._faded(frame, placements, elapsed)

    def _place(self, track: Track, time: float, detected: bool) -> Placement:
        """Where it lies, with the strength that it should have."""
        state, now = self._followed[track.id], self._position
        hit = track.hits.get(now)
        if hit is None:
            place = state.filter.coast(time=time)
        else:
            place = state.filter.update(hit.sample.similarity, size=hit.sample.size, time=time)
            if detected:
                state.found.append(hit)
        near = {p: h for p, h in track.hits.items() if p >= now - WINDOW} or {h.position: h for h in track.recent()}
        trust = state.trust(now)
        left = min(max((MAX_GAP + 1 - (now - track.last)) * _LOSS, 0.0), 1.0)
        known = mean_embedding(near)
        return Placement(
            track_id=track.id,
            matrix=place.matrix(),
            strength=left * trust * quality(near, track, now),
            face=hit.face if hit is not None else None,
            embedding=track.embedding if known is None else known,
            trust=trust,
        )

    def _carried(self, before: Grey, now: Grey, scale: float) -> list[Face]:
        """Faces of confirmed tracks seen in the frame before; what is not sure to be a face is left to the detector."""
        tracks = [t for t in self._tracker.tracks if not t.closed and t.last == self._position]
        moved = carry(before, now, [t.hits[t.last].face for t in tracks], scale=scale)
        return [face for face in moved if face is not None]

    def _faded(self, frame: Frame, placements: list[Placement], elapsed: float) -> list[Placement]:
        """Those that are chosen, or still fade out; one limit on the slope of all that bears on a strength together."""
        if self.select is not None:
            self._current = self.select.choose(frame, placements, current=self._current)
        step = min(elapsed / self._fade, MOST_STEP) if self._fade > 0 else 1.0
        result = []
        for placement in placements:
            share = 1.0
            if self.select is not None:
                choice = self._current.get(placement.track_id)
                share = choice.strength if choice is not None else 0.0
            state = self._followed[placement.track_id]
            fall = step if placement.face is not None else max(step, _LOSS)
            wanted = min(max(placement.strength * share, state.strength - fall), state.strength + step)
            state.strength = wanted
            if share > 0 or wanted > 0:
                result.append(replace(placement, strength=wanted))
        return result


def _begun(track: Track) -> _Followed:
    """Until a track is confirmed, optical flow carries it nowhere: all that it has was found."""
    state = _Followed()
    state.found.extend(track.hits[p] for p in sorted(track.hits))
    return state
