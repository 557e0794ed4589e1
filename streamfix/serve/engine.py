"""The work on one live stream: look (detect, follow, cut out) and finish (restore, lay back), under the governor's plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low

import av
import numpy as np
import numpy.typing as npt

from streamfix.compose import compose
from streamfix.errors import UsageError
from streamfix.faces.cuts import CutDetector
from streamfix.faces.detect import Detector, detect_upright
from streamfix.faces.live import LiveFollower
from streamfix.faces.select import Selector, parse_select, size_of
from streamfix.media.color import copy_picture, cut_out, to_rgb
from streamfix.serve.costs import Costs, ModelCosts
from streamfix.serve.detail import Detail
from streamfix.serve.figures import Figures
from streamfix.serve.governor import Governor, Plan
from streamfix.serve.models import Models
from streamfix.types import Crop, Frame, Placement

FACES = ("all", "largest", "center")
"""Which faces can be chosen while a stream runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What may be changed while a stream runs.

    strength: 0 (input) .. 1 (restored). model: a name of the engine's restorers. faces: one of FACES, or a photo given at the start.
    """

    strength: float = 1.0
    model: str = "lite"
    faces: str = "all"

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise UsageError(f"strength must lie between 0 (input) and 1 (restored), not {self.strength:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A frame after the first half.

    crops: of the faces to restore. faces: how many are followed. plan: the one it was looked at under.
    """

    frame: Frame
    crops: list[Crop]
    faces: int
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A finished frame. before: the input's picture, where it was asked for. faces: how many are followed in it."""

    frame: Frame
    before: av.VideoFrame | None
    faces: int


class Engine:
    """One stream's stages for the Scheduler, with the state they need from frame to frame.

    detector: of its own (detectors are not shared between threads). settings, keep_before: may be set at any time.
    """

    def __init__(
        self,
        *,
        models: Models,
        detector: Detector,
        settings: Settings,
        figures: Figures,
        select: Selector | None = None,
        governor: Governor | None = None,
    ) -> None:
        self._models, self._detector, self._figures = models, detector, figures
        self._given_select = select
        efforts = models.efforts(settings.model) if settings.model in models.names else ()
        self.governor = governor or Governor(efforts=max(len(efforts), 1))
        self._settings = settings
        self.keep_before = False
        self._cuts = CutDetector()
        self._follower = LiveFollower(select=select or parse_select(settings.faces, detector))
        self._memory = models.memory()
        self._model_costs = ModelCosts([effort.share for effort in efforts])
        self._detail = Detail(self._restore)
        self._considered = figures.clock()
        self._counts: list[int] = []
        self.check(settings)

    @property
    def settings(self) -> Settings:
        """As they are now."""
        return self._settings

    @property
    def plan(self) -> str:
        """What the governor chose, for people; empty where nothing is restored."""
        model, plan = self._settings.model, self.governor.plan
        if not self._models.changes(model):
            return ""
        ways = self._models.efforts(model)
        return plan.words(ways[min(plan.effort, len(ways) - 1)].words)

    def change(self, settings: Settings) -> None:
        """Take other settings from the next frame on. Raises UsageError for an unknown model or choice of faces."""
        self.check(settings)
        if settings.faces != self._settings.faces:
            self._follower.select = parse_select(settings.faces, self._detector)
        if self._models.changes(settings.model) and not self._models.changes(self._settings.model):
            # what they knew was long ago, and the tracks of a new follower are numbered from 0 again
            self._follower = LiveFollower(select=self._follower.select)
            self._memory = self._models.memory()
            self._detail.clear()
        self._settings = settings

    def check(self, settings: Settings) -> None:
        """UsageError unless the settings can be taken."""
        if settings.model not in self._models.names:
            raise UsageError(
                f"there is no model {settings.model!r} here; choose one of {', '.join(self._models.names)}"
            )
        if self._given_select is None and settings.faces not in FACES:
            raise UsageError(f"faces must be one of {', '.join(FACES)}, not {settings.faces!r}")

    def look(self, frame: Frame) -> Looked:
        """Find and follow the faces, cut out those to restore."""
        plan, figures = self.governor.plan, self._figures
        if not self._models.changes(self._settings.model):  # nothing will be restored: nothing is looked for
            return Looked(frame=frame, crops=[], faces=0, plan=plan)
        with figures.stage("rgb"):
            image = to_rgb(frame)
            cut = self._cuts.is_cut(image)
        faces = None
        if cut or self._follower.wants_detection(plan.detect_every):
            with figures.stage("detect"):
                faces = detect_upright(self._detector, image, frame.rotation)
        with figures.stage("follow"):
            placements = self._follower.step(frame, image, faces, cut=cut)
        strength = self._settings.strength
        chosen = [replace(p, strength=p.strength * strength) for p in _largest(placements, plan.most_faces)]
        with figures.stage("cut"):
            crops = [
                Crop(frame_index=frame.index, placement=p, image=cut_out(frame, p.matrix))
                for p in chosen
                if p.strength > 0.0
            ]
        if cut:
            self._memory = self._models.memory()
        return Looked(frame=frame, crops=crops, faces=len(placements), plan=plan)

    def finish(self, looked: Looked) -> Restored:
        """Restore the crops, or give them the detail that their tracks have, and lay them back."""
        frame, crops = looked.frame, looked.crops
        before = copy_picture(frame.picture) if self.keep_before else None
        pictures: Sequence[npt.NDArray[np.float32] | None]
        if looked.plan.fresh and crops:
            fresh = self._restore(crops)
            self._detail.renew(crops, fresh)
            pictures = fresh
        with self._figures.stage("lay"):
            if not looked.plan.fresh or not crops:
                pictures = self._detail.lay(crops)
            out = frame
            pairs = [(c, p) for c, p in zip(crops, pictures, strict=True) if p is not None]
            for crop, picture in sorted(pairs, key=lambda pair: size_of(pair[0].placement)):
                out = compose(out, crop, picture)
        self._consider(looked.faces)
        return Restored(frame=out, before=before, faces=looked.faces)

    def stop(self) -> None:
        """End the thread of the detail."""
        self._detail.stop()

    def _restore(self, crops: Sequence[Crop]) -> list[npt.NDArray[np.float32]]:
        model, began = self._settings.model, self._figures.clock()
        effort = min(self.governor.plan.effort, len(self._models.efforts(model)) - 1)
        if not self._models.ready(model, effort):
            effort = 0
        pictures = self._models.restore(model, crops, self._memory, effort=effort)
        now = self._figures.clock()
        self._figures.spent("restore", now - began)
        self._model_costs.spent(effort, now - began, faces=len(crops), now=now)
        return pictures

    def _consider(self, faces: int) -> None:
        now = self._figures.clock()
        interval = self._figures.interval
        self._counts.append(faces)
        if now - self._considered < 1.0 or interval is None:
            return
        self._considered = now
        faces, self._counts = (
            median_low(self._counts),
            [],
        )  # a track that dies while its person has a new one is no crowd
        mean = self._figures.mean
        frame = sum(mean(name) or 0.0 for name in ("rgb", "follow", "cut"))
        costs = Costs(
            frame=frame,
            detect=mean("detect") or 0.0,
            model=self._model_costs.all(now=now),
            lay=mean("lay") or 0.0,
            faces=faces,
        )
        self._detail.at_once = self.governor.consider(costs, interval=interval, now=now).batch


def _largest(placements: list[Placement], most: int | None) -> list[Placement]:
    if most is None or len(placements) <= most:
        return placements
    keep = {p.track_id for p in sorted(placements, key=size_of, reverse=True)[:most]}
    return [p for p in placements if p.track_id in keep]
