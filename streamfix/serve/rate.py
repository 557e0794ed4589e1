"""How many bits a viewer gets: up while its reports are good, down when packets are lost or pile up on the way."""

from __future__ import annotations

from streamfix.serve.encode import LOWEST_BITRATE

START_BITRATE = 1_500_000
_UP = 1.08
_LOSS_HIGH = 0.10
_LOSS_LOW = 0.02
_PILED_UP = 0.25
"""Seconds by which the round trip may exceed its best before packets are taken to queue somewhere."""
_PILED_REPORTS = 3
"""So many reports in a row: a machine that stalls for a moment is no full queue."""
_PILED_SHARE = 0.85
_BEST_FORGETS = 1.005


class RateControl:
    """The loss-based half of Google's congestion control (draft-ietf-rmcat-gcc), with round trips in place of its delay-based one.

    aiortc's public statistics carry what RTCP receiver reports say. ceiling: bits a second, may be set at any time.
    """

    def __init__(self, *, ceiling: int) -> None:
        self.ceiling = ceiling
        self.target = min(START_BITRATE, ceiling)
        self._before: tuple[int, int] | None = None
        self._best: float | None = None
        self._late = 0

    def report(self, *, sent: int, lost: int, round_trip: float | None) -> bool:
        """Take one report: packets sent and lost since the beginning, seconds there and back. True where packets were lost anew."""
        before, self._before = self._before, (sent, lost)
        if before is None:
            return False
        packets, missing = sent - before[0], max(lost - before[1], 0)
        if packets <= 0:
            return False
        loss = min(missing / packets, 1.0)
        if round_trip is not None:
            self._best = round_trip if self._best is None else min(round_trip, self._best * _BEST_FORGETS)
            self._late = self._late + 1 if round_trip > self._best + _PILED_UP else 0
        piled = self._late >= _PILED_REPORTS
        if loss > _LOSS_HIGH:
            self.target = int(self.target * (1.0 - 0.5 * loss))
        elif piled:
            self.target = int(self.target * _PILED_SHARE)
        elif loss < _LOSS_LOW:
            self.target = int(self.target * _UP)
        self.target = max(min(self.target, self.ceiling), LOWEST_BITRATE)
        return missing > 0
