"""From the faces of each frame to where every followed face lies, smoothed and faded: the tracking stage of the pipeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from streamfix.errors import UsageError
from streamfix.faces.align import frontal, ramp
from streamfix.faces.select import Choices, Selector
from streamfix.faces.smooth import WINDOW, smooth
from streamfix.faces.track import MAX_GAP, Hit, Track, Tracker
from streamfix.faces.trust import landmark_trust, still_trust
from streamfix.types import Face, Frame, Placement

SCORE_RAMP = (0.35, 0.6)
"""Mean score of a face over its neighbourhood at which restoration begins, and from which it is full."""
SIZE_RAMP = (10.0, 18.0)
"""The same for the face's size in source pixels: below it nothing is there to restore from."""
MOST_STEP = 0.2
"""Of the strength from frame to frame: fades take longer than asked for where frames are rare, or one is long in coming."""
_SCORE_FRAMES = 3.0
_LEAST_TICK = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """A frame with its faces (stored coordinates).

    cut: this frame begins a new scene. repeated: its picture is that of the frame before; its crops stay where they
    were then, so that a slow camera in a fast file is restored once a picture.
    """

    frame: Frame
    faces: list[Face]
    cut: bool
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Waiting:
    frame: Frame
    time: float
    repeated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """The frame that is placed: its time, and by the clock of the fades its time, how far ahead is known, seconds per frame."""

    time: float
    clock: float
    ahead: float
    newest: int
    elapsed: float
    tick: float


@dataclass(frozen=True, slots=True)
class _Step:
    """How far one track's strength may rise and fall to this frame; None where it begins and may be anything."""

    rise: float | None
    fall: float


def follow(
    detected: Iterable[Detected], *, lookahead: int = 12, fade: float = 0.25, select: Selector | None = None
) -> Iterator[tuple[Frame, list[Placement]]]:
    """Follow faces through a stream of frames; for each frame, in order, where they lie.

    lookahead: a frame comes out once that many further ones (or the end) are seen; memory is bounded by it. 0 is causal.
    fade: seconds over which a face that appears or disappears within a scene is faded; one that is there when the source or a
    scene begins or ends is not. select: which tracks to restore; the others are left out once they have faded.
    Equal frames give equal matrices, bit for bit; the crop of a steadily moving face has no lag. A matrix depends
    on the faces within WINDOW frames to each side. Raises UsageError for a negative lookahead or fade.
    """
    if lookahead < 0 or fade < 0:
        raise UsageError(f"lookahead (frames) and fade (seconds) cannot be negative, got {lookahead = }, {fade = }")
    follower = _Follower(lookahead=lookahead, fade=fade, select=select)
    for entry in detected:
        yield from follower.push(entry)
    yield from follower.finish()


class _Follower:
    def __init__(self, *, lookahead: int, fade: float, select: Selector | None) -> None:
        self._lookahead, self._fade, self._select = lookahead, fade, select
        self._tracker = Tracker(lookahead=lookahead)
        self._coasting = max(MAX_GAP - lookahead, 0)  # frames after the last face in which its loss is not yet certain
        self._waiting: deque[_Waiting] = deque()
        self._position = 0  # of the first waiting frame
        self._clock: float | None = None
        # The clock of the fades: it runs with time, but by MOST_STEP of a fade a frame at most. By position, as far back as
        # anything fades or coasts.
        self._clocks: dict[int, float] = {}
        self._clocked = 0.0
        self._previous: float | None = None
        self._strengths: dict[int, float] = {}  # of each track in the frame before
        self._current: Choices = {}
        self._before: dict[int, Placement] = {}

    def push(self, entry: Detected) -> Iterator[tuple[Frame, list[Placement]]]:
        # broken files repeat or step back in time; what divides by time needs a clock that advances
        time = entry.frame.time if self._clock is None else max(entry.frame.time, self._clock + _LEAST_TICK)
        elapsed = 0.0 if self._clock is None else time - self._clock
        self._clocked += min(elapsed, self._fade * MOST_STEP) if self._fade > 0 else elapsed
        self._clocks[self._position + len(self._waiting)] = self._clocked
        self._clock = time
        self._tracker.step(entry.faces, time=time, cut=entry.cut)
        self._waiting.append(_Waiting(entry.frame, time, entry.repeated))
        if len(self._waiting) > self._lookahead:
            yield self._emit()

    def finish(self) -> Iterator[tuple[Frame, list[Placement]]]:
        self._tracker.finish()
        while self._waiting:
            yield self._emit()

    def _emit(self) -> tuple[Frame, list[Placement]]:
        now = self._waiting[0]
        seen = len(self._waiting) - 1
        newest = self._position + seen
        clock = self._clocks[self._position]
        ahead = self._clocks[newest] - clock
        elapsed = 0.0 if self._previous is None else clock - self._previous
        tick = ahead / seen if seen else elapsed
        ahead += (self._lookahead - seen) * tick  # as if the end of the source were further frames without a face
        placements = []
        steps = {}
        for track in self._tracker.tracks:
            if not track.shown_from <= self._position <= self._shown_to(track, newest):
                continue
            moment = _Moment(time=now.time, clock=clock, ahead=ahead, newest=newest, elapsed=elapsed, tick=tick)
            placements.append(self._place(track, moment))
            steps[track.id] = self._step(track, moment)
        if now.repeated:
            placements = [replace(p, matrix=self._before.get(p.track_id, p).matrix) for p in placements]
        self._before = {p.track_id: p for p in placements}
        placements = self._faded(now.frame, placements, steps)
        self._waiting.popleft()
        self._position += 1
        self._previous = clock
        since = self._position - MAX_GAP - 1
        self._clocks = {p: c for p, c in self._clocks.items() if p >= since or c >= clock - self._fade}
        self._tracker.forget(self._position)
        alive = {track.id for track in self._tracker.tracks}
        self._strengths = {key: value for key, value in self._strengths.items() if key in alive}
        return now.frame, placements

    def _shown_to(self, track: Track, newest: int) -> int:
        """Last position at which the track may be shown, as far as is known."""
        if track.scene_end is not None:
            return track.scene_end - 1 if track.to_end else min(track.last + self._coasting, track.scene_end - 1)
        lost = track.closed or newest - track.last > MAX_GAP
        return track.last + (self._coasting if lost else MAX_GAP)

    def _step(self, track: Track, now: _Moment) -> _Step:
        rise = now.elapsed / self._fade if self._fade > 0 else 1.0
        span = self._span(now)
        return _Step(None if self._position == track.shown_from else rise, now.elapsed / span if span > 0 else 1.0)

    def _span(self, now: _Moment) -> float:
        """Seconds in which a face fades out."""
        return min(self._fade, now.ahead + self._coasting * now.tick)

    def _place(self, track: Track, now: _Moment) -> Placement:
        """Where it lies, with the strength that it should have."""
        near = range(self._position - WINDOW, self._position + WINDOW + 1)
        hits = {p: track.hits[p] for p in near if p in track.hits}
        here = hits.get(self._position)
        if not hits:  # deep in a gap that ends beyond the window, or coasting
            hits = {h.position: h for h in track.recent()}
        samples = [hits[p].sample for p in sorted(hits)]
        similarity = smooth(samples, time=now.time, measured=here.sample if here is not None else None)
        wanted = min(self._fade_in(track, now), self._fade_out(track, now))
        trust = landmark_trust(hits, self._position)
        wanted *= trust * quality(hits, track, self._position)
        return Placement(
            track_id=track.id,
            matrix=similarity.matrix(),
            strength=wanted,
            face=here.face if here is not None else None,
            embedding=mean_embedding(hits),
            trust=trust,
        )

    def _fade_in(self, track: Track, now: _Moment) -> float:
        if track.from_start or self._fade == 0 or track.first not in self._clocks:
            return 1.0
        return min(max((now.clock - self._clocks[track.first]) / self._fade, 0.0), 1.0)

    def _fade_out(self, track: Track, now: _Moment) -> float:
        span = self._span(now)
        if track.to_end or (track.last == now.newest and not track.closed) or span <= 0:
            return 1.0
        # fade towards the last face seen so far, or towards the end of coasting where a death is seen late; where it
        # turns out not to be the last, the strength comes back gently
        left = self._clocks[track.last] - now.clock + max(span - now.ahead, 0.0)
        return min(max(left / span, 0.0), 1.0)

    def _faded(self, frame: Frame, placements: list[Placement], steps: dict[int, _Step]) -> list[Placement]:
        """Those that are chosen, or still fade out, with a strength that does not pop.

        One limit on the slope of all that bears on it together: two fades at once would be twice as fast.
        """
        if self._select is not None:
            self._current = self._select.choose(frame, placements, current=self._current)
        result = []
        for placement in placements:
            share = 1.0
            if self._select is not None:
                choice = self._current.get(placement.track_id)
                share = choice.strength if choice is not None else 0.0
            wanted, step = placement.strength * share, steps[placement.track_id]
            before = self._strengths.get(placement.track_id)
            if before is not None and step.rise is not None:
                wanted = min(max(wanted, before - step.fall), before + step.rise)
            self._strengths[placement.track_id] = wanted
            if share > 0 or wanted > 0:
                result.append(replace(placement, strength=wanted))
        return result


def mean_embedding(hits: dict[int, Hit]) -> npt.NDArray[np.float32] | None:
    """Who the face is, from all faces near a frame: that of one frame may be blurred, or half hidden by a hand."""
    known = [hit.face.embedding for hit in hits.values() if hit.face.embedding is not None]
    if not known:
        return None
    total = np.sum(known, axis=0)
    length = float(np.linalg.norm(total))
    return np.asarray(total / length, np.float32) if length > 0 else None


def quality(hits: dict[int, Hit], track: Track, position: int) -> float:
    """0..1: how far restoration makes sense, from scores and sizes around a position; frames without a face count as score 0."""
    places = [p for p in range(position - WINDOW, position + WINDOW + 1) if track.first <= p <= track.last]
    if not places:
        places = sorted(hits)
    weights = np.array([np.exp(-0.5 * ((p - position) / _SCORE_FRAMES) ** 2) for p in places])
    scores = np.array([hits[p].face.score if p in hits else 0.0 for p in places])
    seen = np.array([p in hits for p in places])
    sizes = np.array([hits[p].sample.size if p in hits else 0.0 for p in places])
    total = float((weights * seen).sum())
    turned = np.array([frontal(hits[p].face.landmarks) if p in hits else 0.0 for p in places])
    size, facing = (float((weights * v).sum()) / total if total > 0 else 0.0 for v in (sizes, turned))
    return ramp(float(weights @ scores / weights.sum()), *SCORE_RAMP) * ramp(size, *SIZE_RAMP) * facing


def still_quality(face: Face) -> float:
    """The same, times the trust in its landmarks, for a face of a picture that stands alone."""
    return ramp(face.size, *SIZE_RAMP) * frontal(face.landmarks) * still_trust(face)
