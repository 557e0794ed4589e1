"""Small faces are restored as far as their landmarks can be believed."""

import numpy as np
import pytest
from face_scenes import FPS, by_id, face, placed, scene

from streamfix.faces.align import TEMPLATE, Similarity, fit_similarity
from streamfix.faces.follower import still_quality
from streamfix.faces.smooth import Sample
from streamfix.faces.track import Hit
from streamfix.faces.trust import landmark_trust
from streamfix.types import Face

LONG = 60


def noisy(one: Face, noise: np.ndarray) -> Face:
    return Face(box=one.box, landmarks=(one.landmarks + noise).astype(np.float32), score=one.score)


def hits(faces: list[Face]) -> dict[int, Hit]:
    return {
        i: Hit(
            position=i,
            face=f,
            sample=Sample(
                time=i / FPS,
                similarity=Similarity.of(fit_similarity(f.landmarks)),
                box=(0, 0),
                size=f.size,
            ),
        )
        for i, f in enumerate(faces)
    }


def wavering(size: float, share: float, *, seed: int = 0, count: int = 17) -> list[Face]:
    """A face whose landmarks have independent noise of that many shares of its size, each way."""
    rng = np.random.default_rng(seed)
    return [noisy(face(200, 200, size), rng.normal(0, share * size, (5, 2))) for _ in range(count)]


def test_small_faces_with_steady_landmarks_are_trusted() -> None:
    for size in (16, 24, 32, 48, 100):
        assert landmark_trust(hits([face(200, 200, size)] * 17), 8) == 1
        assert landmark_trust(hits(wavering(size, 0.003)), 8) == 1


@pytest.mark.parametrize("size", [16, 24, 32, 40])
def test_small_faces_with_wavering_landmarks_are_not(size: float) -> None:
    assert landmark_trust(hits(wavering(size, 0.03)), 8) == 0
    trusts = [landmark_trust(hits(wavering(size, share)), 8) for share in np.linspace(0, 0.03, 60)]
    assert 0.2 < trusts[20] < 0.95
    assert (np.diff([np.mean(trusts[i : i + 12]) for i in range(0, 60, 12)]) <= 0).all()


def test_large_faces_are_seen_well_enough() -> None:
    trusts = [landmark_trust(hits(wavering(size, 0.03)), 8) for size in np.arange(36, 61)]
    assert trusts[0] == 0
    assert trusts[-1] == 1
    assert np.diff(trusts).min() >= 0
    assert np.diff(trusts).max() < 0.15


def test_motion_of_the_face_is_no_scatter() -> None:
    # walked, shaken from frame to frame by a tenth of the face, coming nearer and rolling
    rng = np.random.default_rng(1)
    shake = rng.normal(0, 2.4, (17, 2))
    moving = [face(100 + 4 * i + x, 200 + y, 24 * 1.01**i, angle=0.02 * i) for i, (x, y) in enumerate(shake)]
    assert landmark_trust(hits(moving), 8) > 0.99


def test_one_slip_is_forgiven_and_gaps_are_bridged() -> None:
    faces = wavering(24, 0.003)
    faces[8] = noisy(faces[8], np.random.default_rng(2).normal(0, 4, (5, 2)))
    assert landmark_trust(hits(faces), 8) > 0.95
    steady = {p: h for p, h in hits([face(200 + 3 * i, 200, 24, angle=0.03 * i) for i in range(17)]).items() if p % 5}
    assert landmark_trust(steady, 8) > 0.99


def test_pictures_that_repeat_hide_no_scatter() -> None:
    ten = [f for f in wavering(24, 0.03, count=8) for _ in range(3)]  # 10 pictures a second in 30 frames
    assert landmark_trust(hits(ten), 12) == 0


def test_points_that_form_no_face_are_not_trusted() -> None:
    one = face(200, 200, 24)
    points = np.random.default_rng(5).uniform(190, 210, (5, 2))
    nonsense = Face(box=one.box, landmarks=points.astype(np.float32), score=1.0)
    assert landmark_trust(hits([nonsense] * 17), 8) == 0
    large = Face(box=face(200, 200, 100).box, landmarks=points.astype(np.float32), score=1.0)
    assert landmark_trust(hits([large] * 17), 8) == 1  # what is done about these is the detector's


def test_strength_follows_the_trust_without_a_pop() -> None:
    rng = np.random.default_rng(3)
    shares = np.where((np.arange(120) >= 40) & (np.arange(120) < 80), 0.04, 0.002)
    faces = [[noisy(face(200, 200, 28), rng.normal(0, share * 28, (5, 2)))] for share in shares]
    (track,) = by_id(placed(scene(faces))).values()
    strength = np.array([track[i].strength for i in range(120)])
    assert np.abs(np.diff(strength)).max() <= 1 / FPS / 0.25 + 1e-9
    assert strength[:25].min() == 1
    assert strength[55:65].max() == 0
    assert strength[95:].min() == 1
    assert track[60].trust == 0
    assert track[10].trust == 1


def test_trust_depends_on_nearby_faces_only() -> None:
    rng = np.random.default_rng(4)
    faces = [[noisy(face(200, 200, 28), rng.normal(0, 0.012 * 28, (5, 2)))] for _ in range(LONG)]
    whole = placed(scene(faces))
    part = placed(scene(faces[12:48]))
    assert [p.trust for (p,) in part[9:27]] == [p.trust for (p,) in whole[21:39]]
    assert 0 < whole[30][0].trust < 1


def test_small_faces_of_photos_count_as_far_as_they_form_a_face() -> None:
    def seen(size: float, bend: float) -> Face:
        landmarks = TEMPLATE * (size / 307)
        landmarks[2, 1] += bend * size  # the nose slides down
        centre = landmarks.mean(axis=0)
        box = np.concatenate([centre - size / 2, centre + size / 2])
        return Face(box=box.astype(np.float32), landmarks=landmarks.astype(np.float32), score=0.99)

    assert still_quality(seen(30, 0.0)) == pytest.approx(1, abs=0.02)
    assert still_quality(seen(30, 0.7)) < 0.1
    assert still_quality(seen(80, 0.7)) > 0.5, "a large face is seen well enough"
    assert still_quality(seen(9, 0.0)) == 0
