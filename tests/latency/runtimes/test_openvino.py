from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from nas.errors import EngineError
from nas.latency.onnx_graph import GraphView, parse_onnx
from nas.latency.quantization import quantize
from nas.latency.runtimes import openvino
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.openvino import OpenVinoRuntime, _verify


class TestOpenVino(RuntimeConformance):
    runtime_class = OpenVinoRuntime


@pytest.mark.parametrize(
    ("asked", "layers", "threads"),
    [
        ("bf16", {"f32": 9}, 1),
        ("fp32", {"f32": 9, "bf16": 1}, 1),
        ("fp32", {"f32": 9, "i8": 1}, 1),
        ("fp32", {"f32": 9}, 2),
        ("int8", {"f32": 9}, 1),
        ("int8", {"f32": 1, "u8": 8}, 1),
    ],
)
def test_verify__something_else_runs_is_an_error(
    graph: bytes, asked: str, layers: dict[str, int], threads: int
) -> None:
    engine = OpenVinoRuntime().build(graph, "fp32")
    with pytest.raises(EngineError, match=f"Asked OpenVINO for {asked}"):
        _verify(engine._compiled, layers, asked, threads, quantized=9)


def test_describe__counts_what_the_library_executes(graph: bytes) -> None:
    said = OpenVinoRuntime().build(graph, "fp32").describe()
    assert said["device"] == "CPU"
    assert said["arithmetic layers"].endswith("f32")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("ssse3 avx2", True),
        ("ssse3 avx2 avx512f", True),
        ("ssse3 avx2 avx_vnni", False),
        ("ssse3 avx512f avx512_vnni", False),
        ("asimd i8mm", False),
        ("", False),
    ],
)
def test_saturates__where_there_is_no_vnni(
    flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "cpu_flags", lambda: frozenset(flags.split()))
    assert openvino._saturates() is expected


def test_own_quantizers__narrow_weights_cannot_saturate_and_stay_near(graph: bytes) -> None:
    int8 = quantize(graph)
    wide, narrow = (
        _weights(openvino._own_quantizers(int8, narrow=narrow)[0]) for narrow in (False, True)
    )
    assert len(wide) == len(narrow) == 3
    for (before, step), (after, wider) in zip(wide, narrow, strict=True):
        assert np.abs(before).max() == 127
        assert np.abs(after).max() == 64
        scales = [one.reshape(-1, 1, 1, 1) for one in (step, wider)]
        assert (np.abs(before * scales[0] - after * scales[1]) <= 0.501 * scales[1]).all()


def _weights(int8: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """The integers of each convolution as float32, and their scales."""
    view = GraphView(parse_onnx(int8))
    nodes = {node.output[0]: node for node in openvino._integer_weights(view)}
    values = [
        [numpy_helper.to_array(view.constants[one]) for one in node.input[:2]]
        for node in nodes.values()
    ]
    return [(integers.astype(np.float32), scales) for integers, scales in values]
