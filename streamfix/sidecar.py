"""Where restored faces come from, as a JSON file beside the output: people who see them must be able to tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from streamfix.download import sha256_of
from streamfix.files import plain_value
from streamfix.media.part import prepare, write_whole
from streamfix.pipeline import Pipeline, Report, TrackFigures, provenance
from streamfix.types import Facts

NOTICE = "Restored faces are synthesised detail: plausible, not evidence. Do not identify people by them."


def sidecar_of(output: Path) -> Path:
    """Where it lies."""
    return output.with_name(f"{output.name}.json")


def check_sidecar(output: Path, *, source: Path, overwrite: bool) -> None:
    """OutputError where it cannot be written."""
    prepare(sidecar_of(output), source=source, overwrite=overwrite, touch=False)


def write_sidecar(
    output: Path, *, source: Path, pipeline: Pipeline, report: Report, options: Mapping[str, object]
) -> None:
    """Write it for an output that is there. options: of the job, beside those of its pipeline. Raises OutputError."""
    restorer = pipeline.restorer
    facts: Facts = {
        "enhanced": provenance(pipeline),
        "notice": NOTICE,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": _file(source),
        "output": _file(output),
        "model": {
            "name": restorer.name,
            "sha256": restorer.sha256,
            "device": str(restorer.device),
            "dtype": str(restorer.dtype).removeprefix("torch."),
        },
        "settings": {**pipeline.settings, **options},
        "frames": report.frames,
        "frames_with_faces": report.frames_with_faces,
        "faces": report.faces,
        "damaged": report.damaged,
        "tracks": [_track(track, figures) for track, figures in sorted(report.figures.items())],
    }
    write_whole(sidecar_of(output), (json.dumps(facts, indent=1, default=plain_value) + "\n").encode())


def _file(path: Path) -> Facts:
    if not path.is_file():  # a folder of pictures
        return {"name": path.name}
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _track(track: int, figures: TrackFigures) -> Facts:
    return {
        "track": track,
        "frames": figures.frames,
        "first_s": round(figures.first, 3),
        "last_s": round(figures.last, 3),
        "face_px": round(figures.size / figures.frames, 1),
        "used_mean": round(figures.used / figures.frames, 3),
        "used_most": round(figures.most, 3),
    }
