from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from nas import plugins
from nas.errors import ExportError, MissingPackageError
from nas.latency.onnx_export import check_onnx, export_graph, export_onnx, load_onnx
from nas.latency.onnx_graph import image_shape, onnx_digest, parse_onnx
from nas.latency.runtimes.base import Images, Runtime
from nas.latency.runtimes.conformance import ConformanceNet
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.model.blocks.attention import build_attention
from nas.space.attention import AttentionPoint


class Branching(nn.Module):
    """Asks a tensor in Python, which tracing freezes, with a warning."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = images.flatten(2).transpose(1, 2)
        scale = 2 if images.sum() >= 0 else 3
        return torch.cat([tokens, tokens[..., :1]], 2) * scale, tokens


class OneOutput(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2)


class NoSuchOperator(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.svd(images.flatten(2)).U, images


def images(side: int = 32, seed: int = 0) -> Images:
    return np.random.default_rng(seed).random((1, 3, side, side), dtype=np.float32)


def write(
    path: Path, shape: list[int | str | None], kind: int = TensorProto.FLOAT, inputs: int = 1
) -> Path:
    names = [f"in{index}" for index in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", names[:1], ["out"])],
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info("out", kind, shape)],
    )
    opset = helper.make_opsetid("", 19)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


@pytest.mark.parametrize("slim", [False, True])
def test_export__keeps_the_onnx_contract(network: nn.Module, slim: bool) -> None:
    model = parse_onnx(export_onnx(network, 32, 48, slim=slim))
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 19)]
    shapes = {
        one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": [1, 3, 32, 48], "boxes": [1, 384, 4], "scores": [1, 384, 5]}


@pytest.mark.parametrize("batch", [1, 3])
def test_export__batch_stands_in_the_graph(network: nn.Module, batch: int, tmp_path: Path) -> None:
    graph = export_onnx(network, 32, 32, batch=batch)
    assert image_shape(parse_onnx(graph)) == (batch, 3, 32, 32)
    (tmp_path / "a.onnx").write_bytes(graph)
    several = np.concatenate([images(seed=seed) for seed in range(batch)])
    assert check_onnx(load_onnx(tmp_path / "a.onnx"), network, several) <= 1e-4


@pytest.mark.parametrize(
    "point",
    [
        {"kind": "sparse", "tokens": 16},
        {"kind": "windowed", "window": 4},
        {"kind": "strided", "stride": 2},
        {"kind": "lsh", "buckets": 8},
        {"kind": "deformable", "points": 2},
        {"kind": "aifi"},
        {"kind": "psa"},
    ],
    ids=lambda point: str(point["kind"]),
)
def test_export__batch_is_right_for_every_attention(point: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block = build_attention(AttentionPoint(**point, gate="none").on((8, 8)), 32, (8, 8)).eval()
    features = torch.rand(2, 32, 8, 8)
    graph = export_graph(block, features, "features", ["mixed"])
    with torch.no_grad():
        expected = block(features).numpy()
    found = OnnxRuntime().evaluate(graph, features.numpy())["mixed"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_export__no_batch_is_an_error(network: nn.Module) -> None:
    with pytest.raises(ExportError, match="at least 1 image, got 0"):
        export_onnx(network, 32, 32, batch=0)


@pytest.mark.parametrize("slim", [False, True])
def test_check__exported_graph_agrees(network: nn.Module, slim: bool) -> None:
    assert check_onnx(export_onnx(network, 32, 32, slim=slim), network, images()) <= 1e-4


def test_check__another_network_is_told_by_its_deviation(graph: bytes) -> None:
    torch.manual_seed(1)
    with pytest.raises(ExportError, match=r"deviate by \d"):
        check_onnx(graph, ConformanceNet().eval(), images())


def test_check__without_onnxruntime_uses_openvino(
    network: nn.Module, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, asked = plugins.load, []

    def only_openvino(kind: str, name: str) -> type[Runtime]:
        asked.append(name)
        if name == "onnxruntime":
            raise MissingPackageError("It is not installed.")
        found: type[Runtime] = load(kind, name)
        return found

    monkeypatch.setattr(plugins, "load", only_openvino)
    assert check_onnx(graph, network, images()) <= 1e-4
    assert asked == ["onnxruntime", "openvino"]


def test_export__leaks_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(Branching().eval(), 8, 8)


def test_export__is_the_same_twice(network: nn.Module, graph: bytes) -> None:
    assert onnx_digest(export_onnx(network, 32, 32)) == onnx_digest(graph)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ConformanceNet().train(), "is training"),
        (OneOutput().eval(), "OneOutput"),
        (NoSuchOperator().eval(), "NoSuchOperator"),
        (nn.Conv2d(4, 4, 1).eval(), "Conv2d"),
    ],
    ids=["training", "one-output", "no-operator", "four-channels"],
)
def test_export__what_is_no_detector_is_an_error(module: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(module, 8, 8)


def test_load__returns_what_was_exported(tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / "detector.onnx"
    path.write_bytes(graph)
    assert parse_onnx(load_onnx(path)) == parse_onnx(graph)


def test_load__reads_weights_beside_the_file(tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / "detector.onnx"
    onnx.save(parse_onnx(graph), path, save_as_external_data=True, size_threshold=0)
    model = parse_onnx(load_onnx(path))
    assert all(weight.raw_data for weight in model.graph.initializer if weight.dims)


@pytest.mark.parametrize(
    ("shape", "kind", "inputs", "message"),
    [
        (["n", 3, 8, 8], TensorProto.FLOAT, 1, r"\(n, 3, 8, 8\), where dimension 0 \('n'\) is d"),
        ([1, 3, "h", "w"], TensorProto.FLOAT, 1, r"2 \('h'\) and dimension 3 \('w'\) are dyn"),
        ([1, 3, None, 8], TensorProto.FLOAT, 1, r"\(1, 3, \?, 8\), where dimension 2"),
        ([1, 4, 8, 8], TensorProto.FLOAT, 1, r"\(1, 4, 8, 8\)\."),
        ([1, 3, 8], TensorProto.FLOAT, 1, r"\(1, 3, 8\)"),
        ([1, 3, 8, 8], TensorProto.FLOAT16, 1, "FLOAT16"),
        ([1, 3, 8, 8], TensorProto.FLOAT, 2, "has 2: in0, in1"),
    ],
)
def test_load__other_inputs_are_errors(
    tmp_path: Path, shape: list[int | str | None], kind: int, inputs: int, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        load_onnx(write(tmp_path / "a.onnx", shape, kind, inputs))


def test_load__missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing\.onnx cannot be read: No such file"):
        load_onnx(tmp_path / "nothing.onnx")


@given(st.binary(max_size=200))
def test_load__any_bytes_are_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("broken") / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(ExportError, match=r"broken\.onnx"):
        load_onnx(path)


@given(cut=st.floats(0, 0.999))
def test_load__truncated_file_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, graph: bytes, cut: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "cut.onnx"
    path.write_bytes(graph[: int(cut * len(graph))])
    with pytest.raises(ExportError, match=r"cut\.onnx"):
        load_onnx(path)
