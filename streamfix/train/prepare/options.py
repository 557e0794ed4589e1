"""What decides which faces are kept, and how they are split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamfix.errors import InputError, UsageError
from streamfix.faces.align import YAW_RAMP
from streamfix.models import sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything that decides the result.

    detector: as `load_detector` takes it. embedding: ONNX face embedding that tells people apart, embedding_norm its input
    scaling. every: seconds between the frames of a video that are looked at. min_score: of the detector, 0..1. min_size:
    square root of the area of the face's box, source pixels; at 192 the smallest layout needs no enlarging. max_yaw: degrees from
    frontal; the default is where inference begins to fade. min_inside: share of the template's square that lies in the picture;
    the rest is mirrored. min_sharpness: see measure.sharpness. val: share of the faces that are kept for validation.
    same: cosine of two embeddings from which on they are one person.
    """

    detector: str = "auto"
    embedding: Path | None = None
    embedding_norm: str = "arcface"
    every: float = 1.0
    min_score: float = 0.8
    min_size: float = 192.0
    max_yaw: float = YAW_RAMP[0]
    min_inside: float = 0.75
    min_sharpness: float = 25.0
    val: float = 0.05
    same: float = 0.45

    def check(self) -> None:
        """UsageError for values outside their range, InputError for an embedding that is not there."""
        if self.every <= 0:
            raise UsageError(f"frames cannot be taken every {self.every:g} seconds; give a time above 0, such as 1")
        for name in ("min_score", "min_inside", "val"):
            if not 0 <= getattr(self, name) <= 1:
                word = name.replace("_", "-")
                raise UsageError(f"--{word} is a share from 0 to 1, not {getattr(self, name):g}")
        if not -1 < self.same < 1:
            raise UsageError(f"--same is a cosine between -1 and 1, not {self.same:g}")
        if self.embedding is not None and not self.embedding.is_file():
            raise InputError(
                f"there is no face embedding {self.embedding}; give an ONNX file, or leave --embedding out"
            )

    def settings(self, detector: str) -> dict[str, Any]:
        """What decides which faces a file gives, as plain JSON: a folder holds faces of one such set only.

        detector: name of the one that was loaded. The split is made anew in every run and is not part of it.
        """
        facts = asdict(self) | {"detector": detector}
        facts["embedding"] = None if self.embedding is None else sha256_of(self.embedding)
        return {key: value for key, value in facts.items() if key not in ("val", "same")}
