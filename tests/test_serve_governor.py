"""What a live stream leaves out to keep up: a plan from measured costs, effort of the model included."""

from itertools import pairwise

import cv2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamfix.restore.effort import efforts
from streamfix.restore.lite.restorer import INNER, LiteRestorer
from streamfix.restore.passthrough import Passthrough
from streamfix.serve.costs import Costs, ModelCosts
from streamfix.serve.governor import AGE, CALL, Governor, Plan, ladder

SHARES = (1.0, 0.56, 0.25)


def costs(model: float, *, frame: float = 0.005, detect: float = 0.015, lay: float = 0.008, faces: float = 1) -> Costs:
    return Costs(frame=frame, detect=detect, model=tuple(model * s for s in SHARES), lay=lay, faces=faces)


def settled(known: Costs, *, interval: float = 1 / 30, begin: int = 0, governor: Governor | None = None) -> Plan:
    """The plan after five minutes."""
    governor = governor or Governor(efforts=3, overlap=0.3)
    for second in range(begin, begin + 300):
        plan = governor.consider(known, interval=interval, now=float(second))
    return plan


def test_the_slower_the_model_the_less_is_asked_of_it_and_every_lever_is_used():
    plans = [
        settled(costs(model, frame=0.003, detect=0.006, lay=0.003)) for model in (0.005, 0.025, 0.06, 0.3, 0.6, 2.0)
    ]
    assert plans[0] == Plan(detect_every=1)
    assert [p.fresh for p in plans] == [True, True, True, False, False, False]
    assert [p.effort for p in plans] == [0, 1, 2, 0, 1, 2]
    crowd = settled(costs(0.8, frame=0.008, lay=0.06, faces=8))
    assert crowd.most_faces is not None


def test_many_faces_are_restored_in_larger_calls_where_the_model_is_quick():
    slow_picture = {"frame": 0.02, "lay": 0.02}
    for model, faces, batch in ((0.01, 8, 8), (0.02, 8, 4), (0.02, 2, 2), (0.09, 8, 1), (0.02, 1, 1)):
        plan = settled(costs(model, faces=faces, **slow_picture), governor=Governor(efforts=1, overlap=0.3))
        if not plan.fresh and plan.most_faces is None:
            assert plan.batch == batch
            assert batch == 1 or batch * model <= CALL


@given(
    st.floats(0.001, 0.1),
    st.floats(0.001, 0.3),
    st.floats(0.001, 1.0),
    st.floats(0.001, 0.1),
    st.floats(0.01, 0.2),
    st.integers(1, 5),
)
def test_the_plan_comes_to_rest_and_fits_unless_it_is_the_last(frame, detect, model, lay, interval, faces):
    known = costs(model, frame=frame, detect=detect, lay=lay, faces=faces)
    governor = Governor(efforts=3, overlap=0.3)
    plan = settled(known, interval=interval, governor=governor)
    rung = next(n for n, p in enumerate(governor.ladder) if plan.detect_every == p.detect_every
                and plan.fresh == p.fresh and plan.most_faces == p.most_faces and (not p.fresh or p.effort == plan.effort))  # fmt: skip
    cost = plan.cost(known, overlap=0.3)
    cheaper = min(later.cost(known, overlap=0.3) for later in governor.ladder[rung:])
    assert cost <= 0.95 * min(interval, 1 / 15) or cost <= cheaper / 0.98
    if not plan.fresh and plan.effort < 2:  # no face waits for longer than it need
        assert known.model[plan.effort] * faces * plan.share(faces) <= AGE
    assert settled(known, interval=interval, begin=300, governor=governor) == plan


def test_faces_are_not_left_out_any_longer_than_there_are_many():
    governor, slow = Governor(efforts=3, overlap=0.3), {"frame": 0.03, "lay": 0.03}
    crowd = settled(costs(0.3, faces=8, **slow), governor=governor)
    assert crowd.most_faces is not None
    for second in range(300, 400):  # still too slow a machine, but nothing is saved by leaving out who is not there
        plan = governor.consider(costs(0.3, faces=1, **slow), interval=1 / 30, now=float(second))
    assert plan.most_faces is None


def test_a_plan_that_failed_is_tried_again_later_and_later():
    """The model's cost under load is only seen once it runs: the governor must not flap every few seconds."""
    governor, changes, plan = Governor(efforts=3, overlap=0.3), 0, None
    for second in range(120):
        known = costs(0.2 if governor.plan.fresh else 0.004, frame=0.004, detect=0.006, lay=0.003)
        now = governor.consider(known, interval=1 / 30, now=float(second))
        changes += plan is not None and now.fresh != plan.fresh
        plan = now
    assert changes <= 16


def test_every_plan_says_what_it_does():
    plans = ladder(3)
    assert len({plan.words(f"effort {plan.effort}") for plan in plans}) == len(plans)
    assert "the inner 384" in Plan().words("the inner 384 of 512 pixels of a face")
    fixed = Governor(fixed=plans[-1])
    assert fixed.consider(costs(0.0), interval=1, now=0) == plans[-1]


# --- what the model costs ---------------------------------------------------------------------------------------------


def test_efforts_that_have_not_run_are_told_from_one_that_has():
    known = ModelCosts(SHARES)
    assert known.all(now=0) == ()
    known.spent(0, 3.0, faces=1, now=0.0)  # the first call compiles
    assert known.all(now=0) == ()
    for second in range(3):
        known.spent(0, 0.4, faces=2, now=float(second))
    assert known.all(now=3) == pytest.approx((0.2, 0.112, 0.05))
    for second in range(4, 7):
        known.spent(2, 0.1, faces=1, now=float(second))
    assert known.all(now=7) == pytest.approx((0.2, 0.224, 0.1))  # less is saved than was thought
    assert known.all(now=60) == pytest.approx((0.4, 0.224, 0.1))  # what is long ago was another machine


# --- efforts of the models --------------------------------------------------------------------------------------------


def test_lite_restores_the_middle_of_a_face_as_in_full_for_less(astronaut):
    lite = LiteRestorer(dtype=torch.float32)
    ways = efforts(lite)
    assert ways[0].restorer is lite
    assert all(a.share > b.share for a, b in pairwise(ways))
    small = cv2.resize(astronaut[20:220, 125:325], (100, 100), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (512, 512), interpolation=cv2.INTER_LINEAR)
    face = torch.from_numpy(large).permute(2, 0, 1)[None] / 127.5 - 1
    best = lite.restore(face) - face
    for effort, (side, (y, x)) in zip(ways[1:], INNER.items(), strict=True):
        change = effort.restorer.restore(face) - face
        middle = (..., slice(y + 64, y + side - 64), slice(x + 64, x + side - 64))
        both = torch.stack([change[middle].flatten(), best[middle].flatten()])
        assert float(torch.corrcoef(both)[0, 1]) > 0.75
        assert float(change[middle].abs().mean()) == pytest.approx(float(best[middle].abs().mean()), rel=0.3)
        outside = torch.ones(512, 512, dtype=torch.bool)
        outside[y : y + side, x : x + side] = False
        assert change[..., outside].abs().max() == 0
        assert change[..., y : y + 2, x : x + side].abs().mean() < 0.05 * best[middle].abs().mean()  # no edge shows
        assert str(side) in effort.words


def test_a_window_knows_its_place_in_the_face():
    """Its position embedding is what the network itself says of that origin."""
    lite = LiteRestorer(dtype=torch.float32, openvino=False)
    for effort, (side, origin) in zip(lite.cheaper(), INNER.items(), strict=True):
        told = lite._net.position(side, side, torch.tensor([origin]))
        assert torch.allclose(effort.restorer._position, told, atol=1e-5)


def test_a_model_without_cheaper_ways_has_one():
    assert len(efforts(Passthrough())) == 1
