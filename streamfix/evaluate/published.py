"""The figures of the paper, to stand beside ours: InterLCM, ICLR 2025, arXiv 2502.02215v2, tables 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CITATION = "InterLCM (ICLR 2025, arXiv 2502.02215v2)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperSet:
    """A test set. key: on the command line. faces: how many it has. metrics: columns of the paper; with `paired` against a truth."""

    key: str
    name: str
    faces: int
    paired: bool
    metrics: tuple[str, ...]


SETS = {
    s.key: s
    for s in (
        PaperSet(
            key="celeba",
            name="CelebA-Test",
            faces=3000,
            paired=True,
            metrics=("LPIPS", "FID", "MUSIQ", "IDS", "PSNR", "SSIM"),
        ),
        PaperSet(key="lfw", name="LFW-Test", faces=1711, paired=False, metrics=("FID", "MUSIQ")),
        PaperSet(key="webphoto", name="WebPhoto-Test", faces=407, paired=False, metrics=("FID", "MUSIQ")),
        PaperSet(key="wider", name="WIDER-Test", faces=970, paired=False, metrics=("FID", "MUSIQ")),
    )
}
"""As GFPGAN, VQFR and CodeFormer publish them: aligned faces of 512x512."""

SMALLER_IS_BETTER = frozenset({"LPIPS", "FID", "FID-GT", "IDS", "LMD", "seconds"})


@dataclass(frozen=True, slots=True)
class Row:
    """A method of a table: values by set and metric. seconds: a face (the device is not stated)."""

    method: str
    values: Mapping[str, Mapping[str, float]]
    seconds: float | None = None


def _row(method: str, celeba: tuple[float, ...], *pairs: tuple[float, float], seconds: float | None = None) -> Row:
    whole = dict(zip(SETS, (celeba, *pairs), strict=True))
    named = {key: dict(zip(SETS[key].metrics, values, strict=True)) for key, values in whole.items()}
    return Row(method, MappingProxyType(named), seconds)


TABLE_1 = (
    _row("Input", (0.574, 145.22, 72.81, 47.94, 22.72, 0.706), (138.87, 26.87), (171.63, 18.63), (201.31, 14.22)),
    _row(
        "GFPGAN",
        (0.230, 49.84, 73.90, 34.56, 24.64, 0.688),
        (50.36, 73.57),
        (87.47, 72.08),
        (39.45, 72.79),
        seconds=0.059,
    ),
    _row(
        "CodeFormer",
        (0.227, 52.94, 75.55, 37.27, 25.15, 0.685),
        (52.84, 75.48),
        (83.95, 74.00),
        (39.22, 73.41),
        seconds=0.085,
    ),
    _row(
        "InterLCM",
        (0.223, 45.38, 76.58, 33.64, 25.19, 0.718),
        (51.32, 76.16),
        (75.48, 75.88),
        (35.43, 76.29),
        seconds=0.421,
    ),
)
"""Table 1. The paper's IDS is an angle, smaller is better (see docs/evaluation.md)."""


def _ablated(method: str, *pairs: tuple[float, float]) -> Row:
    keys = [s.key for s in SETS.values() if not s.paired]
    named = {key: dict(zip(SETS[key].metrics, pair, strict=True)) for key, pair in zip(keys, pairs, strict=True)}
    return Row(method, MappingProxyType(named))


TABLE_2 = {
    "VE + SE, start at the 2nd step": _ablated("full model", (51.32, 76.16), (75.48, 75.88), (35.43, 76.29)),
    "SE with null text": _ablated("null text", (55.56, 76.02), (76.06, 75.15), (37.28, 75.68)),
    "SE with a text prompt": _ablated("text prompt", (55.07, 75.75), (77.76, 75.30), (36.15, 75.98)),
}
"""Table 2, by the label of the variant; each was trained so, while ours switch the released encoders off."""
