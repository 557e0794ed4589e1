"""What memory brings is measured on clips whose truth is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from streamfix.errors import UsageError
from streamfix.evaluate.clips import KINDS, evaluate_clips
from streamfix.evaluate.metrics import Metrics
from streamfix.evaluate.tables import clips_tables
from streamfix.restore.base import load_restorer


class Averager:
    """A restorer that mixes the frame before into the new one: steadier, and slow to forget."""

    name, sha256, device, dtype, recurrent = "averager", None, torch.device("cpu"), torch.float32, True

    def restore(self, crops: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return crops.clone()

    def restore_next(
        self, crops: torch.Tensor, states: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        mixed = torch.stack([c if s is None else (c + s) / 2 for c, s in zip(crops, states, strict=True)])
        return mixed, list(mixed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for i in range(2):
        coarse = rng.integers(0, 256, (24, 24, 3), np.uint8)
        cv2.imwrite(str(path / f"{i}.png"), cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC))
    return path


def test_a_restorer_that_averages_flickers_less_and_is_slow_after_a_cut(folder: Path) -> None:
    scores = evaluate_clips(folder, Averager(), Metrics.load(), limit=2, frames=4)
    assert scores.clips == 2
    alone, recurrent = (scores.means[kind] for kind in KINDS[1:])
    assert alone == pytest.approx(scores.means["input"], rel=1e-5), "frame by frame it changes nothing"
    assert recurrent["flicker"] < 0.9 * alone["flicker"]
    assert recurrent["sharpness"] < alone["sharpness"]
    assert set(alone) == {"flicker", "sharpness", "PSNR", "SSIM"}
    first, second = scores.cut["recurrent"]
    assert first > 2 * scores.cut["frame by frame"][0]
    assert first > second > scores.cut["frame by frame"][1]
    table, cut = clips_tables(scores)
    assert [row[0] for row in table.rows] == list(alone)
    assert len(cut.rows) == 2
    again = evaluate_clips(folder, Averager(), Metrics.load(), limit=2, frames=4)
    assert again.means == scores.means


def test_a_restorer_without_memory_is_told_so(folder: Path) -> None:
    with pytest.raises(UsageError, match="does not look at the frame before"):
        evaluate_clips(folder, load_restorer("passthrough"), Metrics.load())
