"""What to leave out so that a stream keeps its frame rate: a choice from measured costs, one rung of a ladder at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from streamfix.restore.base import BATCH_SIZES
from streamfix.serve.costs import Costs

FULL = 0.95
"""Share of the frame's time that a plan may fill before the next cheaper one is taken."""
ROOM = 0.65
"""Share that the next better plan may fill to be tried: between the two nothing changes."""
PATIENCE = 2.0
"""Seconds between two changes for the better; a change for the worse waits half as long."""
_SAVES = 0.98
SLOWEST = 1 / 15
"""Seconds a frame: sources slower than this are not granted more time than it, for the sake of latency."""
AGE = 0.4
"""Seconds after which every face should have been restored anew where detail is carried over; a model that takes longer
has to do with less effort."""
CALL = 0.1
"""Seconds that one call of the model may take where it restores several faces at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a stream is worked on.

    detect_every: frames between searches for faces; optical flow carries them in between. fresh: every frame waits for its own
    restoration; else the frame takes the latest restored detail of its faces (crop rate: as often as the model
    manages). effort: of the model, 0 for all it can do, higher for cheaper ways (restore/effort.py). batch: faces in one call
    of the model where detail is carried over. most_faces: how many are restored, the largest first; None for all.
    """

    detect_every: int = 1
    fresh: bool = True
    effort: int = 0
    batch: int = 1
    most_faces: int | None = None

    def words(self, effort: str = "") -> str:
        """For people. effort: what the model leaves out."""
        parts = [
            "faces searched every frame"
            if self.detect_every == 1
            else f"faces searched every {self.detect_every} frames"
        ]
        parts.append("each frame restored" if self.fresh else "detail carried over between restorations")
        if effort:
            parts.append(effort)
        if not self.fresh and self.batch > 1:
            parts.append(f"{self.batch} faces at a time")
        if self.most_faces is not None:
            parts.append(f"{self.most_faces} largest face{'s' * (self.most_faces > 1)} only")
        return ", ".join(parts)

    def share(self, faces: float) -> float:
        """Of the faces that it restores."""
        return 1.0 if self.most_faces is None or faces <= self.most_faces else self.most_faces / faces

    def cost(self, costs: Costs, *, overlap: float) -> float | None:
        """Seconds of machine time a frame, None while the model's are unknown and matter.

        overlap: 0 (look and finish share one core) .. 1 (they run side by side).
        """
        look = costs.frame + costs.detect / self.detect_every
        finish = costs.lay
        if self.fresh:
            if not costs.model:
                return None
            finish += costs.model[self.effort] * max(costs.faces, 1.0)
        finish *= self.share(costs.faces)
        return look + finish - overlap * min(look, finish)


def ladder(efforts: int = 1) -> tuple[Plan, ...]:
    """Plans for a model of so many efforts, from the best to the cheapest.

    A frame's own restoration comes before effort, for a face that moves shows it; where detail is carried over, effort goes
    by how old that becomes, see Governor.
    """
    return (
        *(Plan(detect_every=every) for every in (1, 2, 4)),
        *(Plan(detect_every=4, effort=effort) for effort in range(1, efforts)),
        *(Plan(detect_every=every, fresh=False) for every in (3, 6)),
        *(Plan(detect_every=6, fresh=False, most_faces=most) for most in (2, 1)),
    )


def machine_overlap() -> float:
    """How far the two stages run side by side here."""
    return 1.0 if (os.cpu_count() or 1) >= 4 else 0.3


class Governor:
    """Chooses the plan of one stream. Feed `consider` about once a second.

    efforts: of the model. fixed: a plan to stay with, None to choose.
    """

    def __init__(self, *, efforts: int = 1, fixed: Plan | None = None, overlap: float | None = None) -> None:
        self.ladder = ladder(efforts)
        # before anything is measured: the picture comes at once, whatever the model costs
        self._rung = next(n for n, plan in enumerate(self.ladder) if not plan.fresh)
        self.plan = fixed or self.ladder[self._rung]
        self._fixed = fixed is not None
        self._overlap = machine_overlap() if overlap is None else overlap
        self._changed = float("-inf")
        self._penalty: dict[int, float] = {}

    def consider(self, costs: Costs, *, interval: float, now: float) -> Plan:
        """The plan from here on. interval: seconds between the source's frames. now: seconds, monotonic."""
        if self._fixed:
            return self.plan
        budget = min(interval, SLOWEST)
        rung = self._rung
        cost = self.ladder[rung].cost(costs, overlap=self._overlap)
        if cost is not None and cost > FULL * budget:
            cheaper = self._cheaper(rung, costs, cost)
            if cheaper is not None and now - self._changed >= PATIENCE / 2:
                # a plan that had to be left at once is tried again later and later
                self._penalty[rung] = min(2 * self._penalty.get(rung, PATIENCE), 60.0)
                self._rung, self._changed = cheaper, now
        if self._changed != now and rung > 0 and now - self._changed >= self._penalty.get(rung - 1, PATIENCE):
            better = self.ladder[rung - 1].cost(costs, overlap=self._overlap)
            # what costs no more than now is had for nothing: few faces are not left out because there were many
            free = better is not None and cost is not None and better <= cost
            if better is not None and (free or better <= ROOM * budget):
                self._rung, self._changed = rung - 1, now
        self.plan = self._paced(self.ladder[self._rung], costs)
        return self.plan

    def _cheaper(self, rung: int, costs: Costs, cost: float) -> int | None:
        """The next plan that would save anything (to leave out faces that are not there does not), None where none does."""
        for number, plan in enumerate(self.ladder[rung + 1 :], start=rung + 1):
            after = plan.cost(costs, overlap=self._overlap)
            if after is None or after < _SAVES * cost:
                return number
        return None

    def _paced(self, plan: Plan, costs: Costs) -> Plan:
        """Where detail is carried over: the most effort with which no face waits longer than AGE, and so many faces a call."""
        if plan.fresh or not costs.model:
            return plan
        before = self.plan.effort
        faces = max(costs.faces, 1.0) * plan.share(costs.faces)
        # a better one than now must fit with room to spare, or the choice would swing
        fitting = (
            e for e, cost in enumerate(costs.model) if cost * faces <= AGE * (1.0 if e >= before else ROOM / FULL)
        )
        effort = next(fitting, len(costs.model) - 1)
        batch = max(b for b in BATCH_SIZES if b == 1 or (b < 2 * faces and b * costs.model[effort] <= CALL))
        return replace(plan, effort=effort, batch=batch)
