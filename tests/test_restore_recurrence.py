"""The memory of a recurrent restorer: it guides, it ends where it must, and no cut of a job shows."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from streamfix.restore.base import RecurrentRestorer, Restorer, load_restorer, restore_images
from streamfix.restore.lite.checkpoint import write_weights
from streamfix.restore.lite.network import LiteConfig, LiteNet
from streamfix.restore.recurrence import WARM_UP, WINDOW, Recurrence
from streamfix.train.degradations import starved

SHAPE = LiteConfig(memory=8, widths=(8, 8, 8, 8), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), head=(8, 4))


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    """A random network that listens to what it said before, and forgets it slowly."""
    torch.manual_seed(0)
    net = LiteNet(SHAPE)
    with torch.no_grad():
        net.out.weight.mul_(8)  # else it hardly changes the picture
    path = tmp_path_factory.mktemp("weights") / "recurrent.safetensors"
    write_weights(path, net.state_dict(), SHAPE, {})
    return load_restorer(str(path), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.random((1, 3, 16, 16), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(512, 512), mode="bicubic").clamp(0, 1)[0]
    face = smooth.permute(1, 2, 0).numpy()
    return [np.clip(face + rng.normal(0, 0.05, face.shape), 0, 1).astype(np.float32) for _ in range(WINDOW + 4)]


def run(restorer: Restorer, clip: list[np.ndarray], first: int, last: int) -> dict[int, np.ndarray]:
    recurrence = Recurrence(restorer)
    return {n: recurrence.restore(n, [7], [clip[n]])[0] for n in range(first, last)}


def test_the_frame_before_guides(restorer: Restorer, clip: list[np.ndarray]) -> None:
    assert isinstance(restorer, RecurrentRestorer)
    assert restorer.recurrent
    guided = run(restorer, clip, 0, 3)
    alone = restore_images(restorer, clip[:3])
    assert np.array_equal(guided[0], alone[0]), "a new face has nothing to be guided by"
    assert np.abs(guided[1] - alone[1]).max() > 0.002


def test_a_job_cut_into_parts_gives_the_same_frames(restorer: Restorer, clip: list[np.ndarray]) -> None:
    whole = run(restorer, clip, 0, len(clip))
    part = run(restorer, clip, WINDOW - WARM_UP, len(clip))
    for n in range(WINDOW, len(clip)):
        assert np.abs(whole[n] - part[n]).max() < 1e-5
    assert np.abs(whole[WINDOW - WARM_UP] - part[WINDOW - WARM_UP]).max() > 0.002


def test_a_window_hands_over_to_the_next_without_a_pop(restorer: Restorer, clip: list[np.ndarray]) -> None:
    still = [clip[0]] * 3 + [clip[1]] * (len(clip) - 3)  # from frame 3 on nothing moves
    answers = run(restorer, still, 0, len(still))
    steps = [np.abs(answers[n] - answers[n - 1]).max() for n in range(4, len(still))]
    handing = [n for n, step in enumerate(steps, 4) if step > 0]
    assert handing == list(range(WINDOW - WARM_UP, WINDOW + 1)), "else it is the same, bit for bit"
    whole = np.abs(answers[WINDOW] - answers[3]).max()
    assert max(steps) < 1.01 * whole / (WARM_UP + 1)


def test_memory_ends_with_the_face_and_belongs_to_it(restorer: Restorer, clip: list[np.ndarray]) -> None:
    alone = restore_images(restorer, clip[:4])
    recurrence = Recurrence(restorer)
    recurrence.restore(0, [1], [clip[0]])
    recurrence.restore(1, [], [])
    assert np.abs(recurrence.restore(2, [1], [clip[2]])[0] - alone[2]).max() < 1e-5, "it was gone for a frame"
    both = recurrence.restore(3, [2, 1], [clip[3], clip[3]])
    assert np.abs(both[0] - alone[3]).max() < 1e-5, "another face"
    assert np.abs(both[1] - alone[3]).max() > 0.002
    skipped = recurrence.restore(9, [1], [clip[3]])
    assert np.abs(skipped[0] - alone[3]).max() < 1e-5, "frames were left out"


def test_faces_do_not_see_each_other(restorer: Restorer, clip: list[np.ndarray]) -> None:
    together, first, second = Recurrence(restorer), Recurrence(restorer), Recurrence(restorer)
    for n in range(3):
        a, b = together.restore(n, [1, 2], [clip[n], clip[n + 5]])
        assert np.abs(a - first.restore(n, [1], [clip[n]])[0]).max() < 1e-5
        assert np.abs(b - second.restore(n, [2], [clip[n + 5]])[0]).max() < 1e-5


def test_the_shipped_network_flickers_less_with_its_memory_and_forgets_at_a_cut(
    face_picture: np.ndarray,
) -> None:
    lite = load_restorer("lite", device="cpu", dtype="float32")
    truth = cv2.resize(face_picture, (512, 512), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    seen = starved([truth] * 8, np.random.default_rng(0))

    def flicker(frames: list[np.ndarray]) -> float:
        return float(np.mean([np.abs(b - a).mean() for a, b in pairwise(frames)]))

    alone = restore_images(lite, seen)
    guided = list(run(lite, seen, 0, 8).values())
    assert flicker(guided) < 0.75 * flicker(alone)
    errors = [np.abs(frames[-1] - truth).mean() for frames in (guided, alone)]
    assert errors[0] <= 1.02 * errors[1], "steadier, and no worse"

    # a cut that nobody noticed, to something of other colours
    other = [np.ascontiguousarray(f[..., ::-1]) for f in seen[:2]]
    after_cut = list(run(lite, [*seen[-3:], *other], 0, 5).values())[3:]
    first, second = (
        np.abs(now - truth[..., ::-1]).mean() / np.abs(fresh - truth[..., ::-1]).mean()
        for now, fresh in zip(after_cut, restore_images(lite, other), strict=True)
    )
    assert first < 1.05
    assert second < 1.02
