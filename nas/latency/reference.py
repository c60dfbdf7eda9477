"""The reference network: a small fixed detector that every candidate is timed against.

It is shaped like the candidates on purpose: some forty layers, concatenations, a pyramid, about a
megabyte of weights. A busy neighbour slows a network down by what it takes from the shared cache,
and a plain stack of convolutions that fits into a core's own cache feels none of it: ratios to such
a reference moved up to twice as much between processes.

It is written down with integers, not drawn from a random generator, so that its bytes and with them
the digest in every `Environment` stay the same on any machine and with any version of NumPy.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx as onnx_package
from onnx import TensorProto, helper, numpy_helper

from nas.latency.onnx_graph import onnx_digest

__all__ = ["reference_digest", "reference_onnx"]

_SIDE = 128
_STEM = 16
# (output channels, hidden channels, depth) of the stages at strides 4, 8, 16 and 32.
_STAGES = ((24, 16, 1), (48, 16, 1), (64, 24, 2), (96, 32, 1))
_NECK, _NECK_HIDDEN, _OUTPUTS = 48, 16, 36
_OPSET = 19
_IR_VERSION = 9
# Knuth's multiplicative hash and one more round: spreads consecutive integers over 32 bits.
_MULTIPLIERS = (2_654_435_761, 739_982_445)
_BITS = np.uint64(2**32 - 1)


@functools.cache
def reference_onnx() -> bytes:
    """Build the reference: input (1, 3, 128, 128), about 0.6 ms in fp32 on one core."""
    net = _Net()
    features = net.backbone("images")
    outputs = [net.head(one) for one in net.neck(*features[-3:])]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _OUTPUTS, side, side])
        for name, side in zip(outputs, (_SIDE // 8, _SIDE // 16, _SIDE // 32), strict=True)
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, _SIDE, _SIDE])
    graph = helper.make_graph(net.nodes, "reference", [images], values, net.weights)
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))


@functools.cache
def reference_digest() -> str:
    """Return the digest of the reference, as it stands in every `Environment`."""
    return onnx_digest(reference_onnx())


class _Net:
    """Writes nodes and weights down; a feature map is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx_package.NodeProto] = []
        self.weights = [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "double")]
        self._channels = {"images": 3}

    def backbone(self, tensor: str) -> list[str]:
        """Stem and stages; the feature maps of the stages, finest first."""
        tensor = self.conv(tensor, _STEM, kernel=3, stride=2)
        features = []
        for channels, hidden, depth in _STAGES:
            tensor = self.conv(tensor, channels, kernel=3, stride=2)
            tensor = self.stage(tensor, channels, hidden, depth)
            features.append(tensor)
        return features

    def neck(self, fine: str, middle: str, coarse: str) -> tuple[str, str, str]:
        """Top-down and bottom-up pyramid over three feature maps."""
        top = self.conv(coarse, _NECK)
        down = self.stage(self.concat(self.upsample(top), middle), _NECK, _NECK_HIDDEN)
        first = self.stage(self.concat(self.upsample(down), fine), _NECK, _NECK_HIDDEN)
        up = self.conv(first, _NECK, kernel=3, stride=2)
        second = self.stage(self.concat(up, down), _NECK, _NECK_HIDDEN)
        up = self.conv(second, _NECK, kernel=3, stride=2)
        return first, second, self.stage(self.concat(up, top), _NECK, _NECK_HIDDEN)

    def head(self, tensor: str) -> str:
        """Two convolutions."""
        return self.conv(self.conv(tensor, _NECK_HIDDEN, kernel=3), _OUTPUTS)

    def stage(self, tensor: str, channels: int, hidden: int, depth: int = 1) -> str:
        """Cross-stage partial block: every part goes into one concatenation."""
        parts = [self.conv(tensor, hidden), self.conv(tensor, hidden)]
        for _ in range(depth):
            parts.append(self.conv(parts[-1], hidden, kernel=3))
        return self.conv(self.concat(*parts), channels)

    def conv(self, tensor: str, channels: int, kernel: int = 1, stride: int = 1) -> str:
        """Convolution and ReLU."""
        shape = (channels, self._channels[tensor], kernel, kernel)
        name = f"weight{len(self.weights)}"
        self.weights.append(_weights(name, shape))
        settings = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [kernel // 2] * 4,
        }
        convolved = self._node("Conv", [tensor, name], channels, **settings)
        return self._node("Relu", [convolved], channels)

    def concat(self, *tensors: str) -> str:
        """Concatenate channels."""
        return self._node(
            "Concat", list(tensors), sum(self._channels[one] for one in tensors), axis=1
        )

    def upsample(self, tensor: str) -> str:
        """Double both sides, nearest neighbour."""
        settings = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        inputs = [tensor, "", "double"]
        return self._node(
            "Resize", inputs, self._channels[tensor], nearest_mode="floor", **settings
        )

    def _node(self, operator: str, inputs: list[str], channels: int, **settings: Any) -> str:
        output = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **settings))
        self._channels[output] = channels
        return output


def _weights(name: str, shape: tuple[int, ...]) -> onnx_package.TensorProto:
    """Fixed pseudo-random weights, uniform with the variance that keeps activations level (He)."""
    count = int(np.prod(shape))
    mixed = np.arange(1, count + 1, dtype=np.uint64)
    for multiplier in _MULTIPLIERS:
        mixed = (mixed * np.uint64(multiplier)) & _BITS
        mixed ^= mixed >> np.uint64(15)
    uniform: npt.NDArray[np.float64] = mixed / 2**31 - 1.0
    bound = np.sqrt(6.0 / np.prod(shape[1:]))
    return numpy_helper.from_array((uniform * bound).reshape(shape).astype(np.float32), name)
