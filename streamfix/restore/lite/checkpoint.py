"""The weight file of the embedded network: safetensors, float16, with the network's shape in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from streamfix.errors import ModelError
from streamfix.restore.lite.network import LiteConfig, LiteNet

_FORMAT = "streamfix-lite-1"


def write_weights(path: Path, state: dict[str, Tensor], config: LiteConfig, facts: dict[str, str]) -> None:
    """Write float16 weights, whole or not at all; `facts` (such as the number of steps) go into the metadata."""
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in state.items()}
    metadata = {"format": _FORMAT, "network": json.dumps(config.to_dict()), **facts}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=metadata)
    os.replace(part, path)


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are instead of filling them with random numbers.

    On the meta device there is nothing to fill, but torch would import its compiler to find that out: a second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def empty_net(config: LiteConfig) -> LiteNet:
    """The network with neither memory nor values behind its weights, for load_state_dict(..., assign=True)."""
    with torch.device("meta"), _NoDraws():
        return LiteNet(config)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], LiteConfig]:
    """Float32 state dict and network shape; ModelError when the file is missing, damaged or something else."""
    if not path.is_file():
        raise ModelError(f"there is no weight file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"the weights {path} are corrupted; copy or download them again") from error
    if metadata.get("format") != _FORMAT:
        raise ModelError(f"{path} does not hold weights of the lite restorer; train some with: streamfix train lite")
    config = LiteConfig.from_dict(json.loads(metadata["network"]))
    wanted = {key: value.shape for key, value in empty_net(config).state_dict().items()}
    if wanted != {key: value.shape for key, value in state.items()}:
        raise ModelError(f"the weights {path} do not fit the lite network that they name; train or download them again")
    return state, config
