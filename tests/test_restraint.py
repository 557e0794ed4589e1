"""Do no harm: sharp faces, covered places and faces turned away are left as they are, and nothing pops."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfix.faces.align import TEMPLATE, YAW_RAMP, frontal, yaw
from streamfix.restraint import WINDOW, Guard, restrain


@pytest.fixture(scope="module")
def sharp(face_picture: np.ndarray) -> np.ndarray:
    """The face of the sample, 512x512, with fine texture: float32 in [0, 1]."""
    picture = cv2.resize(face_picture, (512, 512), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    grain = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((512, 512, 1)), (0, 0), 1.0)
    return np.clip(picture + 0.06 * grain[..., None], 0, 1).astype(np.float32)


def test_a_face_that_hardly_changes_is_left_alone(sharp: np.ndarray) -> None:
    assert restrain(sharp, sharp).sharp == 0
    nearly = np.clip(sharp + np.random.default_rng(1).normal(0, 0.002, sharp.shape), 0, 1).astype(np.float32)
    assert restrain(sharp, nearly).weight.max() < 0.1


def test_a_blurred_face_is_restored_in_full(sharp: np.ndarray) -> None:
    for sigma in (2.0, 4.0, 8.0):
        blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), sigma), np.float32)
        result = restrain(blurred, sharp)
        assert result.sharp == 1
        assert result.weight.min() == 1, "blur is no cover"
        assert result.covered == 0


def test_a_noisy_face_is_restored_in_full(sharp: np.ndarray) -> None:
    noisy = np.clip(sharp + np.random.default_rng(2).normal(0, 0.1, sharp.shape), 0, 1).astype(np.float32)
    clean = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 0.7), np.float32)
    assert restrain(noisy, clean).sharp == 1


def test_what_covers_the_face_stays(sharp: np.ndarray) -> None:
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 3.0), np.float32)
    hand = blurred.copy()
    hand[300:420, 180:330] = (0.15, 0.6, 0.2)  # nothing that a restorer that knows faces alone would leave there
    result = restrain(hand, sharp)
    assert result.weight[330:390, 210:300].max() < 0.05
    assert result.weight[100:250, 100:400].min() > 0.95
    assert 0.02 < result.covered < 0.3


def test_strength_has_no_steps(sharp: np.ndarray) -> None:
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 4.0), np.float32)
    shares = np.linspace(0, 1, 41, dtype=np.float32)
    strengths = [restrain(sharp + s * (blurred - sharp), sharp).sharp for s in shares]
    assert strengths[0] == 0
    assert strengths[-1] == 1
    assert np.abs(np.diff(strengths)).max() < 0.3
    assert np.diff(strengths).min() >= 0


def test_key_frames_do_not_make_the_strength_flicker(sharp: np.ndarray) -> None:
    """Every fourth frame sharp, the others soft, as encoders have it; and a face that becomes sharp for good."""
    soft = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 1.4), np.float32)
    guard = Guard()
    strengths = [guard.restrain(n, 0, sharp if n % 4 == 0 else soft, sharp).sharp for n in range(40)]
    assert np.ptp([restrain(sharp if n % 4 == 0 else soft, sharp).sharp for n in range(4)]) > 0.5, (
        "frame by frame it would"
    )
    assert np.abs(np.diff(strengths[WINDOW:])).max() <= 0.2
    after = [guard.restrain(n, 0, sharp, sharp).sharp for n in range(40, 40 + 2 * WINDOW)]
    assert np.abs(np.diff(after)).max() <= 0.2 + 1e-9
    assert after[WINDOW:] == [0] * WINDOW
    assert guard.restrain(100, 1, soft, sharp) is not None
    assert list(guard._changes) == [1], "the track that has gone is forgotten"


def turned(degrees: float) -> np.ndarray:
    """Landmarks of a head turned about the vertical axis: the nose lies half an eye distance in front."""
    eye = (TEMPLATE[1] - TEMPLATE[0])[0]
    depth = np.array([0, 0, 0.5 * eye, 0.2 * eye, 0.2 * eye])
    angle = math.radians(degrees)
    middle = TEMPLATE[:2].mean(axis=0)
    x, y = (TEMPLATE - middle).T
    symmetric = np.array([x[0], x[1], 0, x[3], x[4]])
    return np.stack([symmetric * math.cos(angle) + depth * math.sin(angle), y], axis=1).astype(np.float32)


@given(st.floats(-80, 80), st.floats(-180, 180), st.floats(0.1, 4))
def test_yaw_is_read_off_the_landmarks(degrees: float, roll: float, scale: float) -> None:
    c, s = math.cos(math.radians(roll)) * scale, math.sin(math.radians(roll)) * scale
    landmarks = (turned(degrees) @ np.array([[c, s], [-s, c]]) + 100).astype(np.float32)
    assert yaw(landmarks) == pytest.approx(abs(degrees), abs=1.5)


def test_a_face_that_turns_away_fades() -> None:
    assert frontal(TEMPLATE.astype(np.float32)) == 1
    assert frontal(turned(YAW_RAMP[0] - 2)) == 1
    assert frontal(turned(YAW_RAMP[1] + 2)) == 0
    assert 0.2 < frontal(turned(sum(YAW_RAMP) / 2)) < 0.8
    assert frontal(np.zeros((5, 2), np.float32)) == 0, "both eyes in one place"
