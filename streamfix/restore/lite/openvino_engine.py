"""LiteNet on a CPU through OpenVINO: in float32, the answers of torch within 1e-4; on some CPUs in less time.

The network that torch would run is converted in memory at the first call (about a second), whatever its inputs are: no
second weight file, nothing on disk that could grow stale. Nothing is reported to anyone, see `_quietly`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.restore.lite.network import LiteNet
from streamfix.restore.lite.signal_stack import keep_signal_stack


def suits() -> bool:
    """Whether the processor is of the kind that OpenVINO was measured to be faster on (x86-64)."""
    return platform.machine().lower() in ("x86_64", "amd64")


def available() -> bool:
    """Whether OpenVINO is installed, on a processor that it suits."""
    return suits() and importlib.util.find_spec("openvino") is not None


class _Change(nn.Module):
    """What LiteNet adds to whole crops, its position embedding a constant."""

    def __init__(self, net: LiteNet, position: Tensor) -> None:
        super().__init__()
        self.net, self.position = net, position

    def forward(self, crops: Tensor, previous: Tensor | None = None) -> Tensor:
        return self.net.change(crops, previous, self.position)


class OpenVinoNet:
    """LiteNet.forward, one face to an inference, so that a face never depends on its neighbours.

    net: float32, on the CPU. position: its embedding, (1, C, height/16, width/16), for whole crops or always the same window of
    them. threads: of the CPU, to use at most.
    """

    def __init__(self, net: LiteNet, position: Tensor, threads: int) -> None:
        self.version = importlib.metadata.version("openvino")
        self._net, self._position = net, position
        self._shape = (1, 3, 16 * position.shape[-2], 16 * position.shape[-1])
        self._threads = threads
        self._models: dict[int, tuple[Any, Any]] = {}
        self._requests: dict[tuple[int, int], list[Any]] = {}
        self._lock = threading.Lock()  # a request serves one caller at a time

    def at(self, position: Tensor) -> OpenVinoNet:
        """The same network on another window."""
        return OpenVinoNet(self._net, position, self._threads)

    def prepare(self) -> None:
        """Convert and compile for one face now."""
        with self._lock:
            if (1, 1) not in self._requests:
                self._compile(1, 1)

    def __call__(self, crops: Tensor, previous: Tensor | None) -> Tensor:
        """Restore: float32 (B, 3, height, width), and the crops before or None, to float32 of the same shape.

        Raises ModelError when this OpenVINO cannot take the network.
        """
        pictures = [crops] if previous is None or self._net.memory is None else [crops, previous]
        with self._lock:
            changes = self._changes(list(zip(*map(_rows, pictures), strict=True)))
        return torch.from_numpy(np.concatenate(changes)).add_(crops)

    def _changes(self, faces: Sequence[tuple[np.ndarray[Any, Any], ...]]) -> list[np.ndarray[Any, Any]]:
        # as many faces at a time as there are threads, each with its share of them: threads that work on one face wait
        # for each other at every layer
        streams = min(self._threads, len(faces))
        inputs = len(faces[0])
        requests = self._requests.get((streams, inputs)) or self._compile(streams, inputs)
        changes = []
        for start in range(0, len(faces), streams):
            part = list(zip(requests, faces[start : start + streams], strict=False))
            for request, pictures in part:
                request.start_async([p[None] for p in pictures])
            for request, _ in part:
                request.wait()
                changes.append(np.array(request.get_output_tensor().data))
        return changes

    def _compile(self, streams: int, inputs: int) -> list[Any]:
        openvino = _quietly()
        try:
            if inputs not in self._models:
                self._models[inputs] = self._convert(inputs)
            settings = {
                "INFERENCE_PRECISION_HINT": "f32",
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": str(self._threads),
            }
            with keep_signal_stack():
                compiled = openvino.Core().compile_model(self._models[inputs][0], "CPU", settings)
                self._requests[streams, inputs] = [compiled.create_infer_request() for _ in range(streams)]
        except RuntimeError as error:  # also its own exceptions
            first = str(error).strip().splitlines()[0]
            raise ModelError(
                f"OpenVINO {self.version} does not take the lite network ({first}); "
                "install another version, or none: torch is used then"
            ) from error
        return self._requests[streams, inputs]

    def _convert(self, inputs: int) -> tuple[Any, Any]:
        # of 1 input, crops, or 2, crops and the crops before; the model, and what it looks its weights up in
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        example = tuple(torch.ones(self._shape, dtype=torch.float32) for _ in range(inputs))
        change = _Change(self._net, self._position).eval()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one pass over one face: it stalls for a second where another program takes a core
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # tracing fixes shapes, which is what is wanted here
                traced = torch.jit.trace(change, example, check_trace=False)  # type: ignore[no-untyped-call]
        finally:
            torch.set_num_threads(threads)
        decoder = TorchScriptPythonDecoder(traced)
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        model.reshape({port: tuple(x.shape) for port, x in zip(model.inputs, example, strict=True)})
        return model, decoder


def _quietly() -> Any:
    """The package openvino, imported without a word to the outside.

    Importing it would send an event to an analytics service and write into the home folder; where its package for that
    cannot be imported it does neither. Its `convert_model`, which reports too, is not used here.
    """
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # the documented way to hide a module
    try:
        import openvino
    except ImportError as error:
        raise ModelError(f"OpenVINO is installed but cannot be loaded ({error}); install it again, or not") from error
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    return openvino


def _rows(crops: Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(crops.contiguous().numpy())
