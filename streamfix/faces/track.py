"""Who is who from frame to frame: association, birth, coasting, death."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streamfix.faces._candidates import iou
from streamfix.faces.align import Similarity, fit_similarity, wrapped
from streamfix.faces.smooth import WINDOW, Sample
from streamfix.types import Face

BIRTH_SCORE = 0.7
"""A face at least this sure may begin a track."""
CONTINUE_SCORE = 0.4
"""A face at least this sure may continue a track whose prediction it overlaps."""
CONFIRM_HITS = 3
CONFIRM_SCORE = 0.65
"""So many faces, with this mean score at least (the best count), make a track of a proposal within CONFIRM_FRAMES frames."""
CONFIRM_FRAMES = 6
MAX_GAP = 8
"""Frames without a face that a track coasts through; longer, and it is dead."""
REMEMBER = 45
"""Frames after its death in which a face at the same place, or with the same embedding, takes the track's id again."""
EDGE = 2
"""Frames by which a track may miss the beginning or the end of its scene and still count as there from or to it."""

_MIN_IOU = 0.15
_MIN_IOU_WEAK = 0.3
_MAX_DISTANCE = 0.9
_MAX_LOG_SCALE = 0.6
_MAX_TURN = 1.0
_VELOCITY_HITS = 4
_DAMPING = 0.85
_SAME_PERSON = 0.45
_OTHER_PERSON = 0.05
_CROSS_TALK = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A face that belongs to a track. position: the frame's number in the stream of detections, from 0."""

    position: int
    face: Face
    sample: Sample


@dataclass(slots=True, kw_only=True)
class Track:
    """One person's faces over time, without a gap longer than MAX_GAP.

    id: -1 until confirmed. first, last: positions of the first and the latest face.
    hits: recent faces by position (older ones are forgotten). shown_from: first position at which the track may be
    shown. from_start: it is there from the beginning of its scene. to_end: it was there at the end of its scene.
    closed: no face will be added. out_gain: state of the fade-out, kept by `follow`.
    """

    first: int
    last: int
    from_start: bool
    id: int = -1
    hits: dict[int, Hit] = field(default_factory=dict)
    shown_from: int = 0
    total: int = 0
    embedding: npt.NDArray[np.float32] | None = None
    to_end: bool = False
    scene_end: int | None = None
    closed: bool = False

    @property
    def confirmed(self) -> bool:
        """Whether enough faces have been seen."""
        return self.id >= 0

    @property
    def convincing(self) -> bool:
        """Whether the faces seen so far, all of them still held, make a track."""
        best = sorted((hit.face.score for hit in self.hits.values()), reverse=True)[:CONFIRM_HITS]
        return len(best) == CONFIRM_HITS and sum(best) >= CONFIRM_HITS * CONFIRM_SCORE

    def add(self, hit: Hit) -> None:
        """Take a face."""
        self.hits[hit.position] = hit
        self.last = hit.position
        self.total += 1
        new = hit.face.embedding
        if new is not None:
            old = self.embedding
            mixed = new if old is None else 0.9 * old + 0.1 * new
            self.embedding = (mixed / max(float(np.linalg.norm(mixed)), 1e-6)).astype(np.float32)

    def restrict(self, since: int) -> None:
        """Forget what was seen before a position, as if the track had begun later: a proposal is judged by its latest frames."""
        self.hits = {p: hit for p, hit in self.hits.items() if p >= since}
        self.total = len(self.hits)
        if self.hits:
            self.first = min(self.hits)

    def recent(self) -> list[Hit]:
        """The last few faces, oldest first."""
        return [self.hits[p] for p in sorted(self.hits)[-_VELOCITY_HITS:]]

    def predict(self, position: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
        """Box (4,), crop centre (2,) and log scale at a later position: constant velocity that dies out in a gap."""
        hits = self.recent()
        latest = hits[-1]
        centre = np.array([latest.sample.similarity.cx, latest.sample.similarity.cy])
        box = latest.face.box.astype(np.float64)
        if len(hits) > 1:
            steps = np.array([h.position for h in hits], dtype=np.float64)
            places = np.array([(h.sample.similarity.cx, h.sample.similarity.cy) for h in hits])
            steps -= steps.mean()
            velocity = steps @ places / float(steps @ steps)
            ahead = position - latest.position
            shift = velocity * (1 - _DAMPING**ahead) / (1 - _DAMPING)
            centre, box = centre + shift, box + np.tile(shift, 2)
        return box, centre, latest.sample.similarity.log_scale


class Tracker:
    """Gives every face a track. Feed `step` with the frames in order, then `finish`.

    lookahead: frames by which the results are read later than they are fed; a track is shown from its first face on when it is
    confirmed within that time. The faces of a frame are taken best score first, so their order does not matter.
    """

    def __init__(self, *, lookahead: int) -> None:
        self._lookahead = lookahead
        self._position = -1
        self._scene_start = 0
        self._next_id = 0
        self._active: list[Track] = []
        self._lost: list[Track] = []
        self.tracks: list[Track] = []
        """Confirmed tracks that have not been forgotten, in order of confirmation."""

    def step(self, faces: Sequence[Face], *, time: float, cut: bool) -> None:
        """The faces of the next frame. time: seconds. cut: the frame begins a new scene, and no track lives through that."""
        self._position += 1
        if cut:
            self._end_scene()
        hits = [h for h in (self._hit(f, time) for f in sorted(faces, key=lambda f: -f.score)) if h is not None]
        strong = [h for h in hits if h.face.score >= BIRTH_SCORE]
        weak = [h for h in hits if CONTINUE_SCORE <= h.face.score < BIRTH_SCORE]
        free = self._associate(self._active, strong, _MIN_IOU)
        unmatched = [t for t in self._active if t.last != self._position]
        self._associate(unmatched, weak, _MIN_IOU_WEAK)
        self._bury()
        for hit in free:
            self._birth(hit)
        for track in self._active:
            if not track.confirmed and track.convincing:
                self._confirm(track)

    @property
    def unsettled(self) -> bool:
        """Whether a face is being confirmed, or one that is followed is out of sight."""
        return any(not track.confirmed or track.last != self._position for track in self._active)

    def finish(self) -> None:
        """No frame follows."""
        self._position += 1
        self._end_scene()

    def forget(self, before: int) -> None:
        """Drop what no frame from that position on needs."""
        keep = before - WINDOW - MAX_GAP
        self.tracks = [t for t in self.tracks if not t.closed or max(t.last, (t.scene_end or 0) - 1) >= before]
        for track in self._active + self.tracks:
            # the latest faces stay for the prediction, however long ago they were
            for position in sorted(track.hits)[:-_VELOCITY_HITS]:
                if position >= keep:
                    break
                del track.hits[position]

    def _hit(self, face: Face, time: float) -> Hit | None:
        try:
            similarity = Similarity.of(fit_similarity(face.landmarks))
        except ValueError:  # landmarks in one point: nothing to align
            return None
        x1, y1, x2, y2 = face.box.astype(np.float64).tolist()
        trust = float(np.clip((face.score - 0.3) / 0.4, 0.05, 1.0))
        sample = Sample(
            time=time, similarity=similarity, box=((x1 + x2) / 2, (y1 + y2) / 2), size=max(face.size, 1.0), trust=trust
        )
        return Hit(position=self._position, face=face, sample=sample)

    def _associate(self, tracks: Sequence[Track], hits: Sequence[Hit], min_iou: float) -> list[Hit]:
        """Pair tracks with faces, best affinity first; gives the faces that are left."""
        pairs = []
        for i, track in enumerate(tracks):
            prediction = track.predict(self._position)
            for j, hit in enumerate(hits):
                affinity = _affinity(track, prediction, hit, min_iou)
                if affinity is not None:
                    pairs.append((-affinity, i, j))
        taken: set[int] = set()
        for _, i, j in sorted(pairs):
            if tracks[i].last != self._position and j not in taken:
                taken.add(j)
                tracks[i].add(hits[j])
        return [hit for j, hit in enumerate(hits) if j not in taken]

    def _bury(self) -> None:
        alive = []
        for track in self._active:
            if not track.confirmed:
                track.restrict(self._position - CONFIRM_FRAMES + 1)
                track.from_start = track.first - self._scene_start <= EDGE
            hopeless = not track.confirmed and not any(h.face.score >= BIRTH_SCORE for h in track.hits.values())
            if self._position - track.last > MAX_GAP or hopeless:
                track.closed = True
                if track.confirmed:
                    self._lost.append(track)
            else:
                alive.append(track)
        self._active = alive
        self._lost = [t for t in self._lost if self._position - t.last <= REMEMBER]

    def _birth(self, hit: Hit) -> None:
        for track in self._active:
            # a second box on a face that has its track is no second person
            if track.last == self._position and _covered(hit.face, track.hits[track.last].face) > _CROSS_TALK:
                return
        start = hit.position - self._scene_start <= EDGE
        track = Track(
            first=hit.position,
            last=hit.position,
            from_start=start,
        )
        track.add(hit)
        self._active.append(track)

    def _confirm(self, track: Track) -> None:
        again = max((t for t in self._lost if _same_again(t, track)), key=lambda t: t.last, default=None)
        if again is not None:
            self._lost.remove(again)
            track.id = again.id
        else:
            track.id = self._next_id
            self._next_id += 1
        track.shown_from = max(track.first, self._position - self._lookahead)
        self.tracks.append(track)

    def _end_scene(self) -> None:
        for track in self._active:
            # a scene too short to confirm anything, a still image in the extreme: a face in all of its frames will do
            whole = track.first == self._scene_start and track.total == self._position - self._scene_start
            if not track.confirmed and whole:
                self._confirm(track)
            track.closed, track.scene_end = True, self._position
            track.to_end = self._position - 1 - track.last <= EDGE
        self._active, self._lost = [], []
        self._scene_start = self._position


def _affinity(
    track: Track,
    prediction: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float],
    hit: Hit,
    min_iou: float,
) -> float | None:
    """How well a face continues a track, None where it cannot."""
    box, centre, log_scale = prediction
    similarity, size = hit.sample.similarity, hit.sample.size
    overlap = float(iou(box, hit.face.box.astype(np.float64)[None])[0])
    distance = float(np.hypot(similarity.cx - centre[0], similarity.cy - centre[1])) / size
    # without overlap a strong face may still be the same one after a jolt of the camera, if nothing else has changed
    near = min_iou <= _MIN_IOU and distance <= _MAX_DISTANCE
    if abs(similarity.log_scale - log_scale) > _MAX_LOG_SCALE or (overlap < min_iou and not near):
        return None
    likeness = 0.0
    if track.embedding is not None and hit.face.embedding is not None:
        cosine = float(track.embedding @ hit.face.embedding)
        if cosine < _OTHER_PERSON and overlap < 0.5:
            return None
        likeness = 2.0 * cosine  # two people who change places at one moment differ in nothing else
    return overlap + max(0.0, 1.0 - distance) + likeness


def _covered(face: Face, other: Face) -> float:
    """Share of the smaller box that lies in the other."""
    a, b = face.box.astype(np.float64), other.box.astype(np.float64)
    common = float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0.0)))
    return common / max(min(face.size, other.size) ** 2, 1e-6)


def _same_again(old: Track, new: Track) -> bool:
    """Whether a track that has just been confirmed is one that died a moment ago."""
    if new.first <= old.last:
        return False  # both in view at once
    if old.embedding is not None and new.embedding is not None:
        return float(old.embedding @ new.embedding) >= _SAME_PERSON
    before, after = old.hits[old.last].sample, new.hits[min(new.hits)].sample
    a, b = before.similarity, after.similarity
    distance = float(np.hypot(a.cx - b.cx, a.cy - b.cy)) / max(before.size, after.size)
    turn = abs(wrapped(a.angle - b.angle))
    return distance <= _MAX_DISTANCE and abs(a.log_scale - b.log_scale) <= _MAX_LOG_SCALE and turn <= _MAX_TURN
