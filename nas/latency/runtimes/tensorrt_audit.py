"""What an engine really computes in, read from the JSON of TensorRT's engine inspector.

The JSON differs between releases (NVIDIA, "Migrating IEngineInspector Usage from TensorRT 10.x to
11.x"): a tensor of TensorRT 10 has one field `Format/Datatype`, either a word (`Half`) or a
sentence ("Channel major FP16 format where channel % 8 == 0"); in 11 it has `Format` and `DataType`.
Only engines that were built with detailed profiling verbosity tell types at all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nas.errors import EngineError
from nas.latency.onnx_graph import parse_onnx

__all__ = ["Audit", "audit", "quantized_share", "verify"]

# From the lowest to the highest: a layer computes in the lowest type among its inputs.
_TYPES = {
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp8": re.compile(r"\bfp8\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(fp16|float16|half)\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(fp32|float32|float)\b", re.IGNORECASE),
}
# The layers that hold nearly all the arithmetic, as TensorRT's back ends call them: "correlation"
# and "gemm" are Myelin's, "ForeignNode" is a region that Myelin or a DLA compiled as a whole.
_ARITHMETIC = re.compile(
    r"conv(?!ert)|gemm|matrixmultiply|matmul|correlation|fullyconnected|attention|mha"
    r"|foreignnode|myelin|dla",
    re.IGNORECASE,
)
_TENSOR_TYPE_KEYS = frozenset({"datatype", "format/datatype"})
_ONNX_ARITHMETIC = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# TensorRT merges and splits layers, so shares of layers and of nodes agree only roughly.
_SMALLEST_PART = 0.5


@dataclass(frozen=True)
class Audit:
    """Arithmetic layers of an engine, by the type that they compute in.

    Args:
        layers: number of arithmetic layers by type, such as `{"fp16": 31, "fp32": 2}`.
        total: all layers of the engine.
    """

    layers: Mapping[str, int]
    total: int

    def share(self, *types: str) -> float:
        """Return the share of the arithmetic layers that compute in one of the types."""
        return sum(self.layers.get(one, 0) for one in types) / max(sum(self.layers.values()), 1)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.layers.items()))
        return f"{counts or 'none'} of {self.total} layers"


def audit(inspector_json: str) -> Audit:
    """Count layers by what they compute in.

    Args:
        inspector_json: what the inspector says of the whole engine.

    Raises:
        EngineError: it is no JSON, or tells the names of layers only.
    """
    layers = _layers(inspector_json)
    typed = [(layer, kind) for layer in layers if (kind := _type_of(layer))]
    if not typed:
        raise EngineError(
            f"The engine inspector tells types for none of {len(layers)} layers.",
            "Build the engine with detailed profiling verbosity.",
        )
    arithmetic = [kind for layer, kind in typed if _is_arithmetic(layer)]
    # A release may rename every kind of layer; then all of them together still tell the truth.
    return Audit(Counter(arithmetic or [kind for _, kind in typed]), len(layers))


def verify(found: Audit, precision: str, quantized: float = 0.0) -> None:
    """Raise unless the engine computes in the precision that was asked for.

    An fp32 engine may not contain anything less. An fp16 engine may keep a minority of its layers
    in fp32: softmax and norms stay there on purpose. An int8 engine must run at least half of the
    share of layers in int8 that the graph quantizes, and most of the rest in fp16.

    Args:
        found: what really runs.
        precision: `"fp32"`, `"fp16"` or `"int8"`.
        quantized: share of the arithmetic nodes that the graph quantizes.

    Raises:
        EngineError: it computes in something else.
    """
    truthful = {
        "fp32": found.share("fp32") == 1.0,
        "fp16": found.share("fp16") >= _SMALLEST_PART,
        "int8": found.share("int8") > 0.0
        and found.share("int8") >= _SMALLEST_PART * quantized
        and found.share("int8", "fp16") >= _SMALLEST_PART,
    }
    if not truthful[precision]:
        raise EngineError(
            f"Asked TensorRT for {precision}, its arithmetic layers are: {found}.",
            "An engine in another precision is not what was asked for; choose the one that runs.",
        )


def quantized_share(onnx: bytes) -> float:
    """Return the share of arithmetic nodes whose data comes from a DequantizeLinear, 0..1.

    Raises:
        ExportError: the bytes are not a model.
    """
    nodes = parse_onnx(onnx).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    arithmetic = [node for node in nodes if node.op_type in _ONNX_ARITHMETIC]
    quantized = sum(node.input[0] in dequantized for node in arithmetic)
    return quantized / max(len(arithmetic), 1)


def _layers(inspector_json: str) -> list[Any]:
    try:
        # Not strict: the metadata joins names of ONNX nodes by control characters.
        layers = json.loads(inspector_json, strict=False)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"The engine inspector's answer cannot be read: {type(error).__name__}: {error}."
        ) from error
    return list(layers)


def _is_arithmetic(layer: Mapping[str, Any]) -> bool:
    kinds = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"
    return bool(_ARITHMETIC.search(kinds))


def _type_of(layer: Any) -> str:
    """The lowest type among the inputs, or outputs if the inputs tell none; empty if unknown."""
    if not isinstance(layer, Mapping):
        return ""
    for side in ("Inputs", "Outputs"):
        kinds = set(_tensor_types(layer.get(side, [])))
        if lowest := next((kind for kind in _TYPES if kind in kinds), ""):
            return lowest
    return ""


def _tensor_types(tensors: Iterable[Any]) -> Iterable[str]:
    for tensor in tensors:
        for key, value in tensor.items() if isinstance(tensor, Mapping) else ():
            if key.lower() in _TENSOR_TYPE_KEYS:
                yield from (kind for kind, words in _TYPES.items() if words.search(str(value)))
