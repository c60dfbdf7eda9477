from __future__ import annotations

import numpy as np
import pytest

from nas.errors import EngineError
from nas.latency.half import to_half
from nas.latency.quantization import quantize
from nas.latency.runtimes.literal import LiteralRuntime
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.plugins import names


def _images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 3, 32, 32), np.float32)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_build__computes_the_graph_of_the_precision(graph: bytes, precision: str) -> None:
    images = _images(0)
    scaled = quantize(graph, images) if precision == "int8" else graph
    with LiteralRuntime().build(scaled, precision) as engine:
        found = engine.infer(images)
    exact = OnnxRuntime().evaluate(graph, images)
    literal = OnnxRuntime().evaluate(to_half(graph) if precision == "fp16" else scaled, images)
    for name, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, np.asarray(literal[name], np.float32))
        assert np.abs(value - exact[name]).max() > 0


def test_build__int8_without_scales_is_an_error(graph: bytes) -> None:
    with pytest.raises(EngineError, match="QuantizeLinear"):
        LiteralRuntime().build(graph, "int8")


def test_name__cannot_be_chosen_to_measure_with() -> None:
    assert LiteralRuntime.name not in names("runtimes")
