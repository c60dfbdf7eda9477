"""An ONNX graph as a module of torch, by way of `torch.fx`.

Only the operators of this project's graphs are converted (`torch_operators.py`); any other is an
error that names it. Whatever does not depend on the image is computed once, here.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, fx, nn

from nas.errors import EngineError
from nas.latency.onnx_graph import attribute, image_shape, parse_onnx
from nas.latency.runtimes.torch_operators import OPERATORS, Call, Value

__all__ = ["TorchGraph"]

_OLDEST_OPSET = 13  # from here on, axes and sizes are inputs
_ARITHMETIC = frozenset({"Conv", "ConvTranspose", "MatMul"})
_FILTERS = frozenset({"Conv", "ConvTranspose"})


class TorchGraph:
    """A converted graph.

    Args:
        onnx: with one image input of static shape.
        half: the type of torch that half precision of the graph becomes.

    Attributes:
        module: from images (N, 3, H, W) to a tuple of outputs; its weights are buffers.
        outputs: their names.
        arithmetic: number of convolutions and products of matrices by the type that they compute
            in.

    Raises:
        EngineError: an operator, or a form of it, cannot be converted; names the node.
    """

    def __init__(self, onnx: bytes, half: torch.dtype = torch.float16) -> None:
        model = parse_onnx(onnx)
        _require_opset(model)
        self.outputs = [one.name for one in model.graph.output]
        self.arithmetic: Counter[torch.dtype] = Counter()
        self._half = half
        self._root, self._graph = nn.Module(), fx.Graph()
        self._buffers: dict[int, fx.Node] = {}
        weights = {one.name: self._constant(one) for one in model.graph.initializer}
        self._values: dict[str, Value] = weights
        self._place_input(model)
        for node in model.graph.node:
            self._convert(node)
        self._graph.output(tuple(self._attached(self._values[name]) for name in self.outputs))
        self._graph.eliminate_dead_code()
        self.module = fx.GraphModule(self._root, self._graph)

    def _place_input(self, model: ModelProto) -> None:
        name = next(one.name for one in model.graph.input if one.name not in self._values)
        example = torch.empty(image_shape(model), device="meta")
        self._values[name] = Value(example, self._graph.placeholder("images"))

    def _convert(self, node: NodeProto) -> None:
        try:
            results = self._results(node)
        except (EngineError, RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = error.message if isinstance(error, EngineError) else str(error).split("\n")[0]
            raise EngineError(
                f"PyTorch cannot run node {node.name!r} ({node.op_type}): {reason.rstrip('.')}.",
                "Choose another runtime, or leave out the block that has this operator.",
            ) from error
        self._values.update(zip(node.output, results, strict=False))
        if node.op_type in _ARITHMETIC:
            self.arithmetic[results[0].example.dtype] += 1

    def _results(self, node: NodeProto) -> list[Value]:
        if node.op_type == "Constant":
            return [self._constant(attribute(node, "value", None))]
        inputs = [self._values[name] if name else None for name in node.input]
        if node.op_type in _FILTERS and inputs[1] is not None and inputs[1].node is None:
            inputs[1] = _channels_last(inputs[1])
        call = Call(
            node, inputs, lambda *args, **named: self._emit(node, *args, **named), self._half
        )
        if node.op_type == "ConstantOfShape":
            fill = attribute(node, "value", numpy_helper.from_array(np.zeros(1, np.float32)))
            return [Value(self._constant(fill).example.expand(call.numbers(0)))]
        if node.domain or node.op_type not in OPERATORS:
            raise EngineError("this operator is not converted to torch")
        found = OPERATORS[node.op_type](call)
        return list(found) if isinstance(found, list | tuple) else [found]

    def _emit(
        self, origin: NodeProto, function: Callable[..., Any], *args: Any, **named: Any
    ) -> Any:
        """Add a call, or make it now if its arguments are constants; the values that it returns."""
        flowing = any(one.node is not None for one in _values_in((args, named)))
        place = torch.device("meta") if flowing else torch.device("cpu")
        examples = _mapped((args, named), lambda value: value.example.to(place))
        example = function(*examples[0], **examples[1])
        if not flowing:
            return _wrapped(example, lambda one, _: Value(one))
        nodes, options = _mapped((args, named), self._attached)
        made = self._graph.create_node(
            "call_function", function, nodes, options, origin.name or None
        )
        return _wrapped(
            example,
            lambda one, index: Value(
                one,
                made
                if index is None
                else self._graph.call_function(operator.getitem, (made, index)),
            ),
        )

    def _attached(self, value: Value) -> fx.Node:
        """Return the node of a value; a constant becomes a buffer of the module, once."""
        if value.node is not None:
            return value.node
        key = id(value.example)
        if key not in self._buffers:
            name = f"constant{len(self._buffers)}"
            self._root.register_buffer(name, value.example)
            self._buffers[key] = self._graph.get_attr(name)
        return self._buffers[key]

    def _constant(self, tensor: TensorProto | None) -> Value:
        if tensor is None:
            raise EngineError("a constant without a tensor is not converted to torch")
        values = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        half = values.dtype == torch.float16
        return Value(values.to(self._half) if half else values)


def _require_opset(model: ModelProto) -> None:
    opset = max((one.version for one in model.opset_import if not one.domain), default=0)
    if opset < _OLDEST_OPSET:
        raise EngineError(
            f"PyTorch runs graphs from opset {_OLDEST_OPSET} on, this one has {opset}.",
            "Export the network with opset 19.",
        )


def _channels_last(weight: Value) -> Value:
    """Lay a filter out as its images are: torch would do so in each run."""
    if weight.example.dim() != 4:
        return weight
    return Value(weight.example.contiguous(memory_format=torch.channels_last))


def _values_in(arguments: Any) -> list[Value]:
    """List the values among arguments, in whatever they are nested."""
    found: list[Value] = []
    _mapped(arguments, found.append)
    return found


def _mapped(arguments: Any, change: Callable[[Value], Any]) -> Any:
    """Return the arguments with each value changed."""
    if isinstance(arguments, Value):
        return change(arguments)
    if isinstance(arguments, dict):
        return {name: _mapped(one, change) for name, one in arguments.items()}
    if isinstance(arguments, list | tuple) and not isinstance(arguments, torch.Size):
        changed = (_mapped(one, change) for one in arguments)
        return type(arguments)(changed)
    return arguments


def _wrapped(example: Any, wrap: Callable[[Tensor, int | None], Value]) -> Any:
    """Wrap what torch returned: one tensor, or several."""
    if isinstance(example, Tensor):
        return wrap(example, None)
    return [wrap(one, index) for index, one in enumerate(example)]
