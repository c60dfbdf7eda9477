from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nas.errors import EngineError
from nas.latency.onnx_graph import parse_onnx
from nas.latency.runtimes.onnxruntime import OnnxRuntime


def quantised() -> bytes:
    """A graph of one quantisation, as in an INT8 export."""
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["out"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8])
        for name in ("images", "out")
    ]
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


def halved(graph: bytes) -> bytes:
    """The graph with its weights in half precision."""
    model = parse_onnx(graph)
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(weight).astype("float16")
            weight.CopyFrom(numpy_helper.from_array(half, weight.name))
    return bytes(model.SerializeToString())


def test_build__quantised_graph_is_not_fp32() -> None:
    onnx.checker.check_model(quantised())
    with pytest.raises(EngineError, match="DequantizeLinear, QuantizeLinear"):
        OnnxRuntime().build(quantised(), "fp32")


def test_build__half_graph_is_not_fp32(graph: bytes) -> None:
    with pytest.raises(EngineError, match="half-precision"):
        OnnxRuntime().build(halved(graph), "fp32")
