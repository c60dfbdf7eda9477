from __future__ import annotations

import numpy as np
import pytest

from nas.errors import ExportError
from nas.latency.quantization import quantize
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.onnxruntime import OnnxRuntime


class TestOnnxRuntime(RuntimeConformance):
    runtime_class = OnnxRuntime


def test_evaluate__computes_what_an_engine_does(graph: bytes) -> None:
    images = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    found = OnnxRuntime().evaluate(graph, images)
    with OnnxRuntime().build(graph, "fp32") as engine:
        for name, expected in engine.infer(images).items():
            assert np.abs(found[name] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_evaluate__rounds_what_the_graph_rounds(graph: bytes) -> None:
    images = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    plain, rounded = (OnnxRuntime().evaluate(one, images) for one in (graph, quantize(graph)))
    for name, expected in plain.items():
        deviation = np.abs(rounded[name] - expected)
        assert deviation.max() > 1e-3 * np.abs(expected).max()


def test_evaluate__broken_graph_is_an_error() -> None:
    with pytest.raises(ExportError):
        OnnxRuntime().evaluate(b"not a graph", np.zeros((1, 3, 8, 8), np.float32))
