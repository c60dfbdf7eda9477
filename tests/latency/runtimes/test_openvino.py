from __future__ import annotations

import pytest

from nas.errors import EngineError
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
