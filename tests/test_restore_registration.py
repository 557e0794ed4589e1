"""The answer to the frame before is moved to where the face is now."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfix.restore.lite.registration import registered, remembered
from streamfix.types import CROP_SIZE


@pytest.fixture(scope="module")
def still() -> np.ndarray:
    """Blobs of the size of features and detail of that of lashes: float32 (600, 600, 3) in [0, 1]."""
    rng = np.random.default_rng(5)
    layers = [
        cv2.GaussianBlur(rng.normal(0, 1, (600, 600, 3)), (0, 0), sigma) * sigma * amount
        for sigma, amount in ((20, 0.5), (6, 0.25), (1.5, 0.05))
    ]
    return np.clip(0.5 + sum(layers), 0, 1).astype(np.float32)


def seen(still: np.ndarray, dx: float, dy: float, bend: float = 0.0) -> torch.Tensor:
    """The middle of `still`, moved, and bent smoothly as an expression does: (3, 512, 512) in [-1, 1]."""
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE].astype(np.float32) + 44
    swell = bend * np.exp(-((x - 300) ** 2 + (y - 380) ** 2) / (2 * 60**2))
    picture = cv2.remap(still, x + np.float32(dx), (y + dy + swell).astype(np.float32), cv2.INTER_CUBIC)
    return torch.from_numpy(picture).permute(2, 0, 1) * 2 - 1


def blurred(crop: torch.Tensor, seed: int) -> torch.Tensor:
    """What a restorer is given: no detail, and noise."""
    noise = np.random.default_rng(seed).normal(0, 0.03, (CROP_SIZE, CROP_SIZE, 3))
    soft = cv2.GaussianBlur(crop.permute(1, 2, 0).numpy(), (0, 0), 3) + noise
    return torch.from_numpy(soft.astype(np.float32)).permute(2, 0, 1)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b)[:, 24:-24, 24:-24].abs().mean()) * 127.5


def followed(answers: list[torch.Tensor], crops: list[torch.Tensor], *, new: float = 0.0) -> torch.Tensor:
    """The answer to the first crop, carried along the others; new: share of each frame's own answer that is mixed in."""
    state = remembered(answers[0][None], crops[0][None], None)
    for answer, crop in zip(answers[1:], crops[1:], strict=True):
        moved = registered(state, crop[None])
        state = remembered(torch.lerp(moved[:, :3], answer[None], new), crop[None], moved)
    return state[0, :3]


@given(st.floats(6, 10), st.floats(0, 2 * np.pi), st.floats(-6, 6))
@settings(max_examples=12, deadline=None)
def test_detail_goes_with_the_face_by_what_damaged_crops_show(
    still: np.ndarray, far: float, angle: float, bend: float
) -> None:
    before, now = seen(still, 0, 0), seen(still, far * np.cos(angle), far * np.sin(angle), bend)
    assert error(followed([before] * 2, [blurred(before, 1), blurred(now, 2)]), now) < 0.4 * error(before, now)


@given(st.floats(1.0, 2.5))
@settings(max_examples=5, deadline=None)
def test_a_turn_does_not_smear(still: np.ndarray, speed: float) -> None:
    steps = [seen(still, speed * n, -0.75 * speed * n) for n in range(12)]
    smeared = steps[0]
    for step in steps[1:]:
        smeared = torch.lerp(smeared, step, 0.2)
    moved = followed(steps, [blurred(step, n) for n, step in enumerate(steps)], new=0.2)
    assert error(moved, steps[-1]) < 0.6 * error(smeared, steps[-1])


@given(st.floats(0.1, 1.0))
@settings(max_examples=5, deadline=None)
def test_what_trembles_is_followed_little(still: np.ndarray, width: float) -> None:
    before = seen(still, 0, 0)
    trembling = [blurred(seen(still, width * (-1) ** n, 0), n) for n in range(9)]
    assert error(followed([before] * 9, trembling, new=0.2), before) < 0.2 * error(seen(still, width, 0), before)


def test_what_stands_still_is_not_resampled(still: np.ndarray) -> None:
    before = seen(still, 0, 0)
    assert torch.equal(followed([before] * 5, [blurred(before, 1)] * 5), before)


def test_after_a_cut_the_face_before_moves_nothing(still: np.ndarray) -> None:
    before = seen(still, 0, 0)
    other = before.flip(0, 1) * -0.9
    state = remembered(before[None], before[None], None)
    state = remembered(other[None], other[None], registered(state, other[None]))
    assert error(registered(state, other[None])[0, :3], other) < 1


def test_each_face_has_its_own_motion_and_none_stays_none(still: np.ndarray) -> None:
    before = seen(still, 0, 0)
    states = remembered(before.expand(3, -1, -1, -1), before.expand(3, -1, -1, -1), None)
    states[2] = 0  # a face that is new
    now = torch.stack([seen(still, *place) for place in ((0, 0), (6, -4), (3, 3))])
    moved = registered(states, now)
    assert torch.equal(moved[0, :3], before)
    assert torch.equal(moved[1], registered(states[1:2], now[1:2])[0])
    assert not moved[2].any()
    assert torch.equal(remembered(now, now, moved)[2], remembered(now, now, None)[2])


def test_threads_of_opencv_change_nothing(still: np.ndarray) -> None:
    before, now = seen(still, 0, 0)[None], blurred(seen(still, 5, 2, 6), 1)[None]
    answers, threads = [], cv2.getNumThreads()
    try:
        for count in (1, 2, 5):
            cv2.setNumThreads(count)
            answers.append(registered(remembered(before, before, None), now))
    finally:
        cv2.setNumThreads(threads)
    assert all(torch.equal(a, answers[0]) for a in answers)
