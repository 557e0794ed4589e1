"""An ONNX graph as a torch module, so that gradients flow through a network that the user brings as a file.

Only what convolutional face embeddings are made of. The converters on PyPI (onnx2torch) do far more, but need
torchvision, which nothing else here does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamfix.errors import DependencyError, ModelError
from streamfix.files import check_file

Attributes = dict[str, Any]
Operator = Callable[[Sequence[Tensor | None], Attributes], Tensor]


@dataclass(frozen=True, slots=True)
class _Node:
    run: Operator
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


class OnnxNet(nn.Module):
    """The graph of an ONNX file with one image input and one used output; float32, frozen, evaluation mode.

    batch: the number of images that the graph demands at a time, None where it takes any. Raises DependencyError where
    the onnx package is missing, ModelError for a file that is no such graph or has an operator that is not known here.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        check_file(path)
        try:
            import onnx
        except ImportError as error:
            raise DependencyError(f"onnx cannot be loaded ({error}); pip install 'streamfix[train]'") from error
        try:
            graph = onnx.load(str(path)).graph
            constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        except Exception as error:  # protobuf and onnx raise unrelated types for broken files
            raise ModelError(f"{path} is no ONNX network that can be read ({type(error).__name__})") from error
        nodes = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant" and "value" in attributes:
                constants[node.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
            elif node.op_type in _OPERATORS:
                nodes.append(_Node(_OPERATORS[node.op_type], tuple(node.input), node.output[0], attributes))
            else:
                raise ModelError(
                    f"{path} has the ONNX operator {node.op_type}, which training cannot run; "
                    "simplify the network (onnxsim) or bring another"
                )
        inputs = [i for i in graph.input if i.name not in constants]
        if len(inputs) != 1 or not graph.output:
            raise ModelError(f"{path} has {len(inputs)} inputs; a network with one image input is needed")
        self._nodes = nodes
        self._input, self._output = inputs[0].name, graph.output[0].name
        self.batch = int(inputs[0].type.tensor_type.shape.dim[0].dim_value) or None
        self._numbers: dict[str, Tensor] = {}  # shapes and axes: integers, which stay on the CPU
        self._weights: dict[str, str] = {}
        for i, (name, value) in enumerate(constants.items()):
            tensor = torch.from_numpy(value.copy())
            if tensor.is_floating_point():
                self._weights[name] = f"weight{i}"
                self.register_buffer(self._weights[name], tensor.float(), persistent=False)
            else:
                self._numbers[name] = tensor

    def forward(self, image: Tensor) -> Tensor:
        """The first output for images (B, 3, H, W); B as `batch` says."""
        values: dict[str, Tensor | None] = {"": None, **self._numbers, self._input: image}
        for name, buffer in self._weights.items():
            values[name] = getattr(self, buffer)
        for node in self._nodes:
            values[node.output] = node.run([values[name] for name in node.inputs], node.attributes)
        result = values[self._output]
        assert result is not None
        return result


def _given(inputs: Sequence[Tensor | None], index: int) -> Tensor | None:
    return inputs[index] if index < len(inputs) else None


def _some(inputs: Sequence[Tensor | None], index: int = 0) -> Tensor:
    value = _given(inputs, index)
    if value is None:
        raise ModelError("an operator of the ONNX network lacks an input that it needs; export the network again")
    return value


def _numbers(inputs: Sequence[Tensor | None], index: int, attributes: Attributes, name: str) -> list[int] | None:
    """Whole numbers that older opsets keep in an attribute and newer ones in an input."""
    value = _given(inputs, index)
    return [int(v) for v in (value.tolist() if value is not None else attributes.get(name, ()))] or None


def _conv(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, weight = _some(inputs), _some(inputs, 1)
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or weight.ndim != 4:
        raise ModelError("the ONNX network has a convolution with automatic padding or not in 2D; export it again")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    padding = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    stride, dilation = (tuple(attributes.get(k, (1, 1))) for k in ("strides", "dilations"))
    return F.conv2d(x, weight, _given(inputs, 2), stride, padding, dilation, attributes.get("group", 1))


def _batch_norm(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, scale, bias, mean, variance = (_some(inputs, i) for i in range(5))
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _prelu(inputs: Sequence[Tensor | None], _: Attributes) -> Tensor:
    x = _some(inputs)
    return torch.where(x >= 0, x, x * _some(inputs, 1))


def _clip(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, low, high = _some(inputs), _given(inputs, 1), _given(inputs, 2)
    if low is None and high is None:
        return x.clamp(attributes.get("min", -math.inf), attributes.get("max", math.inf))
    return x.clamp(low, high)


def _gemm(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    a, b, c = _some(inputs), _some(inputs, 1), _given(inputs, 2)
    a, b = (v.T if attributes.get(k) else v for v, k in ((a, "transA"), (b, "transB")))
    product = (a @ b) * float(attributes.get("alpha", 1.0))
    return product if c is None else product + c * float(attributes.get("beta", 1.0))


def _flatten(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x = _some(inputs)
    return x.reshape(math.prod(x.shape[: attributes.get("axis", 1)]), -1)


def _reshape(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, shape = _some(inputs), [int(v) for v in _some(inputs, 1).tolist()]
    return x.reshape([x.shape[i] if v == 0 and not attributes.get("allowzero") else v for i, v in enumerate(shape)])


def _transpose(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x = _some(inputs)
    return x.permute(tuple(attributes.get("perm", range(x.ndim - 1, -1, -1))))


def _squeeze(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    axes = _numbers(inputs, 1, attributes, "axes")
    return _some(inputs).squeeze(tuple(axes)) if axes else _some(inputs).squeeze()


def _mean(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    return _some(inputs).mean(_numbers(inputs, 1, attributes, "axes"), keepdim=bool(attributes.get("keepdims", 1)))


def _pad(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, pads = _some(inputs), _numbers(inputs, 1, attributes, "pads") or []
    mode = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}.get(
        attributes.get("mode", b"constant")
    )
    if mode is None or len(pads) != 2 * x.ndim or _given(inputs, 3) is not None:
        raise ModelError("the ONNX network pads in a way that training cannot run; simplify it (onnxsim)")
    pairs = [v for i in range(x.ndim - 1, -1, -1) for v in (pads[i], pads[i + x.ndim])]  # torch counts from the last
    while pairs and pairs[-2:] == [0, 0]:
        del pairs[-2:]
    value = _given(inputs, 2)
    constant = float(value) if value is not None else float(attributes.get("value", 0.0))
    return F.pad(x, pairs, mode, constant if mode == "constant" else None) if pairs else x


_OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "PRelu": _prelu,
    "Relu": lambda i, _: F.relu(_some(i)),
    "LeakyRelu": lambda i, a: F.leaky_relu(_some(i), a.get("alpha", 0.01)),
    "Sigmoid": lambda i, _: torch.sigmoid(_some(i)),
    "Clip": _clip,
    "Add": lambda i, _: _some(i) + _some(i, 1),
    "Sub": lambda i, _: _some(i) - _some(i, 1),
    "Mul": lambda i, _: _some(i) * _some(i, 1),
    "Div": lambda i, _: _some(i) / _some(i, 1),
    "MatMul": lambda i, _: _some(i) @ _some(i, 1),
    "Gemm": _gemm,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "GlobalAveragePool": lambda i, _: _some(i).mean((2, 3), keepdim=True),
    "ReduceMean": _mean,
    "Pad": _pad,
    "Identity": lambda i, _: _some(i),
    "Dropout": lambda i, _: _some(i),
}
