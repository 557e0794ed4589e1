"""What runs where on this machine, and what to do about what does not."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from streamfix.errors import StreamfixError

Level = Literal["ok", "note", "bad"]
_ENCODERS = ("libx264", "libx265", "libsvtav1", "ffv1")
_HARDWARE = ("h264_nvenc", "hevc_nvenc", "h264_qsv", "h264_vaapi", "h264_videotoolbox", "h264_amf")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. level: ok, note (works, but could be better) or bad (the main job cannot run); remedy: what to do, or empty."""

    level: Level
    what: str
    state: str
    remedy: str = ""


def examine() -> list[Check]:
    """Run every check; a check that fails unexpectedly is itself a finding, never an exception."""
    found: list[Check] = []
    for check in (_python, _opencv, _media, _detector, _insightface, _torch, _restorer, _weights, _space):
        try:
            found += check()
        except StreamfixError as error:
            found.append(Check("bad", _name(check), str(error), "see the sentence on the left"))
        except Exception as error:
            found.append(Check("bad", _name(check), f"{type(error).__name__}: {error}", "install streamfix again"))
    return found


def _name(check: Callable[[], Iterator[Check]]) -> str:
    return check.__name__.strip("_")


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _python() -> Iterator[Check]:
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("ok", "python", f"{platform.python_version()} on {sys.platform}, {cores} cores")


def _opencv() -> Iterator[Check]:
    from streamfix._cv2 import cv2

    yield Check("ok", "opencv", cv2.__version__)
    both = [p for p in ("opencv-python", "opencv-python-headless", "opencv-contrib-python") if _installed(p)]
    if len(both) > 1:
        yield Check(
            "note",
            "opencv",
            f"{' and '.join(both)} are both installed and overwrite each other",
            f"pip uninstall {' '.join(both)}; pip install opencv-python",
        )


def _installed(package: str) -> bool:
    try:
        _version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _media() -> Iterator[Check]:
    import av

    yield Check("ok", "media", f"PyAV {av.__version__}, {len(av.codecs_available)} codecs of FFmpeg")
    missing = [e for e in _ENCODERS if e not in av.codecs_available]
    if missing:
        yield Check("note", "encoders", f"not in this build: {', '.join(missing)}", "install PyAV from its wheel")
    hardware = [e for e in _HARDWARE if e in av.codecs_available and _opens(e)]
    yield Check("ok", "hardware encoders", ", ".join(hardware) or "none; x264 on the CPU is used")


def _opens(encoder: str) -> bool:
    from fractions import Fraction

    import av

    try:
        context = av.CodecContext.create(encoder, "w")
        context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"  # type: ignore[attr-defined]
        context.time_base = Fraction(1, 25)
        context.open()
    except (av.FFmpegError, OSError, ValueError):  # PermissionError without the driver
        return False
    return True


def _detector() -> Iterator[Check]:
    import numpy as np

    from streamfix.faces.detect import load_detector

    detector = load_detector("retinaface")
    detector.detect(np.zeros((64, 64, 3), np.uint8))
    import onnxruntime

    providers = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
    yield Check("ok", "detector", f"{detector.name}; onnxruntime {onnxruntime.__version__} ({', '.join(providers)})")


def _insightface() -> Iterator[Check]:
    from streamfix.models import find

    pack = find("buffalo_l")
    if pack.present:
        yield Check("ok", "insightface", f"{_version('insightface')}, pack {pack.name}")
    else:
        yield Check(
            "note",
            "insightface",
            f"{_version('insightface')}, no pack: no reference photos (--faces me.jpg)",
            "streamfix models pull buffalo_l (non-commercial)",
        )


def _torch() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Check("ok", "gpu", f"{torch.cuda.get_device_name(index)}, torch {torch.__version__}")
    else:
        built = torch.version.cuda
        remedy = "install an NVIDIA driver, or a torch that matches it" if built and shutil.which("nvidia-smi") else ""
        yield Check("note", "gpu", f"none that torch {torch.__version__} can use; the CPU is used", remedy)


def _restorer() -> Iterator[Check]:
    import time

    import torch

    from streamfix.restore.base import describe, load_restorer
    from streamfix.restore.lite.openvino_engine import available, suits

    restorer = load_restorer("auto")
    crop = torch.zeros(1, 3, 512, 512)
    restorer.restore(crop)
    began = time.monotonic()
    for _ in range(5):
        restorer.restore(crop)
    each = (time.monotonic() - began) / 5
    yield Check("ok", "restorer", f"{describe(restorer)}: {1 / each:.1f} faces/s, one at a time")
    on_a_plain_cpu = restorer.name == "lite" and restorer.device.type == "cpu" and restorer.dtype is torch.float32
    if on_a_plain_cpu and suits() and not available():
        yield Check(
            "note", "restorer", "OpenVINO may restore faster on this processor", "pip install 'streamfix[openvino]'"
        )


def _weights() -> Iterator[Check]:
    from streamfix.models import catalogue, verify

    for model in catalogue():
        if model.present and verify(model) is False:
            remedy = f"streamfix models pull {model.name}" if model.url else "install streamfix again"
            yield Check("bad", "weights", f"{model.name} differs from its sha256", remedy)
    here = [m.name for m in catalogue() if m.present]
    yield Check("ok", "weights", f"here: {', '.join(here)}")


def _space() -> Iterator[Check]:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    level: Level = "ok" if free > 1e9 else "note"
    yield Check(
        level, "disk", f"{free / 1e9:.1f} GB free in {tempfile.gettempdir()}", "" if level == "ok" else "make room"
    )
