"""The reference network: a small fixed convolutional net that every candidate is timed against.

It is written down with integers, not drawn from a random generator, so that its bytes and with them
the digest in every `Environment` stay the same on any machine and with any version of NumPy.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import onnx as onnx_package
from onnx import TensorProto, helper, numpy_helper

from nas.latency.onnx_graph import onnx_digest

__all__ = ["reference_digest", "reference_onnx"]

_SIDE = 64
# (output channels, kernel, stride) of each convolution: the mix that detectors are made of.
_LAYERS = (
    (16, 3, 2),
    (24, 3, 1),
    (24, 3, 1),
    (48, 3, 2),
    (48, 1, 1),
    (48, 3, 1),
)
_OPSET = 19
_IR_VERSION = 9
# Knuth's multiplicative hash: spreads consecutive integers evenly over 32 bits.
_MULTIPLIER = 2_654_435_761


@functools.cache
def reference_onnx() -> bytes:
    """Build the reference: input (1, 3, 64, 64), about 0.3 ms in fp32 on one core."""
    nodes, weights = [], []
    channels, tensor = 3, "images"
    for index, (width, kernel, stride) in enumerate(_LAYERS):
        name = f"conv{index}"
        weights.append(_weights(f"{name}.weight", (width, channels, kernel, kernel)))
        nodes.append(
            helper.make_node(
                "Conv",
                [tensor, f"{name}.weight"],
                [name],
                kernel_shape=[kernel, kernel],
                strides=[stride, stride],
                pads=[kernel // 2] * 4,
            )
        )
        tensor = f"relu{index}"
        nodes.append(helper.make_node("Relu", [name], [tensor]))
        channels = width
    side = _SIDE // 4
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, _SIDE, _SIDE])],
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1, channels, side, side])],
        weights,
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))


def reference_digest() -> str:
    """Return the digest of the reference, as it stands in every `Environment`."""
    return onnx_digest(reference_onnx())


def _weights(name: str, shape: tuple[int, ...]) -> onnx_package.TensorProto:
    """Fixed pseudo-random weights, uniform with the variance that keeps activations level (He)."""
    count = int(np.prod(shape))
    integers = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_MULTIPLIER)) % (1 << 32)
    uniform: npt.NDArray[np.float64] = integers / 2**31 - 1.0
    bound = np.sqrt(6.0 / np.prod(shape[1:]))
    return numpy_helper.from_array((uniform * bound).reshape(shape).astype(np.float32), name)
