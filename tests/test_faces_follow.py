"""Tracks, smoothing and fades, as the pipeline sees them."""

import numpy as np
import pytest
from face_scenes import FPS, by_id, centre, face, placed, scene, similarity
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfix.errors import UsageError
from streamfix.faces import follow
from streamfix.faces.align import Similarity
from streamfix.faces.follower import MOST_STEP, _Follower
from streamfix.faces.smooth import WINDOW
from streamfix.faces.track import CONFIRM_FRAMES, MAX_GAP

LONG = 60


# --- freeze and lag ---


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(100, 500),
    y=st.floats(100, 400),
    size=st.floats(20, 300),
    angle=st.floats(-3.1, 3.1),
    missing=st.sets(st.integers(4, 28), max_size=6),
)
def test_a_frozen_face_gives_the_same_matrix_everywhere(x, y, size, angle, missing):
    one = face(x, y, size, angle=angle)
    frames = placed(scene([[] if i in missing else [one] for i in range(30)]))
    matrices = [p.matrix for placements in frames for p in placements]
    assert len(matrices) == 30
    assert all((m == matrices[0]).all() for m in matrices)


@pytest.mark.parametrize("angle", [0.0, np.pi / 2, np.pi])
@pytest.mark.parametrize("pts", [None, np.cumsum([1 + (i * 7) % 4 for i in range(LONG)]).tolist()])
def test_steady_motion_has_no_lag_from_the_first_frame_to_the_last(angle, pts):
    times = np.arange(LONG) if pts is None else np.array(pts)
    truth = [similarity(100 + 2.5 * t, 300 - 1.5 * t, 80 * np.exp(0.003 * t), angle + 0.01 * t) for t in times]
    faces = [[face(s.cx, s.cy, 0.6 * 512 * np.exp(s.log_scale), angle=s.angle)] for s in truth]
    frames = placed(scene(faces, pts=pts))
    for wanted, (placement,) in zip(truth, frames, strict=True):
        # what is left is the float32 of the landmarks
        np.testing.assert_allclose(centre(placement), (wanted.cx, wanted.cy), atol=2e-3)
        np.testing.assert_allclose(placement.matrix[:, :2], wanted.matrix()[:, :2], atol=1e-4)


def test_a_nodding_head_is_followed():
    nod = 3 * np.sin(2 * np.pi * 2 * np.arange(LONG) / FPS)  # twice a second
    frames = placed(scene([[face(200, 200 + y)] for y in nod]))
    errors = [centre(p)[1] - 200 - y for y, (p,) in zip(nod, frames, strict=True)]
    assert np.abs(errors[WINDOW:-WINDOW]).max() < 0.9  # a plain Gaussian of this width: 1.7


def test_jitter_is_reduced():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.3, (LONG, 2))
    angles = rng.normal(0, 0.01, LONG)
    faces = [[face(200 + n[0], 200 + n[1], angle=a)] for n, a in zip(noise, angles, strict=True)]
    frames = placed(scene(faces))
    centres = np.array([centre(p) for (p,) in frames])
    assert centres.std(axis=0).max() < 0.55 * noise.std(axis=0).min()
    assert np.std([Similarity.of(p.matrix).angle for (p,) in frames]) < 0.5 * angles.std()


@pytest.mark.parametrize("motion", [0.0, 3.0])
def test_one_bad_set_of_landmarks_does_not_move_the_crop(motion):
    faces = [[face(100 + motion * i, 200, slip=(14, -9) if i == 20 else (0, 0))] for i in range(40)]
    frames = placed(scene(faces))
    assert np.abs(centre(frames[20][0]) - (100 + motion * 20, 200)).max() < 0.2
    assert np.abs(centre(frames[19][0]) - (100 + motion * 19, 200)).max() < 0.2


def test_a_jolt_of_the_camera_is_followed():
    # box and landmarks jump together by an eighth of the face and stay: that is motion, not an error
    frames = placed(scene([[face(200 if i < 20 else 212.5, 200)] for i in range(40)]))
    for number in (19, 20):
        assert abs(centre(frames[number][0])[0] - (200 if number < 20 else 212.5)) < 3.5


def test_a_face_across_half_a_turn_does_not_spin():
    angles = [np.pi - 0.05 + 0.005 * i for i in range(30)]
    frames = placed(scene([[face(200, 200, angle=a)] for a in angles]))
    for wanted, (placement,) in zip(angles, frames, strict=True):
        assert abs(np.angle(np.exp(1j * (Similarity.of(placement.matrix).angle - wanted)))) < 1e-4


def test_a_matrix_depends_on_nearby_faces_only():
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.normal(0, 1, (LONG, 2)), axis=0) + 250
    faces = [[face(*p)] for p in walk]
    whole = placed(scene(faces))
    other = [faces[i] if abs(i - 30) <= WINDOW else [face(x + 4, y)] for i, (x, y) in enumerate(walk)]
    assert (placed(scene(other))[30][0].matrix == whole[30][0].matrix).all()
    near = list(faces)
    near[30 + WINDOW] = [face(*(walk[30 + WINDOW] + (2, 0)))]
    assert (placed(scene(near))[30][0].matrix != whole[30][0].matrix).any()


# --- who is who ---


def test_two_people_crossing_keep_their_ids():
    frames = placed(scene([[face(100 + 6 * i, 200, 90), face(460 - 6 * i, 245, 80)] for i in range(LONG)]))
    tracks = by_id(frames)
    assert sorted(tracks) == [0, 1]
    for track in tracks.values():
        direction = np.sign(centre(track[5])[0] - centre(track[0])[0])
        xs = [centre(track[i])[0] for i in range(LONG)]
        assert (np.sign(np.diff(xs)) == direction).all()


def test_a_face_that_gathers_speed_is_not_lost():
    # half as fast again as its own size in the end
    (track,) = by_id(placed(scene([[face(100 + 2.5 * i * i, 200)] for i in range(30)]))).values()
    assert len(track) == 30
    hidden = (20, 21, 22, 23)
    steady = [[] if i in hidden else [face(100 + 45 * i, 200), face(1000, 900)] for i in range(40)]
    assert sorted(len(t) for t in by_id(placed(scene(steady))).values()) == [40, 40]


def test_embeddings_tell_people_apart_where_boxes_do_not():
    a, b = (1.0, 0.0), (0.0, 1.0)
    # they change places from one frame to the next, in the order of a detector that sorts by score
    before = [[face(200, 200, embedding=a), face(260, 200, embedding=b)]] * 20
    after = [[face(260, 200, embedding=a), face(200, 200, embedding=b)]] * 20
    tracks = by_id(placed(scene(before + after)))
    assert len(tracks) == 2
    for track in tracks.values():
        assert {tuple(p.face.embedding) for p in track.values() if p.face is not None} in ({a}, {b})


def test_the_order_of_the_detections_does_not_matter():
    faces = [[face(100 + 3 * i, 200, 90, score=0.9), face(400 - 2 * i, 245, 80, score=0.95)] for i in range(30)]
    one = placed(scene(faces))
    two = placed(scene([present[::-1] for present in faces]))
    for a, b in zip(one, two, strict=True):
        assert [(p.track_id, p.matrix.tolist()) for p in a] == [(p.track_id, p.matrix.tolist()) for p in b]


@pytest.mark.parametrize("gap", [1, 4, MAX_GAP])
def test_an_occlusion_is_bridged_on_the_line_between(gap):
    hidden = range(25, 25 + gap)
    frames = placed(scene([[] if i in hidden else [face(100 + 3 * i, 200)] for i in range(LONG)]))
    (track,) = by_id(frames).values()
    assert sorted(track) == list(range(LONG))
    for i in hidden:
        assert track[i].face is None
        np.testing.assert_allclose(centre(track[i]), (100 + 3 * i, 200), atol=1e-3)


def test_a_longer_absence_is_not_filled_but_the_person_keeps_the_id():
    hidden = range(20, 20 + MAX_GAP + 4)
    frames = placed(scene([[] if i in hidden else [face(200, 200)] for i in range(LONG)]))
    (track,) = by_id(frames).values()
    assert sorted(track) == [i for i in range(LONG) if i not in hidden]
    assert track[19].strength == 0 == track[hidden.stop].strength


def test_somebody_else_after_an_absence_gets_another_id():
    late = 20 + MAX_GAP + 4
    frames = placed(scene([[face(200, 200)] if i < 20 else [face(450, 300)] if i >= late else [] for i in range(50)]))
    assert [sorted(t)[0] for t in by_id(frames).values()] == [0, late]


def test_a_passing_false_detection_makes_no_track():
    frames = placed(scene([[face(200, 200, score=0.9)] if i in (20, 21) else [] for i in range(50)]))
    assert not any(frames)


def test_a_doubtful_detection_makes_no_track_however_long():
    assert not any(placed(scene([[face(200, 200, score=0.66)]] * 50)))
    once = [[face(200, 200, score=0.8 if i % CONFIRM_FRAMES == 0 else 0.45)] for i in range(50)]
    assert not any(placed(scene(once)))


def test_a_hesitant_beginning_is_judged_by_its_latest_frames():
    frames = placed(scene([[face(200, 200)] if i == 0 or i >= 5 else [] for i in range(50)]))
    (track,) = by_id(frames).values()
    assert sorted(track) == list(range(5, 50))


def test_a_doubtful_detection_continues_a_track():
    frames = placed(scene([[face(200 + i, 200, score=0.95 if i < 10 else 0.55)] for i in range(50)]))
    (track,) = by_id(frames).values()
    assert len(track) == 50
    # but not one that lies elsewhere
    frames = placed(scene([[face(200 if i < 10 else 290, 200, score=0.95 if i < 10 else 0.55)] for i in range(50)]))
    (track,) = by_id(frames).values()
    assert max(track) == 9


def test_a_birth_is_filled_in_from_the_first_detection():
    frames = placed(scene([[face(200, 200)] if i >= 20 and i not in (21, 23) else [] for i in range(50)]))
    (track,) = by_id(frames).values()
    assert sorted(track) == list(range(20, 50))
    assert track[20].face is not None
    assert track[21].face is None


def test_a_second_box_on_the_same_face_is_no_second_person():
    frames = placed(scene([[face(200, 200), face(215, 230, 70, score=0.8)]] * 30))
    assert len(by_id(frames)) == 1


def test_a_cut_ends_every_track_and_nothing_is_smoothed_across():
    frames = placed(scene([[face(200 if i < 30 else 230, 200)] for i in range(60)], cuts=[30]))
    first, second = by_id(frames).values()
    assert (min(first), max(first), min(second), max(second)) == (0, 29, 30, 59)
    for i in range(60):
        np.testing.assert_allclose(centre(frames[i][0]), (200 if i < 30 else 230, 200), atol=1e-4)
        assert frames[i][0].strength == 1


@pytest.mark.parametrize("length", [1, 2])
def test_a_source_shorter_than_a_confirmation_is_followed(length):
    frames = placed(scene([[face(200, 200)]] * length))
    assert [p.strength for placements in frames for p in placements] == [1.0] * length
    assert placed(scene([])) == []


def test_faces_without_extent_are_left_out():
    broken = face(300, 300)
    broken.landmarks[:] = 5
    frames = placed(scene([[face(200, 200), broken]] * 20))
    assert len(by_id(frames)) == 1


# --- fades ---


def strengths(track):
    return np.array([track[i].strength for i in sorted(track)])


def test_a_face_that_comes_and_goes_within_a_scene_is_faded():
    frames = placed(scene([[face(200, 200)] if 20 <= i < 60 else [] for i in range(90)]), fade=0.25)
    (track,) = by_id(frames).values()
    got = strengths(track)
    wanted = np.minimum(1, np.minimum(np.arange(40), np.arange(40)[::-1]) / FPS / 0.25)
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_fades_follow_the_clock_not_the_frame_count():
    pts = np.cumsum([1 if i % 2 else 3 for i in range(90)]).tolist()
    frames = placed(scene([[face(200, 200)] if 20 <= i < 60 else [] for i in range(90)], pts=pts), fade=0.6)
    (track,) = by_id(frames).values()
    for i in range(20, 26):
        assert track[i].strength == pytest.approx(min((pts[i] - pts[20]) / FPS / 0.6, 1))


@pytest.mark.parametrize("lookahead", [4, 12])
@pytest.mark.parametrize("comes", [True, False])
def test_a_frame_that_is_long_in_coming_makes_nothing_pop(comes, lookahead):
    pts = [i if i < 23 else i + 5 * FPS for i in range(80)]
    frames = placed(
        scene([[face(200, 200)] if (i >= 20) == comes else [] for i in range(80)], pts=pts), lookahead=lookahead
    )
    (track,) = by_id(frames).values()
    everywhere = [track[i].strength if i in track else 0.0 for i in range(80)]
    assert np.abs(np.diff(everywhere)).max() <= MOST_STEP + 1e-9
    assert max(everywhere) == 1


def test_there_is_nothing_to_fade_at_the_ends_of_the_source_and_at_cuts():
    frames = placed(scene([[face(200, 200)]] * 60, cuts=[30]))
    assert all(p.strength == 1 for placements in frames for p in placements)


def test_a_face_that_leaves_before_a_cut_is_faded():
    frames = placed(scene([[face(200, 200)] if i < 25 else [] for i in range(60)], cuts=[30]))
    (track,) = by_id(frames).values()
    assert max(track) == 24
    assert track[24].strength == 0


def test_a_face_missed_in_the_last_frame_before_a_cut_stays():
    frames = placed(scene([[face(200 + 2 * i, 200)] if i < 29 else [] for i in range(60)], cuts=[30]))
    (track,) = by_id(frames).values()
    assert strengths(track).tolist() == pytest.approx([1.0] * 28 + [track[28].strength, track[29].strength])
    assert min(track[28].strength, track[29].strength) > 0.9
    np.testing.assert_allclose(centre(track[29]), (258, 200), atol=0.01)


@settings(max_examples=40, deadline=None)
@given(present=st.lists(st.booleans(), min_size=30, max_size=70), lookahead=st.integers(0, 14))
def test_strength_never_pops(present, lookahead):
    seen = [True] * 4 + present
    frames = placed(scene([[face(200, 200)] if p else [] for p in seen]), lookahead=lookahead)
    slope = 1 / FPS / 0.25
    for track in by_id(frames).values():
        for i in sorted(track):
            if i + 1 in track:
                assert abs(track[i + 1].strength - track[i].strength) <= slope + 1e-9
            elif i + 1 < len(seen):
                assert track[i].strength <= slope + 1e-9


@pytest.mark.parametrize("fps", [8, 10, 25, 60])
def test_a_detector_that_misses_a_fifth_of_the_frames_makes_nothing_pop(fps):
    for seed in range(6):
        seen = np.random.default_rng(seed).random(120) >= 0.2
        frames = placed(scene([[face(200 + i, 200)] if p else [] for i, p in enumerate(seen)], fps=fps))
        tracks = by_id(frames)
        assert len(tracks) == 1
        (track,) = tracks.values()
        steps = np.abs(np.diff(strengths(track)))
        assert steps.max() <= 0.2 + 1e-9
        assert np.mean(strengths(track)) > 0.9
        assert sorted(track) == list(range(min(track), max(track) + 1))


@pytest.mark.parametrize("fps", [4, 10])
def test_fades_take_five_frames_at_least(fps):
    frames = placed(scene([[face(200, 200)] if 20 <= i < 60 else [] for i in range(90)], fps=fps))
    (track,) = by_id(frames).values()
    assert np.abs(np.diff(strengths(track))).max() <= 0.2 + 1e-9
    assert strengths(track)[[0, -1]].max() < 1e-9


def test_small_and_doubtful_faces_are_restored_less():
    def steady(**options):
        return placed(scene([[face(200, 200, **options)]] * 5 + [[face(200, 200, **options)]] * 30))[20][0].strength

    sizes = [steady(size=s) for s in (9, 12, 14, 16, 20, 60)]
    assert sizes[0] == 0
    assert sizes[-2:] == [1, 1]
    assert sizes == sorted(sizes)
    assert 0 < sizes[2] < 1
    weak = placed(scene([[face(200, 200, score=0.9 if i < 10 else 0.45)] for i in range(60)]))
    assert 0 < weak[40][0].strength < 0.6
    assert weak[2][0].strength == 1


# --- the stream ---


@pytest.mark.parametrize("lookahead", [0, 5, 12])
def test_follow_holds_no_more_frames_than_it_needs(lookahead):
    read = 0

    def source():
        nonlocal read
        for entry in scene([[face(200 + i, 200)] for i in range(40)]):
            read += 1
            yield entry

    for number, _ in enumerate(follow(source(), lookahead=lookahead)):
        assert read == min(number + lookahead + 1, 40)


def test_memory_does_not_grow_with_length():
    follower = _Follower(lookahead=12, fade=0.25, select=None)
    rng = np.random.default_rng(3)
    held = []
    for i in range(600):
        faces = [face(200, 200)] + [face(*rng.uniform(0, 600, 2), 50) for _ in range(3)] * (i % 3 > 0)
        for _ in follower.push(scene([faces])[0]):
            pass
        tracker = follower._tracker
        everything = {id(t): t for t in tracker.tracks + tracker._active + tracker._lost}
        held.append(
            sum(len(t.hits) for t in everything.values())
            + len(follower._waiting)
            + len(follower._strengths)
            + len(follower._clocks)
        )
    assert max(held[300:]) <= max(held[50:300]) + 5
    assert max(held) < 400


def test_broken_timestamps_do_not_break_the_tracks():
    for pts in ([0] * 30, list(range(15)) + list(range(15)), [i if i < 15 else i + 10**6 for i in range(30)]):
        frames = placed(scene([[face(200 + i, 200)] for i in range(30)], pts=pts))
        (track,) = by_id(frames).values()
        assert len(track) == 30
        for i in range(30):
            assert np.abs(centre(track[i]) - (200 + i, 200)).max() < 5


def test_a_time_lapse_with_gaps_is_followed():
    frames = placed(
        scene([[] if i in (10, 11) else [face(200, 200)] for i in range(20)], pts=[i * 2000 for i in range(20)])
    )
    assert all(len(p) == 1 and np.isfinite(p[0].matrix).all() for p in frames)


def test_senseless_options_are_refused():
    with pytest.raises(UsageError, match="negative"):
        list(follow([], lookahead=-1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lookahead=st.integers(0, 14))
def test_whatever_is_detected_the_output_is_sound(seed, lookahead):
    rng = np.random.default_rng(seed)
    faces = [
        [
            face(*rng.uniform(0, 400, 2), rng.uniform(5, 200), score=rng.uniform(0.3, 1), angle=rng.uniform(-3, 3))
            for _ in range(rng.integers(0, 4))
        ]
        for _ in range(40)
    ]
    frames = placed(scene(faces, cuts=rng.integers(0, 40, 2).tolist()), lookahead=lookahead)
    for placements in frames:
        assert len({p.track_id for p in placements}) == len(placements)
        for p in placements:
            assert 0 <= p.strength <= 1
            assert np.isfinite(p.matrix).all()
            assert np.linalg.det(p.matrix[:, :2]) > 0
