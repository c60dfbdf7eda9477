"""What every runtime must do, as tests that a runtime's author inherits.

Three lines test a runtime::

    class TestMine(RuntimeConformance):
        runtime_class = MyRuntime

The network in here has every operator that this project's detectors are made of: convolution,
concatenation, pooling, top-k, gather, attention with layer normalisation and softmax, scatter.

A runtime with `int8` gets the same network with calibrated quantizers. Their rounding is part of
the graph, so its engine is held against that graph computed literally, and not against torch.

Needs pytest, which the package does not: import this module from tests only.
"""
# ruff: noqa: D102 - the names of tests are their sentences

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from nas import plugins
from nas.errors import EngineError, UnknownNameError
from nas.latency.onnx_export import export_onnx
from nas.latency.onnx_graph import parse_onnx
from nas.latency.quantization import quantize
from nas.latency.runtimes.base import Engine, Images, Runtime

__all__ = ["ConformanceNet", "RuntimeConformance"]

_SIDE = 32
_TOKENS = 24
# fp32 differs by the order of sums; lower precisions also swap tokens that are nearly tied.
_FP32_TOLERANCE = 1e-4
_REDUCED_TOLERANCE = 0.05
# Against the same rounding. OpenVINO is within 0.0004; when it lost scales, it was off by 0.013.
_INT8_TOLERANCE = 0.005


class ConformanceNet(nn.Module):
    """Images (B, 3, H, W) -> boxes (B, A, 4) and scores (B, A, 5), with A = H/2 x W/2."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.SiLU())
        self.pool = nn.MaxPool2d(3, 1, 1)
        # The last convolution stays in floating point: the one at the concatenation is another.
        self.merge = nn.Sequential(
            *(nn.Conv2d(3 * width, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU())
        )
        self.norm = nn.LayerNorm(width)
        self.queries_keys = nn.Linear(width, 2 * width)
        self.boxes = nn.Linear(width, 4)
        self.scores = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.stem(images)
        body = stem + self.body(stem)
        merged = self.merge(torch.cat([stem, body, self.pool(body)], 1))
        tokens = merged.flatten(2).transpose(1, 2)  # (B, A, width)
        top = tokens.square().sum(2).topk(_TOKENS, dim=1).indices
        index = top.unsqueeze(2).expand(-1, -1, tokens.shape[2])
        chosen = self.norm(tokens.gather(1, index))
        queries, keys = self.queries_keys(chosen).chunk(2, dim=2)
        attended = (queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5).softmax(2) @ chosen
        tokens = tokens.scatter(1, index, chosen + attended)
        return self.boxes(tokens), self.scores(tokens).sigmoid()


class RuntimeConformance:
    """Inherit, and set `runtime_class`."""

    runtime_class: ClassVar[type[Runtime]]

    @pytest.fixture
    def network(self) -> nn.Module:
        return _network()

    @pytest.fixture
    def graph(self) -> bytes:
        return _graph()

    @pytest.fixture
    def runtime(self) -> Runtime:
        return self.runtime_class()

    @pytest.fixture
    def engine(self, runtime: Runtime, graph: bytes) -> Engine:
        return runtime.build(graph, runtime.precisions[0])

    def test_build__computes_what_torch_computes(
        self, runtime: Runtime, network: nn.Module, graph: bytes
    ) -> None:
        images = _images()
        with torch.no_grad():
            computed = (out.numpy() for out in network(torch.from_numpy(images)))
        expected = dict(zip(("boxes", "scores"), computed, strict=True))
        for engine in _engines(runtime, graph):
            precision = engine.describe()["precision"]
            found = engine.infer(images)
            assert list(found) == ["boxes", "scores"]
            if precision == "int8":
                literal = plugins.load("runtimes", "onnxruntime")()
                expected = literal.evaluate(_quantized(graph), images)
            for name, values in found.items():
                _assert_close(values, expected[name], precision)

    def test_build__int8_wants_a_quantized_graph_and_the_others_do_not(
        self, runtime: Runtime, graph: bytes
    ) -> None:
        for precision in runtime.precisions:
            wrong = graph if precision == "int8" else _quantized(graph)
            with pytest.raises(EngineError, match="QuantizeLinear"):
                runtime.build(wrong, precision)

    def test_build__says_what_it_was_asked_for(self, runtime: Runtime, graph: bytes) -> None:
        for engine in _engines(runtime, graph):
            said = engine.describe()
            assert {"runtime", "version", "precision", "device", "threads"} <= set(said)
            assert (said["runtime"], said["version"]) == (runtime.name, runtime.version())
            assert said["precision"] in runtime.precisions
            assert said["threads"] == "1"

    def test_build__unknown_precision_lists_the_known(self, runtime: Runtime, graph: bytes) -> None:
        with pytest.raises(UnknownNameError, match=runtime.precisions[0]):
            runtime.build(graph, "fp3")

    @pytest.mark.parametrize("broken", [b"", b"not a graph", b"\x08\x09" * 40])
    def test_build__broken_graph_is_an_error(self, runtime: Runtime, broken: bytes) -> None:
        with pytest.raises(EngineError):
            runtime.build(broken, runtime.precisions[0])

    def test_build__truncated_graph_is_an_error(self, runtime: Runtime, graph: bytes) -> None:
        with pytest.raises(EngineError):
            runtime.build(graph[: len(graph) // 2], runtime.precisions[0])

    @pytest.mark.parametrize(("operator", "domain"), [("Fooify", ""), ("Foo", "org.example")])
    def test_build__unknown_operator_is_named_with_its_node(
        self, runtime: Runtime, operator: str, domain: str
    ) -> None:
        with pytest.raises(EngineError, match=f"/neck/odd.*{operator}"):
            runtime.build(_graph_of(operator, domain), runtime.precisions[0])

    def test_build__node_without_inputs_is_an_error(self, runtime: Runtime) -> None:
        with pytest.raises(EngineError, match="/neck/odd"):
            runtime.build(_graph_of("Conv", ""), runtime.precisions[0])

    def test_build__dynamic_shape_is_named(self, runtime: Runtime, graph: bytes) -> None:
        model = parse_onnx(graph)
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "rows"
        with pytest.raises(EngineError, match=r"dimension 2 \('rows'\) is dynamic"):
            runtime.build(model.SerializeToString(), runtime.precisions[0])

    def test_build__no_threads_is_an_error(self, runtime: Runtime, graph: bytes) -> None:
        with pytest.raises(EngineError, match="got 0"):
            runtime.build(graph, runtime.precisions[0], threads=0)

    def test_build__computes_each_image_of_a_batch(self, runtime: Runtime, graph: bytes) -> None:
        pair = np.concatenate([_images(1), _images(2)])
        for precision in runtime.precisions:
            with contextlib.suppress(EngineError):  # as in `_engines`
                single = runtime.build(_typed(graph, precision), precision)
                double = runtime.build(_typed(_graph(2), precision), precision)
                assert double.input_shape == pair.shape
                found = double.infer(pair)
                for index in range(2):
                    for name, expected in single.infer(pair[index : index + 1]).items():
                        _assert_close(found[name][index : index + 1], expected, precision)

    def test_save__a_loaded_engine_is_the_saved_one(
        self, runtime: Runtime, graph: bytes, tmp_path: Path
    ) -> None:
        for index, engine in enumerate(_engines(runtime, graph)):
            path = tmp_path / "new folder" / str(index)
            engine.save(path)
            loaded = runtime.load(path)
            assert loaded.describe() == engine.describe()
            assert loaded.input_shape == engine.input_shape
            found, expected = loaded.infer(_images()), engine.infer(_images())
            assert list(found) == list(expected)
            assert all(np.array_equal(found[name], expected[name]) for name in found)
            loaded.save(path)
            again = runtime.load(path).infer(_images())
            assert all(np.array_equal(again[name], expected[name]) for name in again)
        assert sorted(one.suffix for one in path.parent.iterdir()) == sorted(
            ["", ".json"] * (index + 1)
        )

    @pytest.mark.parametrize("what", ["runtime", "version", "device"])
    def test_load__an_engine_of_elsewhere_is_an_error(
        self, runtime: Runtime, engine: Engine, tmp_path: Path, what: str
    ) -> None:
        engine.save(tmp_path / "engine")
        about = tmp_path / "engine.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {what: "another"}))
        with pytest.raises(EngineError, match=rf"{what}.*'another', here is .*Build the engine"):
            runtime.load(tmp_path / "engine")

    @pytest.mark.parametrize("name", ["engine", "engine.json"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "foreign"])
    def test_load__damaged_files_are_an_error(
        self, runtime: Runtime, engine: Engine, tmp_path: Path, name: str, damage: str
    ) -> None:
        engine.save(tmp_path / "engine")
        file = tmp_path / name
        content = file.read_bytes()
        kinds = {"empty": b"", "truncated": content[: len(content) // 2], "foreign": b"\xff[1]" * 9}
        file.unlink()
        if damage != "missing":
            file.write_bytes(kinds[damage])
        with pytest.raises(EngineError, match="Build the engine"):
            runtime.load(tmp_path / "engine")

    def test_infer__repeats_itself(self, engine: Engine) -> None:
        first, second = engine.infer(_images()), engine.infer(_images())
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_infer__returns_copies(self, engine: Engine) -> None:
        first = engine.infer(_images(seed=1))
        kept = {name: values.copy() for name, values in first.items()}
        engine.infer(_images(seed=2))
        assert all(np.array_equal(first[name], kept[name]) for name in first)

    def test_bind__copies_the_images(self, engine: Engine) -> None:
        images = _images()
        expected = engine.infer(images)
        engine.bind(images)
        images[:] = 0
        engine.run()
        found = engine.outputs()
        assert all(np.array_equal(found[name], expected[name]) for name in found)

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((1, 3, _SIDE, _SIDE + 1), np.float32),
            np.zeros((3, _SIDE, _SIDE), np.float32),
            np.zeros((1, 3, _SIDE, _SIDE), np.float64),
        ],
        ids=["wider", "no-batch", "float64"],
    )
    def test_infer__other_input_is_an_error(self, engine: Engine, images: Images) -> None:
        with pytest.raises(EngineError, match="float32"):
            engine.infer(images)

    def test_run__nothing_bound_is_an_error(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="bound"):
            engine.run()

    def test_close__every_later_call_is_an_error(self, engine: Engine, tmp_path: Path) -> None:
        engine.infer(_images())
        engine.close()
        engine.close()
        calls = (
            *(engine.run, engine.outputs, engine.describe, engine.synchronize),
            *(lambda: engine.bind(_images()), lambda: engine.save(tmp_path / "engine")),
        )
        for call in calls:
            with pytest.raises(EngineError, match="closed"):
                call()


@functools.cache
def _network() -> nn.Module:
    torch.manual_seed(0)
    return ConformanceNet().eval()


@functools.cache
def _graph(batch: int = 1) -> bytes:
    return export_onnx(_network(), _SIDE, _SIDE, batch=batch)


def _graph_of(operator: str, domain: str) -> bytes:
    """Return a graph with one node that most libraries do not know what to do with."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, _SIDE, _SIDE])
        for name in ("images", "out")
    ]
    nodes = [
        helper.make_node("Relu", ["images"], ["positive"], "/neck/first"),
        helper.make_node(operator, ["positive"], ["out"], "/neck/odd", domain=domain),
    ]
    opsets = [helper.make_opsetid(*one) for one in {"": 19, domain: 1 if domain else 19}.items()]
    graph = helper.make_graph(nodes, "odd", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


def _engines(runtime: Runtime, graph: bytes) -> list[Engine]:
    """Build in every precision that this machine has; the first one must be among them."""
    engines = [runtime.build(graph, runtime.precisions[0])]
    for precision in runtime.precisions[1:]:
        # Refusing what the processor cannot do is what the contract asks for.
        with contextlib.suppress(EngineError):
            engines.append(runtime.build(_typed(graph, precision), precision))
    return engines


def _typed(graph: bytes, precision: str) -> bytes:
    return _quantized(graph) if precision == "int8" else graph


@functools.cache
def _quantized(graph: bytes) -> bytes:
    return quantize(graph, np.concatenate([_images(seed) for seed in range(4)]))


def _images(seed: int = 0) -> Images:
    return np.random.default_rng(seed).random((1, 3, _SIDE, _SIDE), dtype=np.float32)


def _assert_close(
    found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], precision: str
) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    deviation = np.abs(found - expected)
    if precision == "fp32":
        assert deviation.max() <= _FP32_TOLERANCE * np.abs(expected).max()
    else:
        tolerance = _INT8_TOLERANCE if precision == "int8" else _REDUCED_TOLERANCE
        assert np.median(deviation) <= tolerance * expected.std()
