"""A network as a row of numbers for a regression: how much there is to do, by kind of layer.

Every feature is an amount that adds up over layers: launches, elements moved, multiplications, rows
of a map. A latency is then nearly a sum of amounts, each times what it costs, and the costs can be
learnt from latencies of whole networks. A table of single layers cannot give them: an engine keeps
layouts and precisions of its own inside, which a layer measured alone pays for at both its ends
(for OpenVINO in bf16 and int8, such sums came out three times too large).

Features are those of the graph in fp32, whatever the engine computes in: what a quantized graph has
beside is folded away or goes with its layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nas.latency.workload import Layer, Workload

__all__ = ["FEATURES", "features_digest", "latency_features"]

_CONVOLUTIONS = ("pointwise_convolution", "convolution", "strided_convolution", "depthwise")
_PRODUCTS = (*_CONVOLUTIONS, "product")
_OTHERS = ("pointwise", "pooling", "reduction", "selection", "movement")
# Fills a vector of AVX-512 in fp32, and the k of a tensor core in FP16.
_BLOCK = 16
_EXPONENTIALS = frozenset(
    {"Elu", "Erf", "Exp", "Gelu", "LogSoftmax", "Mish", "Sigmoid", "Softmax", "Softplus", "Tanh"}
)

FEATURES: Final[tuple[str, ...]] = (
    "pixels",
    "weights",
    "exponentials",
    "fused_elements",
    *(f"{kind}_launches" for kind in (*_PRODUCTS, *_OTHERS)),
    *(f"{kind}_elements" for kind in (*_PRODUCTS, *_OTHERS)),
    *(f"{kind}_macs" for kind in _PRODUCTS),
    *(f"{kind}_padded_macs" for kind in _PRODUCTS),
    *(f"{kind}_rows" for kind in _CONVOLUTIONS),
    *(f"{kind}_vectors" for kind in _CONVOLUTIONS),
)
"""Names of the features, in order: of the input, pixels; of all layers together, elements of
weights, exponentials taken, and outputs of operators that run inside another's layer; by kind of
layer, how many there are, elements read and written, multiplications, the same with channels padded
to blocks of 16, rows of the maps that they write and their positions, each for every block of 16
channels."""


def features_digest() -> str:
    """Return 16 hexadecimal characters that change with the features or their order."""
    return hashlib.sha256(" ".join(FEATURES).encode()).hexdigest()[:16]


def latency_features(workload: Workload) -> NDArray[np.float64]:
    """Return how much of every feature a network has: (len(FEATURES),), none negative."""
    totals = dict.fromkeys(FEATURES, 0.0)
    totals["pixels"] = math.prod(workload.input)
    for layer in workload.layers:
        for name, amount in _amounts(layer):
            totals[name] += amount
    return np.array([totals[name] for name in FEATURES], dtype=np.float64)


def _amounts(layer: Layer) -> Iterator[tuple[str, float]]:
    kind, elements = _kind(layer), math.prod(layer.shape)
    yield "weights", layer.weights
    yield "exponentials", elements * sum(name in _EXPONENTIALS for name in layer.operators)
    yield "fused_elements", elements * (len(layer.operators) - 1)
    yield f"{kind}_launches", 1
    yield f"{kind}_elements", layer.reads + layer.writes
    if kind in _PRODUCTS:
        yield f"{kind}_macs", layer.macs
        yield f"{kind}_padded_macs", layer.macs * _padding(layer)
    if kind in _CONVOLUTIONS:
        height, width = layer.shape[-2:]
        blocks = -(-layer.groups * layer.out_channels // _BLOCK)
        yield f"{kind}_rows", height * blocks
        yield f"{kind}_vectors", height * width * blocks


def _kind(layer: Layer) -> str:
    """Return what a convolution is to an engine; other layers are of their own kind."""
    if layer.kind != "convolution":
        return layer.kind
    if layer.groups > 1:
        return "depthwise"
    if layer.stride > 1:
        return "strided_convolution"
    return "pointwise_convolution" if layer.kernel == (1, 1) else "convolution"


def _padding(layer: Layer) -> float:
    """Return by how much the multiplications grow when channels are padded to whole blocks."""
    sides = (layer.in_channels, layer.out_channels)
    return math.prod(-(-side // _BLOCK) * _BLOCK / side for side in sides)
