"""The operators of ONNX that this project's graphs are made of, as calls of torch.

Each function gets one node with the values of its inputs, and emits the calls of torch that compute
its outputs (https://onnx.ai/onnx/operators, from opset 13 on). What steers an operator, such as the
shape of a Reshape, must be known when the graph is converted; shapes are static, so it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto, TensorProto
from torch import Tensor, fx

from nas.errors import EngineError
from nas.latency.onnx_graph import attribute

__all__ = ["OPERATORS", "Call", "Value"]

_T = TypeVar("_T")
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph.

    Args:
        example: a constant itself; of others shape and type, on the device `meta`.
        node: that computes it; None for a constant.
    """

    example: Tensor
    node: fx.Node | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its static shape."""
        return tuple(self.example.shape)


@dataclass(frozen=True)
class Call:
    """A node that is being converted.

    Args:
        node: of the ONNX graph.
        inputs: the values of its inputs; None where one is left out.
        emit: adds a call of torch to the graph, with values among its arguments, and returns what
            that returns, as values.
        half: what half precision becomes.
    """

    node: NodeProto
    inputs: Sequence[Value | None]
    emit: Callable[..., Any]
    half: torch.dtype

    def __getitem__(self, index: int) -> Value:
        """Return an input that must be there."""
        value = self.optional(index)
        if value is None:
            raise self.unsupported(f"without input {index}")
        return value

    def optional(self, index: int) -> Value | None:
        """Return an input, or None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def numbers(self, index: int) -> list[Any]:
        """Return an input that steers the operator as a flat list of numbers."""
        value = self[index]
        if value.node is not None:
            raise self.unsupported(f"with an input {index} that depends on the image")
        return list(value.example.reshape(-1).tolist())

    def attribute(self, name: str, default: _T) -> _T:
        """Return an attribute, or what ONNX takes if it is absent."""
        found: _T = attribute(self.node, name, default)
        return found

    def only(self, name: str, allowed: object, default: object = None) -> None:
        """Refuse any other value of an attribute; `default` is that of ONNX, if it is another."""
        found: Any = self.attribute(name, allowed if default is None else default)
        found = found.decode() if isinstance(found, bytes) else found
        if found != allowed:
            raise self.unsupported(f"with {name} = {found!r}")

    def unsupported(self, what: str) -> EngineError:
        """Make the error that says what this operator cannot do here."""
        return EngineError(f"{self.node.op_type} {what} is not converted to torch.")


Operator = Callable[[Call], Any]


def _same(function: Callable[..., Tensor]) -> Operator:
    """Convert an operator that has the same inputs in torch."""

    def convert(call: Call) -> Any:
        return call.emit(function, *(value for value in call.inputs if value is not None))

    return convert


def _folded(function: Callable[[Any, Any], Tensor]) -> Operator:
    """Convert an operator of any number of inputs that torch has for two."""

    def convert(call: Call) -> Any:
        value: Any = call[0]
        for other in call.inputs[1:]:
            value = call.emit(function, value, other)
        return value

    return convert


def _multiply(call: Call) -> Any:
    """Write x * sigmoid(x) as torch's SiLU: two passes over memory would be one too many."""
    for gate, value in ((call[0], call[1]), (call[1], call[0])):
        node = gate.node
        if node is not None and node.target is torch.sigmoid and node.args[0] is value.node:
            return call.emit(F.silu, value)
    return call.emit(torch.mul, call[0], call[1])


def _divide(call: Call) -> Any:
    """Divide; integers towards zero, as ONNX does."""
    whole = not call[0].example.is_floating_point()
    return call.emit(torch.div, call[0], call[1], rounding_mode="trunc" if whole else None)


def _clip(call: Call) -> Any:
    return call.emit(torch.clamp, call[0], call.optional(1), call.optional(2))


def _cast(call: Call) -> Any:
    types: dict[int, torch.dtype] = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: call.half,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
        TensorProto.BOOL: torch.bool,
    }
    wanted = call.attribute("to", 0)
    if wanted not in types:
        raise call.unsupported(f"to {TensorProto.DataType.Name(wanted)}")
    kind = types[wanted]
    return call[0] if call[0].example.dtype == kind else call.emit(Tensor.to, call[0], kind)


def _convolution(call: Call) -> Any:
    images, pads = _padded(call, 0.0)
    options = {**_window(call), **_groups(call), "padding": pads}
    return call.emit(F.conv2d, images, call[1], call.optional(2), **options)


def _transposed(call: Call) -> Any:
    top, left, bottom, right = call.attribute("pads", [0] * 4)
    if (top, left) != (bottom, right):
        raise call.unsupported("with padding that differs between sides")
    call.only("auto_pad", "NOTSET")
    extra = call.attribute("output_padding", [0, 0])
    return call.emit(
        F.conv_transpose2d,
        *(call[0], call[1], call.optional(2)),
        **_window(call),
        **_groups(call),
        padding=(top, left),
        output_padding=tuple(extra),
    )


def _max_pool(call: Call) -> Any:
    if len(call.node.output) > 1:
        raise call.unsupported("with indices")
    call.only("storage_order", 0)
    images, pads = _padded(call, -torch.inf)
    return call.emit(
        F.max_pool2d,
        images,
        tuple(call.attribute("kernel_shape", [])),
        **_window(call),
        padding=pads,
        ceil_mode=bool(call.attribute("ceil_mode", 0)),
    )


def _window(call: Call) -> dict[str, Any]:
    if len(call[0].shape) != 4:
        raise call.unsupported(f"of {len(call[0].shape) - 2} dimensions")
    return {
        "stride": tuple(call.attribute("strides", [1, 1])),
        "dilation": tuple(call.attribute("dilations", [1, 1])),
    }


def _groups(call: Call) -> dict[str, int]:
    return {"groups": call.attribute("group", 1)}


def _padded(call: Call, value: float) -> tuple[Value, tuple[int, int]]:
    """Return the input and the padding that torch adds; where sides differ, it is added before."""
    call.only("auto_pad", "NOTSET")
    top, left, bottom, right = call.attribute("pads", [0] * 4)
    if (top, left) == (bottom, right):
        return call[0], (top, left)
    return call.emit(F.pad, call[0], (left, right, top, bottom), value=value), (0, 0)


def _resize(call: Call) -> Any:
    """Enlarge by whole factors, each pixel repeated: what upsampling of detectors is."""
    call.only("mode", "nearest")
    sizes = call.numbers(3) if call.optional(3) else None
    factors = (
        [new / old for new, old in zip(sizes, call[0].shape, strict=True)]
        if sizes
        else call.numbers(2)
    )
    whole = [int(one) for one in factors]
    if whole != factors or whole[:2] != [1, 1] or len(whole) != 4:
        raise call.unsupported(f"by {factors}")
    # Of the ways to round, these two repeat each pixel equally often.
    if call.attribute("coordinate_transformation_mode", b"half_pixel") == b"asymmetric":
        call.only("nearest_mode", "floor", "round_prefer_floor")
    else:
        call.only("coordinate_transformation_mode", "half_pixel")
        call.only("nearest_mode", "round_prefer_floor")
    return call.emit(F.interpolate, call[0], scale_factor=tuple(whole[2:]), mode="nearest")


def _layer_norm(call: Call) -> Any:
    values, axis = call[0], call.attribute("axis", -1)
    shape = values.shape[axis % len(values.shape) :]
    epsilon = call.attribute("epsilon", 1e-5)
    return call.emit(F.layer_norm, values, shape, call[1], call.optional(2), epsilon)


def _softmax(call: Call) -> Any:
    return call.emit(torch.softmax, call[0], dim=call.attribute("axis", -1))


def _reduce_sum(call: Call) -> Any:
    axes = call.numbers(1) if call.optional(1) else []
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return call[0]
    keep = bool(call.attribute("keepdims", 1))
    return call.emit(torch.sum, call[0], tuple(axes or range(len(call[0].shape))), keepdim=keep)


def _top_k(call: Call) -> Any:
    return call.emit(
        torch.topk,
        call[0],
        call.numbers(1)[0],
        dim=call.attribute("axis", -1),
        largest=bool(call.attribute("largest", 1)),
        sorted=bool(call.attribute("sorted", 1)),
    )


def _arg_max(call: Call) -> Any:
    call.only("select_last_index", 0)
    keep = bool(call.attribute("keepdims", 1))
    return call.emit(torch.argmax, call[0], dim=call.attribute("axis", 0), keepdim=keep)


def _gather(call: Call) -> Any:
    data, index, axis = call[0], call[1], call.attribute("axis", 0) % len(call[0].shape)
    flat = call.emit(torch.reshape, _not_negative(data, index, axis), (-1,))
    found = call.emit(torch.index_select, data, axis, flat)
    shape = (*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])
    return found if found.shape == shape else call.emit(torch.reshape, found, shape)


def _gather_elements(call: Call) -> Any:
    axis = call.attribute("axis", 0)
    return call.emit(torch.gather, call[0], axis, _not_negative(call[0], call[1], axis))


def _scatter_elements(call: Call) -> Any:
    call.only("reduction", "none")
    axis = call.attribute("axis", 0)
    index = _not_negative(call[0], call[1], axis)
    return call.emit(torch.scatter, call[0], axis, index, call[2])


def _not_negative(data: Value, index: Value, axis: int) -> Value:
    """Count from the start what ONNX lets count from the end.

    Indices that the network computes come from TopK or ArgMax, which count from the start.
    """
    if index.node is not None:
        return index
    count = data.shape[axis]
    return Value(torch.where(index.example < 0, index.example + count, index.example))


def _reshape(call: Call) -> Any:
    shape = call.numbers(1)
    if not call.attribute("allowzero", 0):
        shape = [call[0].shape[i] if side == 0 else side for i, side in enumerate(shape)]
    return call.emit(torch.reshape, call[0], tuple(shape))


def _flatten(call: Call) -> Any:
    axis = call.attribute("axis", 1)
    rows = torch.Size(call[0].shape[:axis]).numel()
    return call.emit(torch.reshape, call[0], (rows, -1))


def _expand(call: Call) -> Any:
    shape = np.broadcast_shapes(call[0].shape, tuple(call.numbers(1)))
    return call.emit(Tensor.expand, call[0], shape)


def _slice(call: Call) -> Any:
    """Cut; the end that exporters write for "to the end" is larger than any side."""
    starts, ends = call.numbers(1), call.numbers(2)
    axes = call.numbers(3) if call.optional(3) else range(len(starts))
    steps = call.numbers(4) if call.optional(4) else [1] * len(starts)
    cuts = [slice(None)] * len(call[0].shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise call.unsupported(f"with a step of {step}")
        cuts[axis] = slice(start, min(end, _TO_THE_END), step)
    return call.emit(_cut, call[0], tuple(cuts))


def _cut(values: Tensor, cuts: tuple[slice, ...]) -> Tensor:
    return values[cuts]


def _split(call: Call) -> Any:
    axis, count = call.attribute("axis", 0), len(call.node.output)
    side = call[0].shape[axis]
    sizes = call.numbers(1) if call.optional(1) else _parts(side, count)
    return call.emit(torch.split, call[0], tuple(sizes), dim=axis)


def _parts(side: int, count: int) -> list[int]:
    """Divide a side as ONNX does: equally, save the last part, which is what is left."""
    size = -(-side // count)
    return [min(size, side - size * index) for index in range(count)]


def _squeeze(call: Call) -> Any:
    shape, axes = call[0].shape, call.numbers(1) if call.optional(1) else None
    gone = {one % len(shape) for one in axes} if axes is not None else None
    kept = [
        side
        for index, side in enumerate(shape)
        if (index not in gone if gone is not None else side != 1)
    ]
    return call.emit(torch.reshape, call[0], tuple(kept))


def _unsqueeze(call: Call) -> Any:
    rank = len(call[0].shape) + len(call.numbers(1))
    value: Any = call[0]
    for axis in sorted(one % rank for one in call.numbers(1)):
        value = call.emit(torch.unsqueeze, value, axis)
    return value


def _transpose(call: Call) -> Any:
    order = call.attribute("perm", [*range(len(call[0].shape))][::-1])
    return call.emit(torch.permute, call[0], tuple(order))


def _concat(call: Call) -> Any:
    return call.emit(torch.cat, [*call.inputs], dim=call.attribute("axis", 0))


def _shape(call: Call) -> Any:
    start, end = call.attribute("start", 0), call.attribute("end", len(call[0].shape))
    return Value(torch.tensor(call[0].shape[start:end], dtype=torch.int64))


_ALIKE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "MatMul": torch.matmul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}
OPERATORS: dict[str, Operator] = {
    **{name: _same(function) for name, function in _ALIKE.items()},
    "ArgMax": _arg_max,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Div": _divide,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Identity": lambda call: call[0],
    "LayerNormalization": _layer_norm,
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _folded(torch.minimum),
    "Mul": _multiply,
    "ReduceSum": _reduce_sum,
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterElements": _scatter_elements,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operator of ONNX -> what converts it. `Constant` and `ConstantOfShape` are values, not calls."""
