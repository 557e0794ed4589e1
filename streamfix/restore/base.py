"""What a restorer is, and how to get one: aligned face crops in, better crops out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamfix.errors import ModelError, UsageError
from streamfix.models import find
from streamfix.types import CROP_SIZE

BATCH_SIZES = (1, 2, 4, 8)
"""The only batch sizes that restore_images sends: kernels are chosen by shape, so fixed shapes keep a face the same
face."""

KNOWN = ("auto", "lite", "passthrough", "interlcm", "interlcm-1step", "interlcm-colorize", "interlcm-inpaint")

Picture = npt.NDArray[np.float32]


@runtime_checkable
class Restorer(Protocol):
    """A model that restores aligned faces.

    name: as load_restorer knows it. sha256: of the weights, None when there are none. device, dtype: where and in what
    it computes.
    """

    name: str
    sha256: str | None
    device: torch.device
    dtype: torch.dtype

    def restore(self, crops: Tensor, noise: Tensor | None = None) -> Tensor:
        """Restore a batch of aligned faces.

        crops: float32 (B, 3, 512, 512), RGB in [-1, 1], on any device, B at least 1. noise: the model's own shape, or
        None for a restorer without any. Returns (B, 3, 512, 512) float32 in [-1, 1] on the device of `crops`. Pure: the
        same input gives the same output.
        """
        ...


@runtime_checkable
class RecurrentRestorer(Restorer, Protocol):
    """A restorer that may be guided by its own answer to the frame before.

    recurrent: whether these weights do; where not, `restore_next` forgets.
    """

    recurrent: bool

    def restore_next(self, crops: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Restore the next frame of each face.

        crops: as for `restore`. states: for each crop what the call before gave back for the same face, None for a face
        that is new. Returns what `restore` returns, and the states to hand in with the next frame.
        """
        ...


def recurs(restorer: Restorer, wanted: bool | None = None) -> TypeGuard[RecurrentRestorer]:
    """Whether to run a restorer with its memory: where it has one, if `wanted`; None is what it says of itself."""
    if wanted is None:
        wanted = getattr(restorer, "recurrent_by_default", True)
    return bool(wanted) and isinstance(restorer, RecurrentRestorer) and restorer.recurrent


def load_restorer(
    name: str | Path = "auto", *, device: str = "auto", dtype: str = "auto", threads: int | None = None
) -> Restorer:
    """The restorer of that name, ready to run.

    name: "auto" (the best that is here: interlcm where there are a GPU and its weights, else lite), "lite", "passthrough",
    the path of a lite weight file (.safetensors), or "interlcm", "interlcm-1step", "interlcm-colorize", "interlcm-inpaint",
    which may carry options: "interlcm:steps=2,noise=fresh" (`streamfix.restore.interlcm.options.Options` has them all).
    device: "auto" (CUDA where there is a GPU, else the CPU), or what torch.device takes. dtype: "auto" (the fastest
    that the device is good at), "float32", "bfloat16" or "float16". threads: CPU threads for torch in this whole
    process, 1 or more; None leaves them alone. On a CPU lite keeps to the number that torch has when it is loaded, and sets it
    again after several faces at once: choose it first. Raises UsageError for an unknown name, precision or option, ModelError
    for missing or corrupted weights, or a device that is not there.
    """
    from streamfix.restore.interlcm.options import split_spec
    from streamfix.restore.lite.restorer import LiteRestorer
    from streamfix.restore.passthrough import Passthrough

    name = str(name)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"torch computes in at least 1 thread, not {threads}")
        torch.set_num_threads(threads)
    where = device_of(device)
    if name == "auto":
        name = best_restorer(where)
    released = split_spec(name)
    if released is not None:
        from streamfix.restore.interlcm.restorer import InterLCMRestorer

        return InterLCMRestorer(*released, device=where, dtype=_dtype(dtype))
    if name == "lite":
        return LiteRestorer(device=where, dtype=_dtype(dtype))
    if name == "passthrough":
        return Passthrough(device=where)
    if name.endswith(".safetensors"):
        return LiteRestorer(Path(name), device=where, dtype=_dtype(dtype))
    raise UsageError(
        f"there is no restorer called {name!r}; choose one of {', '.join(KNOWN)}, or the path of a .safetensors file"
    )


def best_restorer(device: torch.device) -> str:
    """What "auto" stands for on a device: the published model where it is fast and its weights are here."""
    return "interlcm" if device.type == "cuda" and find("interlcm").present else "lite"


def restore_images(restorer: Restorer, images: Sequence[Picture], *, batch_size: int = 8) -> list[Picture]:
    """Restore faces as the pipeline holds them: float32 (512, 512, 3), RGB in [0, 1], same out, in the same order.

    Batches are padded to 1, 2, 4 or 8 faces, and hold at most `batch_size`. Raises ModelError when the model answers
    with NaN or infinity, or with anything but float32 of the same shape.
    """
    return restore_next_images(restorer, images, None, batch_size=batch_size)[0]


@torch.no_grad()  # a restorer of the caller's own may be a plain module
def restore_next_images(
    restorer: Restorer, images: Sequence[Picture], states: Sequence[Tensor | None] | None, *, batch_size: int = 8
) -> tuple[list[Picture], list[Tensor]]:
    """The same with the state of each face, for a RecurrentRestorer; its new states come back too.

    states: None for a restorer without any, or to leave its states out of it.
    """
    largest = max(b for b in BATCH_SIZES if b <= max(1, batch_size))
    restored: list[Picture] = []
    after: list[Tensor] = []
    for start in range(0, len(images), largest):
        part = images[start : start + largest]
        count = len(part)
        padding = next(b for b in BATCH_SIZES if b >= count) - count
        stack = np.stack([*part, *[part[-1]] * padding])
        # permuted, it stays channels_last: no copy for the network
        crops = torch.from_numpy(stack).permute(0, 3, 1, 2).mul(2).sub_(1)
        if states is None:
            result = restorer.restore(crops)
        else:
            assert isinstance(restorer, RecurrentRestorer)
            before = states[start : start + count]
            result, kept = restorer.restore_next(crops, [*before, *[before[-1]] * padding])
            after += kept[:count]
        if result.shape != crops.shape or result.dtype != torch.float32:
            raise ModelError(
                f"the restorer {restorer.name} answered with {result.dtype} of shape {tuple(result.shape)}; "
                f"torch.float32 of {tuple(crops.shape)} is what a restorer gives back"
            )
        result = result[:count]
        if not math.isfinite(float(result.sum())):  # a tenth of the time of looking at each value
            raise ModelError(
                f"the restorer {restorer.name} answered with values that are not finite numbers on {restorer.device}; "
                "try --dtype float32, and please report it"
            )
        faces = result.permute(0, 2, 3, 1).add(1).mul_(0.5).clamp_(0, 1).contiguous().numpy()
        restored.extend(faces)
    return restored, after


def describe(restorer: Restorer) -> str:
    """One line for people: name, device, precision and what makes it fast."""
    if restorer.name == "passthrough":
        return "passthrough (faces are left as they are)"
    parts = [str(restorer.dtype).removeprefix("torch.")]
    if restorer.device.type == "cpu" and restorer.dtype is torch.bfloat16:
        parts[0] += f" ({fast_bfloat16() or 'emulated: slow'})"
    engine = getattr(restorer, "engine", "channels_last")
    return f"{restorer.name} on {restorer.device}, {parts[0]}, {engine}"


def fast_bfloat16() -> str | None:
    """The instructions with which this CPU multiplies bfloat16 faster than float32: "AMX", "AVX512-BF16", or None.

    AVX512-BF16 counts on AMD's processors alone: Intel's issue it at a quarter of the rate, and float32 ran 1.6 times as
    fast as bfloat16 on one without AMX.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    flags = _cpu_flags()
    if "amx_bf16" in flags:
        return "AMX"
    return "AVX512-BF16" if "avx512_bf16" in flags and _vendor() == "AuthenticAMD" else None


def _vendor() -> str | None:
    # torch knows the instructions, but not whose processor has them
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), None)


def _cpu_flags() -> set[str]:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return {k for k, v in capabilities().items() if v is True}
    probes = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return {flag for flag, probe in probes.items() if getattr(torch.cpu, probe, lambda: False)()}


def device_of(name: str) -> torch.device:
    """The device of that name, for `auto` a GPU where there is one. Raises ModelError for one that cannot compute here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"torch cannot compute on the device {name!r} here; use --device cpu or auto") from error
    return device


def _dtype(name: str) -> torch.dtype | None:
    known = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UsageError(f"there is no precision called {name!r}; choose one of {', '.join(known)}")
    return known[name]


def check_crops(crops: Tensor) -> None:
    """ModelError unless crops are (B, 3, 512, 512) in float32 with B at least 1."""
    if not isinstance(crops, Tensor):
        raise ModelError(f"a restorer takes a torch tensor of crops, not {type(crops).__name__}")
    if (
        crops.ndim != 4
        or crops.shape[0] < 1
        or crops.shape[1:] != (3, CROP_SIZE, CROP_SIZE)
        or crops.dtype != torch.float32
    ):
        raise ModelError(
            f"a restorer takes float32 crops of shape (B, 3, 512, 512), not {crops.dtype} of {tuple(crops.shape)}"
        )
