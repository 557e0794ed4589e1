"""Metrics of image pairs. Those whose weights are not at hand are left out by name, never replaced by something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamfix.errors import DependencyError
from streamfix.evaluate.judges import Judge, load_judges
from streamfix.faces.embedding import FaceEmbedding
from streamfix.train.losses import Lpips

Picture = npt.NDArray[np.float32]
"""float32 (H, W, 3), RGB in [0, 1]."""


@dataclass(slots=True)
class Metrics:
    """PSNR, SSIM, and, where their weights are at hand, LPIPS, identity cosine and judges (see judges.py)."""

    lpips: Sequence[Lpips] = ()
    identity: FaceEmbedding | None = None
    judges: Sequence[Judge] = ()
    missing: list[str] = field(default_factory=list)

    @classmethod
    def load(
        cls,
        *,
        lpips: Sequence[Path] = (),
        identity: Path | None = None,
        norm: str = "arcface",
        judges: Sequence[str] = (),
    ) -> Metrics:
        """Load what files and packages are there; `missing` names the metrics left out, with what brings them."""
        missing = [] if lpips else ["LPIPS (give its weights: --lpips FILE)"]
        missing += [] if identity else ["identity (give a face embedding: --identity FILE)"]
        at_hand, absent = load_judges(judges)
        embedding = FaceEmbedding(identity, norm=norm) if identity else None
        return cls([Lpips(p) for p in lpips], embedding, at_hand, missing + absent)

    def names(self) -> list[str]:
        """Columns, in the order of `compare`."""
        known = ["PSNR", "SSIM", *(f"LPIPS-{n.kind}" for n in self.lpips), *(["identity"] if self.identity else [])]
        return [*known, *(j.name for j in self.judges)]

    @torch.inference_mode()
    def compare(self, image: Picture, truth: Picture) -> dict[str, float]:
        """PSNR in dB, SSIM (11x11 Gaussian, sigma 1.5), LPIPS v0.1 (lower is better), identity as cosine, judges as distances."""
        a, b = tensor(image), tensor(truth)
        values = {"PSNR": psnr(image, truth), "SSIM": ssim(a, b)}
        for net in self.lpips:
            values[f"LPIPS-{net.kind}"] = float(net(a * 2 - 1, b * 2 - 1))
        if self.identity is not None:
            values["identity"] = float(self.identity(image) @ self.identity(truth))
        values.update((judge.name, judge(image, truth)) for judge in self.judges)
        return values


def tensor(image: Picture) -> Tensor:
    """(H, W, 3) as (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def psnr(image: Picture, truth: Picture) -> float:
    """Peak signal to noise ratio in dB over RGB in [0, 1]; infinite where both are equal."""
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of (1, 3, H, W) in [0, 1], by torchmetrics."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as measure
    except ImportError as error:
        raise DependencyError(f"torchmetrics cannot be loaded ({error}); pip install 'streamfix[evaluate]'") from error
    return float(measure(a, b, data_range=1.0))  # type: ignore[arg-type]
