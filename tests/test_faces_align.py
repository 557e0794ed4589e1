import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfix.faces.align import TEMPLATE, Similarity, apply, fit_similarity, invert, template, wrapped

places = st.floats(-4000, 4000)
similarities = st.builds(
    Similarity, cx=places, cy=places, log_scale=st.floats(-4, 3), angle=st.floats(-math.pi + 1e-6, math.pi)
)


@given(similarities, st.sampled_from([64, 128, 512]))
def test_parameters_and_matrix_are_two_forms_of_one_thing(given_similarity, size):
    found = Similarity.of(given_similarity.matrix(size=size), size=size)
    assert found.cx == pytest.approx(given_similarity.cx, abs=1e-7)
    assert found.cy == pytest.approx(given_similarity.cy, abs=1e-7)
    assert found.log_scale == pytest.approx(given_similarity.log_scale, abs=1e-12)
    assert wrapped(found.angle - given_similarity.angle) == pytest.approx(0, abs=1e-12)


@given(similarities)
def test_the_inverse_undoes_the_matrix(given_similarity):
    matrix = given_similarity.matrix()
    points = np.array([(0.0, 0.0), (511, 0), (0, 511), (255.5, 255.5)])
    there = apply(invert(matrix), points)
    np.testing.assert_allclose(apply(matrix, there), points, atol=1e-7)
    np.testing.assert_allclose(there[3], (given_similarity.cx, given_similarity.cy), atol=1e-7)


@given(similarities, st.sampled_from([112, 512]))
def test_a_template_seen_through_a_similarity_is_fitted_exactly(given_similarity, size):
    landmarks = apply(invert(given_similarity.matrix(size=size)), template(size))
    np.testing.assert_allclose(apply(fit_similarity(landmarks, size=size), landmarks), template(size), atol=1e-6 * size)


@given(st.integers(0, 2**32 - 1))
def test_the_fit_is_the_least_squares_one(seed):
    rng = np.random.default_rng(seed)
    landmarks = TEMPLATE / 3 + rng.normal(0, 8, (5, 2)) + 50
    x, y, one, zero = landmarks[:, 0], landmarks[:, 1], np.ones(5), np.zeros(5)
    # the linear system of a, b, tx, ty solved by another route
    system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, tx, ty = np.linalg.lstsq(system, TEMPLATE.T.ravel(), rcond=None)[0]
    np.testing.assert_allclose(fit_similarity(landmarks), [[a, -b, tx], [b, a, ty]], rtol=1e-9, atol=1e-7)


def test_no_reflection_and_the_direction_of_the_angle():
    # a crop turned clockwise on the screen has its x axis pointing down to the right
    found = Similarity(cx=10, cy=20, log_scale=0.0, angle=math.radians(30))
    right = apply(invert(found.matrix()), np.array([(355.5, 255.5)]))[0]
    np.testing.assert_allclose(right, (10 + 100 * math.cos(math.radians(30)), 20 + 50), atol=1e-9)
    assert np.linalg.det(fit_similarity(TEMPLATE[:, ::-1])[:, :2]) > 0


@pytest.mark.parametrize("landmarks", [np.full((5, 2), 7.0), np.full((5, 2), np.nan)])
def test_landmarks_in_one_point_are_refused(landmarks):
    with pytest.raises(ValueError, match="distinct"):
        fit_similarity(landmarks)


def test_a_singular_matrix_has_no_inverse():
    with pytest.raises(ValueError, match="no inverse"):
        invert(np.array([[1.0, 2, 3], [2, 4, 5]]))


def test_the_template_scales_with_the_picture_not_with_the_pixel_centres():
    # shrinking a picture by area moves the point p to (p + 0.5) / 4 - 0.5
    big = np.zeros((512, 512), np.float32)
    x, y = TEMPLATE[2].round().astype(int)
    big[y, x] = 1
    small = cv2.GaussianBlur(
        cv2.resize(cv2.GaussianBlur(big, (0, 0), 8), (128, 128), interpolation=cv2.INTER_AREA), (0, 0), 1
    )
    rows, columns = np.mgrid[:128, :128]
    seen = np.array([(columns * small).sum(), (rows * small).sum()]) / small.sum()
    np.testing.assert_allclose(seen, (np.array([x, y]) + 0.5) / 4 - 0.5, atol=0.02)
    np.testing.assert_allclose(template(128), (TEMPLATE + 0.5) / 4 - 0.5)
