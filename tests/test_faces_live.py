"""Following faces without look ahead: One-Euro, optical flow between detections, coasting, fades."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from face_scenes import by_id, centre, face, similarity
from hypothesis import given
from hypothesis import strategies as st

from streamfix.faces.flow import carry, working
from streamfix.faces.live import LiveFollower
from streamfix.faces.one_euro import SimilarityFilter
from streamfix.faces.select import SelectLargest
from streamfix.faces.track import MAX_GAP
from streamfix.types import Face, Frame

FPS = 30
BLANK = np.full((480, 640, 3), 90, dtype=np.uint8)


def frame(number: int) -> Frame:
    picture = av.VideoFrame(640, 480, "gray")
    return Frame(picture=picture, index=number, pts=number, time_base=Fraction(1, FPS))


def followed(faces, *, image=BLANK, **options):
    follower = LiveFollower(**options)
    return [follower.step(frame(i), image, found) for i, found in enumerate(faces)]


def test_the_same_place_comes_out_bit_for_bit():
    smooth = SimilarityFilter()
    place = similarity(200.3, 100.7, 80.0, 0.1)
    for number in range(20):
        assert smooth.update(place, size=80.0, time=number / FPS) == place


def test_noise_of_a_still_face_is_halved_and_a_moving_face_hardly_lags():
    rng = np.random.default_rng(0)
    smooth, out = SimilarityFilter(), []
    for number in range(300):
        measured = similarity(200 + rng.normal(0, 0.5), 100 + rng.normal(0, 0.5), 100 * np.exp(rng.normal(0, 0.01)))
        out.append(smooth.update(measured, size=100, time=number / FPS))
    assert np.std([o.cx for o in out[30:]]) < 0.25
    assert np.std([o.log_scale for o in out[30:]]) < 0.004
    smooth = SimilarityFilter()
    for number in range(60):  # one face size a second
        got = smooth.update(similarity(100 + 100 * number / FPS, 100), size=100, time=number / FPS)
    assert abs(got.cx - (100 + 100 * 59 / FPS)) < 1.5


@given(st.floats(0.005, 0.2), st.floats(-3, 3))
def test_the_filter_stays_between_old_and_new_whatever_the_time_between(elapsed, angle):
    smooth = SimilarityFilter()
    smooth.update(similarity(100, 100, angle=angle), size=100, time=0.0)
    got = smooth.update(similarity(110, 100, angle=angle + 0.2), size=100, time=elapsed)
    assert 100 <= got.cx <= 110
    assert angle - 1e-9 <= got.angle <= angle + 0.2 + 1e-9


def test_a_face_fades_in_and_keeps_its_id():
    frames = followed([[face(200 + i, 200)] for i in range(30)])
    tracks = by_id(frames)
    assert list(tracks) == [0]
    strengths = [p.strength for _, p in sorted(tracks[0].items())]
    assert strengths[0] < 0.2
    assert strengths[-1] == 1.0
    assert max(np.diff(strengths)) <= 4 / FPS + 1e-9
    assert abs(centre(tracks[0][29])[0] - 229) < 1.0


def test_a_gap_is_coasted_through_and_a_loss_fades_before_it_ends():
    lost = 20
    frames = followed([[face(200, 200)]] * lost + [[]] * 20)
    strengths = {i: p.strength for i, placements in enumerate(frames) for p in placements}
    assert strengths[lost + 1] == 1.0  # a slip of the detector does not show
    assert max(strengths) == lost + MAX_GAP - 1
    assert strengths[max(strengths)] < 0.25
    frames = followed([[face(200, 200)]] * 20 + [[]] * 5 + [[face(202, 200)]] * 20)
    assert list(by_id(frames)) == [0]


def test_a_cut_ends_every_track():
    follower = LiveFollower()
    for i in range(20):
        placements = follower.step(frame(i), BLANK, [face(200, 200)])
    assert placements
    assert follower.step(frame(20), BLANK, [face(400, 200)], cut=True) == []


def test_detection_is_asked_for_at_its_cadence_and_more_often_while_a_face_appears():
    follower, asked = LiveFollower(), []
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    for i in range(40):
        due = follower.wants_detection(6)
        asked.append(due)
        follower.step(frame(i), image, [face(200, 200)] if due else None)
    assert asked[0]
    assert sum(asked[:6]) >= 3
    assert 3 <= sum(asked[16:]) <= 5


@pytest.mark.parametrize(("dx", "dy", "zoom"), [(3.0, -2.0, 1.0), (0.0, 0.0, 1.04), (-6.5, 4.25, 0.97)])
def test_flow_carries_a_face_with_the_picture(astronaut, dx, dy, zoom):
    before = cv2.resize(astronaut, (640, 640))[:480]
    matrix = np.array([[zoom, 0, dx], [0, zoom, dy]])
    now = cv2.warpAffine(before, matrix, (640, 480), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    (a, scale), (b, _) = working(before), working(now)
    start = face(280, 150, 110)
    (moved,) = carry(a, b, [start], scale=scale)
    expected = start.landmarks * zoom + (dx, dy)
    assert np.abs(moved.landmarks - expected).max() < 0.5
    assert moved.score == start.score


def test_flow_keeps_a_still_face_bit_for_bit_and_gives_up_where_there_is_nothing_to_hold_on_to(astronaut):
    grey, scale = working(astronaut)
    start = face(225, 120, 90)
    (still,) = carry(grey, grey, [start], scale=scale)
    assert np.array_equal(still.landmarks, start.landmarks)
    flat = np.full_like(grey, 80)
    assert carry(flat, flat, [start], scale=scale) == [None]
    other = np.random.default_rng(1).integers(0, 255, grey.shape, dtype=np.uint8)
    assert carry(grey, other, [start], scale=scale) == [None]


def test_flow_between_detections_follows_as_well_as_detection(astronaut):
    """A panned portrait: detected every fifth frame, the crop stays within 1.5 % of the face's size of the truth."""
    follower, errors = LiveFollower(), []
    large = cv2.resize(astronaut, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    for i in range(45):
        x, y = 3.0 * i, 1.5 * i
        image = cv2.warpAffine(large, np.array([[1.0, 0, -x], [0, 1.0, -y]]), (640, 480))
        due = follower.wants_detection(5)
        truth = face(450 - x, 240 - y, 200)
        placements = follower.step(frame(i), image, [truth] if due else None)
        if i > 10:
            errors.append(np.linalg.norm(centre(placements[0]) - (450 - x, 240 - y)))
    assert max(errors) < 3.0


def texture() -> np.ndarray:
    """A picture in which optical flow finds its way."""
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    return cv2.GaussianBlur(image, (0, 0), 2)


@pytest.mark.parametrize("every", [1, 3, 6])
@pytest.mark.parametrize(("size", "share", "restored"), [(30, 0.002, True), (30, 0.03, False), (90, 0.03, True)])
def test_small_faces_with_wavering_landmarks_are_left_however_rarely_they_are_searched(every, size, share, restored):
    follower, rng, image, out = LiveFollower(), np.random.default_rng(1), texture(), []
    for i in range(60):
        due = follower.wants_detection(every)
        one = face(200, 200, size)
        noise = rng.normal(0, share * size, (5, 2)).astype(np.float32)
        found = [Face(box=one.box, landmarks=one.landmarks + noise, score=one.score)] if due else None
        out += [p.strength for p in follower.step(frame(i), image, found) if i >= 30]
    assert len(out) >= 29 or not restored  # what is left need not be placed
    assert np.mean(out) > 0.9 if restored else np.mean([*out, 0.0]) < 0.25


def turned(share: float) -> Face:
    """A face whose nose lies towards one eye: 0 frontal, 1 beyond a profile."""
    one = face(200, 200, 120)
    landmarks = one.landmarks.copy()
    landmarks[2, 0] += share * 2.5 * (landmarks[1, 0] - landmarks[0, 0])
    return Face(box=one.box, landmarks=landmarks, score=one.score)


def test_a_face_that_turns_away_fades_out_and_in_again_without_a_pop():
    turns = [*[0.0] * 30, *np.linspace(0, 1, 9), *[1.0] * 31, *np.linspace(1, 0, 9), *[0.0] * 31]
    strengths = [placements[0].strength if placements else 0.0 for placements in followed([[turned(t)] for t in turns])]
    assert strengths[29] == 1.0
    assert strengths[69] == 0.0
    assert strengths[-1] == 1.0
    assert np.abs(np.diff(strengths)).max() <= 4 / FPS + 1e-9


def test_a_choice_and_a_fade_together_are_no_steeper_than_one():
    """A second, larger face appears and is chosen: the first one's strength goes as fast as any fade, not faster."""
    frames = followed(
        [[face(150, 200, 80)]] * 30 + [[face(150, 200, 80), face(400, 200, 200)]] * 40, select=SelectLargest()
    )
    steps = [np.diff([0.0, *(p.strength for _, p in sorted(track.items()))]) for track in by_id(frames).values()]
    assert len(steps) == 2
    assert max(np.abs(s).max() for s in steps) <= 4 / FPS + 1e-9
    assert [round(p.strength, 3) for p in frames[-1]] == [1.0]


def test_only_chosen_faces_are_placed():
    frames = followed([[face(150, 200, 60), face(400, 200, 140)]] * 30, select=SelectLargest())
    assert len(frames[-1]) == 1
    assert abs(centre(frames[-1][0])[0] - 400) < 1
