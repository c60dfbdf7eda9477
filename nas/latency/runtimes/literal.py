"""Engines for numbers, not for speed: what a graph in some precision computes, on any processor.

A device that is not here cannot score a candidate. ONNX Runtime computes the very graph that its
engine would be built from, with every rounding where it stands (`OnnxRuntime.evaluate`). It is no
plug-in: nobody can choose to measure with it, and its times would mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from nas.latency.half import to_half
from nas.latency.runtimes.base import Engine, Images, Outputs, Runtime
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.saved import SavedEngine

__all__ = ["LiteralRuntime"]


class LiteralRuntime(Runtime):
    """Computes graphs in fp32, fp16 and int8 as they are written."""

    name: ClassVar[str] = "onnxruntime-literal"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")

    def version(self) -> str:
        """Return the release of ONNX Runtime."""
        return OnnxRuntime().version()

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        if precision == "fp32":
            return OnnxRuntime().build(onnx, precision, threads)
        graph = to_half(onnx) if precision == "fp16" else onnx
        return _LiteralEngine(graph, input_shape, precision)

    def _load(self, saved: SavedEngine) -> Engine:
        what = saved.identity
        if what.precision == "fp32":
            return OnnxRuntime().build(saved.content, what.precision, what.threads)
        return _LiteralEngine(saved.content, what.input_shape, what.precision)


class _LiteralEngine(Engine):
    def __init__(self, onnx: bytes, input_shape: tuple[int, ...], precision: str) -> None:
        super().__init__(input_shape)
        self._onnx = onnx
        self._precision = precision
        self._images: Any = None
        self._found: dict[str, Any] = {}

    def _bind(self, images: Images) -> None:
        self._images = images

    def _run(self) -> None:
        self._found = OnnxRuntime().evaluate(self._onnx, self._images)

    def _outputs(self) -> Outputs:
        return {name: np.array(value, np.float32) for name, value in self._found.items()}

    def _describe(self) -> dict[str, str]:
        return {
            "runtime": LiteralRuntime.name,
            "version": OnnxRuntime().version(),
            "precision": self._precision,
            "device": "CPU",
            "threads": "1",
        }

    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        return self._onnx, {}

    def _close(self) -> None:
        self._onnx, self._images, self._found = b"", None, {}
