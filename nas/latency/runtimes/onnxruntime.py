"""ONNX Runtime on the CPU, fp32: the oracle that other engines are compared with, and a baseline.

Its CPU provider has no bf16 convolution, and computes a symmetric INT8 graph slower than fp32: it
wants unsigned activations, rounded before the activation function. So INT8 is none of its
precisions; `OnnxRuntime.evaluate` computes such graphs for their numbers.

It takes another provider in silence where it misses the one that was asked for, so the session is
asked for its providers after it is made. Those of GPUs are in `onnxruntime_gpu.py`.

A saved engine is the graph as it was optimized for this processor, with its private layouts.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, shape_inference

from nas.errors import EngineError
from nas.latency.onnx_graph import parse_onnx
from nas.latency.runtimes.base import Engine, Images, Outputs, Runtime, refusal
from nas.latency.runtimes.saved import SavedEngine

__all__ = ["OnnxRuntime", "OnnxRuntimeEngine", "new_session", "session_options"]

_PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3


class OnnxRuntimeEngine(Engine):
    """A session with its input and outputs bound to memory. Made by `OnnxRuntime`.

    Args:
        session: of ONNX Runtime.
        input_shape: (N, 3, H, W).
        onnx: the graph that the session was made from.
    """

    def __init__(self, session: Any, input_shape: tuple[int, ...], onnx: bytes) -> None:
        super().__init__(input_shape)
        self._session, self._onnx = session, onnx
        self._input_name = session.get_inputs()[0].name
        self._output_names = [output.name for output in session.get_outputs()]
        self._binding: Any = None

    def _bind(self, images: Images) -> None:
        self._binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images)
        self._binding.bind_ortvalue_input(self._input_name, value)
        for name in self._output_names:
            self._binding.bind_output(name)

    def _run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _outputs(self) -> Outputs:
        values = self._binding.copy_outputs_to_cpu()
        return {
            name: np.array(value, np.float32)
            for name, value in zip(self._output_names, values, strict=True)
        }

    def _describe(self) -> dict[str, str]:
        return {
            "runtime": OnnxRuntime.name,
            "version": onnxruntime.__version__,
            "precision": "fp32",
            "device": ",".join(self._session.get_providers()),
            "threads": str(self._session.get_session_options().intra_op_num_threads),
        }

    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        threads = self._session.get_session_options().intra_op_num_threads
        return _optimized(self._onnx, threads), {}

    def _close(self) -> None:
        self._binding = self._session = None


class OnnxRuntime(Runtime):
    """ONNX Runtime with its CPU execution provider."""

    name: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def version(self) -> str:
        """Return the release, such as `"1.31.1"`."""
        return str(onnxruntime.__version__)

    def evaluate(self, onnx: bytes, images: Images) -> dict[str, npt.NDArray[Any]]:
        """Compute what a graph says, in whatever types it is written: for numbers, not for speed.

        Nothing is fused, so every rounding of an INT8 or fp16 graph happens where it stands.
        Convolutions between QuantizeLinear and DequantizeLinear are computed in fp32, and those in
        fp16 too, with the result rounded.

        Args:
            onnx: a graph with one input.
            images: float32 (N, 3, H, W).

        Returns:
            The outputs by name, in the graph's types.

        Raises:
            ExportError: the graph is broken.
            EngineError: it is not supported.
        """
        session = _literal_session(onnx)
        values = session.run(None, {session.get_inputs()[0].name: images})
        return dict(zip((one.name for one in session.get_outputs()), values, strict=True))

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        session = new_session(onnx, session_options(threads), precision)
        return OnnxRuntimeEngine(session, input_shape, onnx)

    def _load(self, saved: SavedEngine) -> Engine:
        what = saved.identity
        return self._build(saved.content, what.input_shape, what.precision, what.threads)


def _optimized(onnx: bytes, threads: int) -> bytes:
    """Return the graph that a session really runs; to make another one is quick."""
    with tempfile.TemporaryDirectory(prefix="nas-onnxruntime-") as folder:
        path, options = Path(folder) / "optimized.onnx", session_options(threads)
        options.optimized_model_filepath = str(path)
        new_session(onnx, options, "fp32")
        return path.read_bytes()


@functools.lru_cache(maxsize=2)
def _literal_session(onnx: bytes) -> Any:
    """Return a session for many images of one graph."""
    options = session_options(threads=1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return new_session(_rounding(onnx), options, "its own types")


def _rounding(onnx: bytes) -> bytes:
    """Make half precision round after every operator.

    The CPU provider computes most of half precision in fp32, and drops the casts between two such
    operators, with their rounding. Copying it does natively, and two copies in a row it leaves.
    """
    model = parse_onnx(onnx)
    typed = shape_inference.infer_shapes(model).graph
    half = {
        one.name
        for one in (*typed.value_info, *typed.output)
        if one.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in half:
                names = [f"rounding/{name}/exact", f"rounding/{name}/copy", name]
                node.output[index] = names[0]
                nodes += [
                    helper.make_node("Identity", [before], [after])
                    for before, after in itertools.pairwise(names)
                ]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def new_session(
    onnx: bytes,
    options: Any,
    precision: str,
    provider: str = _PROVIDER,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """Return a session on one provider, or none at all.

    Args:
        onnx: the graph.
        options: see `session_options`.
        precision: that it computes in, for the error.
        provider: of ONNX Runtime.
        settings: of the provider.

    Raises:
        EngineError: ONNX Runtime refuses the graph, or would take another provider.
    """
    providers = [(provider, dict(settings or {}))]
    try:
        # Otherwise it tries others, and says so on standard output only.
        session = onnxruntime.InferenceSession(
            onnx, options, providers=providers, enable_fallback=0
        )
    except Exception as error:
        raise refusal("ONNX Runtime", onnx, precision, " ".join(str(error).split())) from error
    if session.get_providers()[0] != provider:
        raise EngineError(
            f"Asked ONNX Runtime for {provider}, it runs {', '.join(session.get_providers())}.",
            "Its log says why it cannot load the provider: mostly, CUDA or cuDNN of another "
            "version is installed.",
        )
    return session


def session_options(threads: int) -> Any:
    """Return the options of all sessions: one graph at a time, on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # A thread that spins burns CPU time that would be counted as the network's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options
