"""The audit reads JSON by the documented names of its fields, of TensorRT 10 and of 11."""

from __future__ import annotations

import json

import pytest
from onnx import helper

from nas.errors import EngineError
from nas.latency.runtimes.tensorrt_audit import Audit, audit, quantized_share, verify


def _tensor_10(name: str, kind: str) -> dict[str, object]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": [1, 16, 8, 8],
        "Format/Datatype": kind,
    }


def _tensor_11(name: str, kind: str) -> dict[str, object]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": [1, 16, 8, 8],
        "DataType": kind,
        "Format": "Channel major format where channel % 8 == 0 (kHWC8)",
    }


def _layer(kind: str, inputs: list[object], outputs: list[object], **more: object) -> object:
    return {
        "Name": f"{kind} of something",
        "LayerType": kind,
        "Inputs": inputs,
        "Outputs": outputs,
        "StreamId": 0,
        "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]",
        **more,
    }


def _json_10(layers: list[object]) -> str:
    # The separator of the metadata stands in the text as it is, which strict JSON forbids.
    text = json.dumps({"Layers": layers, "Bindings": ["images", "boxes", "scores"]})
    return text.replace("\\u001e", "\x1e")


def _json_11(layers: list[object]) -> str:
    ports = [
        {
            "Name": "images",
            "IOMode": "Input",
            "DataType": "Float",
            "Location": "Device",
            "Dimensions": [1, 3, 16, 16],
            "IsShapeInferenceIO": False,
        }
    ]
    return json.dumps({"Layers": layers, "I/O Tensors": ports})


def _half_10() -> str:
    sentence = "Channel major FP16 format where channel % 8 == 0"
    to_half = [_tensor_10("images", "Row major linear FP32")], [_tensor_10("x", sentence)]
    half = [_tensor_10("x", sentence)], [_tensor_10("y", sentence)]
    words = [_tensor_10("y", "Half"), _tensor_10("w", "Half")], [_tensor_10("z", "Float")]
    return _json_10(
        [
            _layer("Reformat", *to_half, Origin="REFORMAT"),
            _layer("CaskConvolution", *half, ParameterType="Convolution", Weights={"Type": "Half"}),
            _layer("gemm", *words),
            _layer("kgen", [_tensor_10("z", "Float")], [_tensor_10("index", "Int32")]),
            _layer("TopK", [_tensor_10("z", "Float")], [_tensor_10("top", "Int64")]),
        ]
    )


def _int8_11() -> str:
    return _json_11(
        [
            _layer("kgen", [_tensor_11("images", "Half")], [_tensor_11("x", "Int8")]),
            _layer(
                "CaskConvolution",
                [_tensor_11("x", "Int8"), _tensor_11("identity", "Half")],
                [_tensor_11("y", "Half")],
            ),
            _layer("CaskConvolution", [_tensor_11("y", "Half")], [_tensor_11("z", "Half")]),
            _layer("gemm", [_tensor_11("index", "Int32"), _tensor_11("z", "Float")], []),
        ]
    )


def test_audit__of_tensorrt_10_reads_words_and_sentences() -> None:
    found = audit(_half_10())
    assert (dict(found.layers), found.total) == ({"fp16": 2}, 5)
    assert str(found) == "2 fp16 of 5 layers"


def test_audit__of_tensorrt_11_reads_data_types() -> None:
    found = audit(_int8_11())
    assert dict(found.layers) == {"int8": 1, "fp16": 1, "fp32": 1}
    assert found.share("int8", "fp16") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major INT8 format where column stride % 64 == 0", "int8"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("BFloat16", "bf16"),
        ("Row major linear FP8 format", "fp8"),
        ("Channel major FP32 format where channel % 4 == 0", "fp32"),
        ("Float", "fp32"),
    ],
)
def test_audit__knows_the_words_of_every_type(kind: str, expected: str) -> None:
    layers = [_layer("CaskConvolution", [_tensor_10("x", kind)], [])]
    assert dict(audit(_json_10(layers)).layers) == {expected: 1}


@pytest.mark.parametrize("kind", ["Int32", "UInt8", "Bool", "N/A due to dynamic shapes", "None"])
def test_audit__indices_are_no_arithmetic(kind: str) -> None:
    layers = [_layer("CaskConvolution", [_tensor_10("x", kind)], [_tensor_10("y", "Half")])]
    assert dict(audit(_json_10(layers)).layers) == {"fp16": 1}


def test_audit__where_no_layer_has_a_known_name_all_count() -> None:
    layers = [_layer("renamed", [_tensor_11("x", kind)], []) for kind in ("Half", "Half", "Float")]
    assert dict(audit(_json_11(layers)).layers) == {"fp16": 2, "fp32": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("not json", "cannot be read"),
        ('{"Bindings": []}', "cannot be read"),
        ('{"Layers": ["conv", "conv 2"], "Bindings": []}', "none of 2 layers"),
        ('{"Layers": []}', "none of 0 layers"),
    ],
)
def test_audit__without_types_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        audit(text)


@pytest.mark.parametrize(
    ("precision", "layers", "quantized"),
    [
        ("fp32", {"fp32": 9}, 0.0),
        ("fp16", {"fp16": 9, "fp32": 9}, 0.0),
        ("int8", {"int8": 6, "fp16": 3, "fp32": 1}, 0.9),
        ("int8", {"int8": 1, "fp16": 9}, 0.2),
    ],
)
def test_verify__what_was_asked_for(
    precision: str, layers: dict[str, int], quantized: float
) -> None:
    verify(Audit(layers, 20), precision, quantized)


@pytest.mark.parametrize(
    ("precision", "layers", "quantized"),
    [
        ("fp32", {"fp32": 9, "fp16": 1}, 0.0),
        ("fp32", {"fp16": 9}, 0.0),
        ("fp16", {"fp32": 9}, 0.0),
        ("fp16", {"fp32": 9, "fp16": 8}, 0.0),
        ("fp16", {"bf16": 9}, 0.0),
        ("int8", {"fp16": 9}, 0.0),
        ("int8", {"int8": 4, "fp16": 6}, 0.9),
        ("int8", {"int8": 4, "fp32": 6}, 0.4),
    ],
)
def test_verify__anything_else_is_an_error(
    precision: str, layers: dict[str, int], quantized: float
) -> None:
    with pytest.raises(EngineError, match=f"Asked TensorRT for {precision}"):
        verify(Audit(layers, 20), precision, quantized)


def test_quantized_share__counts_layers_that_read_integers() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale"], ["rounded"]),
        helper.make_node("Conv", ["rounded", "kernel"], ["x"]),
        helper.make_node("Relu", ["rounded"], ["unused"]),
        helper.make_node("DequantizeLinear", ["weights", "scale"], ["only_weights"]),
        helper.make_node("Conv", ["x", "only_weights"], ["y"]),
        helper.make_node("MatMul", ["y", "y"], ["z"]),
        helper.make_node("MatMul", ["rounded", "z"], ["out"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert quantized_share(model.SerializeToString()) == 2 / 4
