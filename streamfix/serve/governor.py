"""What to leave out so that a stream keeps its frame rate: a choice from measured costs, one rung of a ladder at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass

FULL = 0.95
"""Share of the frame's time that a plan may fill before the next cheaper one is taken."""
ROOM = 0.65
"""Share that the next better plan may fill to be tried: between the two nothing changes."""
PATIENCE = 2.0
"""Seconds between two changes for the better; a change for the worse waits half as long."""
_SAVES = 0.98
SLOWEST = 1 / 15
"""Seconds a frame: sources slower than this are not granted more time than it, for the sake of latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a stream is worked on.

    detect_every: frames between searches for faces; optical flow carries them in between. fresh: every frame waits for its own
    restoration; else the frame takes the latest restored detail of its faces (crop rate: as often as the model
    manages). most_faces: how many, the largest first; None for all.
    """

    detect_every: int = 1
    fresh: bool = True
    most_faces: int | None = None

    def words(self) -> str:
        """For people."""
        often = "every frame" if self.detect_every == 1 else f"every {self.detect_every} frames"
        detail = "each frame restored" if self.fresh else "detail carried over between restorations"
        limit = "" if self.most_faces is None else f", {self.most_faces} largest face{'s' * (self.most_faces > 1)} only"
        return f"faces searched {often}, {detail}{limit}"


LADDER = (
    Plan(detect_every=1),
    Plan(detect_every=2),
    Plan(detect_every=4),
    Plan(detect_every=3, fresh=False),
    Plan(detect_every=6, fresh=False),
    Plan(detect_every=6, fresh=False, most_faces=2),
    Plan(detect_every=6, fresh=False, most_faces=1),
)
"""From the best to the cheapest."""
START = LADDER[3]
"""Before anything is measured: the picture comes at once, whatever the model costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Mean seconds of the stages.

    frame: look at a frame, without detection. detect: one search. model: one restoration of the frame's faces. lay: lay them
    back. faces: in the frame.
    """

    frame: float
    detect: float
    model: float | None
    lay: float
    faces: float = 1.0

    def of(self, plan: Plan, *, overlap: float) -> float | None:
        """Seconds of machine time a frame under a plan, None while the model's are unknown and matter.

        overlap: 0 (look and finish share one core) .. 1 (they run side by side).
        """
        share = 1.0 if plan.most_faces is None or self.faces <= plan.most_faces else plan.most_faces / self.faces
        look = self.frame + self.detect / plan.detect_every
        finish = self.lay * share
        if plan.fresh:
            if self.model is None:
                return None
            finish += self.model * share
        return look + finish - overlap * min(look, finish)


def machine_overlap() -> float:
    """How far the two stages run side by side here."""
    return 1.0 if (os.cpu_count() or 1) >= 4 else 0.3


class Governor:
    """Chooses the plan of one stream. Feed `consider` about once a second.

    fixed: a plan to stay with, None to choose.
    """

    def __init__(self, *, fixed: Plan | None = None, overlap: float | None = None) -> None:
        self.plan = fixed or START
        self._fixed = fixed is not None
        self._overlap = machine_overlap() if overlap is None else overlap
        self._changed = float("-inf")
        self._penalty: dict[int, float] = {}

    def consider(self, costs: Costs, *, interval: float, now: float) -> Plan:
        """The plan from here on. interval: seconds between the source's frames. now: seconds, monotonic."""
        if self._fixed:
            return self.plan
        budget = min(interval, SLOWEST)
        rung = LADDER.index(self.plan)
        cost = costs.of(self.plan, overlap=self._overlap)
        if cost is not None and cost > FULL * budget:
            cheaper = self._cheaper(rung, costs, cost)
            if cheaper is not None and now - self._changed >= PATIENCE / 2:
                # a plan that had to be left at once is tried again later and later
                self._penalty[rung] = min(2 * self._penalty.get(rung, PATIENCE), 60.0)
                self._take(cheaper, now)
        elif rung > 0 and now - self._changed >= self._penalty.get(rung - 1, PATIENCE):
            better = costs.of(LADDER[rung - 1], overlap=self._overlap)
            if better is not None and better <= ROOM * budget:
                self._take(rung - 1, now)
        return self.plan

    def _cheaper(self, rung: int, costs: Costs, cost: float) -> int | None:
        """The next plan that would save anything (to leave out faces that are not there does not), None where none does."""
        for number, plan in enumerate(LADDER[rung + 1 :], start=rung + 1):
            after = costs.of(plan, overlap=self._overlap)
            if after is None or after < _SAVES * cost:
                return number
        return None

    def _take(self, rung: int, now: float) -> None:
        self.plan, self._changed = LADDER[rung], now
