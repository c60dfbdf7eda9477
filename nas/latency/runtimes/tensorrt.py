"""TensorRT on an NVIDIA GPU: fp32, fp16 and int8, from release 10.12 on.

The precision is in the graph: fp16 is the fp32 graph converted with islands of fp32 where half
precision overflows, int8 is a graph with quantizers whose other tensors are converted to fp16.
After building, the engine is asked what its layers compute in (`tensorrt_audit.py`), because an
engine that stayed in fp32 runs without complaint and answers correctly.

A run is one launch of a CUDA graph, which takes the host's share out of the latency of small
networks. Where the engine cannot be captured it is enqueued instead, and `describe` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from nas.errors import EngineError, ExportError
from nas.latency.runtimes import cuda_device
from nas.latency.runtimes.base import Engine, Images, Outputs, Runtime
from nas.latency.runtimes.saved import SavedEngine
from nas.latency.runtimes.tensorrt_audit import audit, quantized_share, verify
from nas.latency.runtimes.tensorrt_builder import BuildSettings, build_plan
from nas.latency.runtimes.tensorrt_cache import CacheKey, TimingCacheFile, default_folder
from nas.latency.runtimes.tensorrt_library import Log, Profiler, release, require_supported, trt

__all__ = ["BuildSettings", "TensorRtEngine", "TensorRtRuntime"]

_TORCH_TYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT8: torch.int8,
    trt.DataType.INT32: torch.int32,
    trt.DataType.INT64: torch.int64,
    trt.DataType.BOOL: torch.bool,
    trt.DataType.UINT8: torch.uint8,
}
_MIB = 2**20
_QUANTIZED = "quantised nodes"  # share of the graph's arithmetic, as `quantized_share` says


class TensorRtEngine(Engine):
    """An engine with its buffers, stream and CUDA graph. Made by `TensorRtRuntime`.

    Args:
        plan: what TensorRT built.
        input_shape: (N, 3, H, W).
        facts: what `describe` says of how it was built; `precision` is among them.
        device: the GPU that it was built on.
        log: where TensorRT writes.
        cuda_graph: whether to capture the run.

    Raises:
        EngineError: TensorRT cannot load or run the plan, or it computes in another precision than
            the facts say.
    """

    def __init__(
        self,
        plan: bytes,
        input_shape: tuple[int, ...],
        facts: Mapping[str, str],
        device: cuda_device.CudaDevice,
        log: Log,
        *,
        cuda_graph: bool = True,
    ) -> None:
        super().__init__(input_shape)
        self._device, self._log = device, log
        self._engine = _deserialized(plan, facts, log)
        layers = audit(self.inspect())
        verify(layers, facts["precision"], float(facts.get(_QUANTIZED, 0.0)))
        self._facts = {
            **facts,
            "arithmetic layers": str(layers),
            "share in precision": f"{layers.share(facts['precision']):.3f}",
            "auxiliary streams": str(self._engine.num_aux_streams),
            "device memory": f"{self.device_memory_bytes / _MIB:.1f} MiB",
        }
        self._buffers = _buffers(self._engine, device)
        self._context = _context(self._engine, self._buffers, log)
        self._launch = self._capture() if cuda_graph else self._enqueue_only("not asked for")

    @property
    def device_memory_bytes(self) -> int:
        """Memory for activations and scratch on the device, without the weights."""
        self._require_open()
        return int(self._engine.device_memory_size_v2)

    def inspect(self) -> str:
        """Return what TensorRT's inspector says of every layer, as JSON.

        Raises:
            EngineError: the engine is closed.
        """
        self._require_open()
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def profile(self, runs: int = 20) -> dict[str, float]:
        """Return the mean ms of each layer, in the order of execution, on the bound input.

        Profiling waits between layers, so that the sum is more than a run takes: use the shares.

        Args:
            runs: how many to average over.

        Raises:
            EngineError: nothing is bound, or the engine is closed.
        """
        self._require_bound()
        context, profiler = _context(self._engine, self._buffers, self._log), Profiler()
        context.profiler = profiler
        for _ in range(runs):
            self._enqueue(context)
            self._wait()
        return profiler.means()

    def _bind(self, images: Images) -> None:
        self._buffers[_names(self._engine, trt.TensorIOMode.INPUT)[0]].copy_(
            torch.from_numpy(images)
        )
        self._wait()

    def _run(self) -> None:
        try:
            self._launch()
            self._device.synchronize()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _outputs(self) -> Outputs:
        return {
            name: self._buffers[name].to("cpu", torch.float32, copy=True).numpy()
            for name in _names(self._engine, trt.TensorIOMode.OUTPUT)
        }

    def _describe(self) -> dict[str, str]:
        return dict(self._facts)

    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        return bytes(self._engine.serialize()), self._facts

    def _close(self) -> None:
        # In this order: the graph replays what the context enqueued, and both need the engine.
        self._launch = self._require_open
        self._context = self._engine = None
        self._buffers = {}

    def _capture(self) -> Callable[[], None]:
        """Return the launch of a captured run; where that fails, `_enqueue_only`."""
        self._enqueue(self._context)  # the first run allocates, which is forbidden in a capture
        self._wait()
        try:
            launch = self._device.capture(lambda: self._enqueue(self._context))
        except (RuntimeError, EngineError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            launch = self._enqueue_only(f"it cannot be captured: {reason}")
            launch()
            self._wait()
        else:
            self._facts["cuda graph"] = "yes"
        return launch

    def _enqueue_only(self, reason: str) -> Callable[[], None]:
        self._facts["cuda graph"] = f"no, {reason}"
        return lambda: self._enqueue(self._context)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise EngineError(f"TensorRT could not start a run: {self._log.last()}.")

    def _wait(self) -> None:
        try:
            self._device.synchronize()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> EngineError:
        return EngineError(
            f"A run on {self._device.name} failed: {error}. TensorRT says: {self._log.last()}.",
            "After such an error the process cannot use the device: start it again.",
        )


class TensorRtRuntime(Runtime):
    """TensorRT on the current CUDA device.

    Args:
        settings: how engines are built; the defaults are those of a search.
        cache_folder: where timing caches live; the user's cache folder if None.
        cuda_graph: whether runs are captured.

    Raises:
        EngineError: TensorRT is older than 10.12.
    """

    name: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    on_cpu: ClassVar[bool] = False

    def __init__(
        self,
        settings: BuildSettings | None = None,
        *,
        cache_folder: Path | None = None,
        cuda_graph: bool = True,
    ) -> None:
        require_supported()
        self._settings = settings or BuildSettings()
        self._cache_folder = cache_folder or default_folder()
        self._cuda_graph = cuda_graph

    def version(self) -> str:
        """Return the release, such as `"10.16.1.11"`, and whatever is not built as in a search."""
        usual = self._settings == BuildSettings() and self._cuda_graph
        return release() if usual else f"{release()} {self._settings} cuda_graph={self._cuda_graph}"

    def _library(self) -> str:
        return release()  # an engine is good for any settings of this release

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        del threads  # the host only launches
        device, log = cuda_device.CudaDevice(), Log()
        graph, quantized = _typed_graph(onnx, precision)
        cache = TimingCacheFile(self._cache_folder, _cache_key(device))
        plan, notes = build_plan(graph, self._settings, cache, log)
        facts = _identity(device) | self._facts(precision, notes)
        facts |= {_QUANTIZED: f"{quantized:.3f}"} if quantized else {}
        return TensorRtEngine(plan, input_shape, facts, device, log, cuda_graph=self._cuda_graph)

    def _load(self, saved: SavedEngine) -> Engine:
        shape, graph = saved.identity.input_shape, self._cuda_graph
        device = cuda_device.CudaDevice()
        return TensorRtEngine(saved.content, shape, saved.facts, device, Log(), cuda_graph=graph)

    def _facts(self, precision: str, notes: list[str]) -> dict[str, str]:
        settings = self._settings
        core = settings.dla_core
        return {
            "precision": precision,
            "threads": "1",
            "tf32": "on" if settings.tf32 else "off",
            "optimization level": str(settings.optimization_level),
            "workspace": f"{settings.workspace_bytes // _MIB} MiB",
            **({} if core is None else {"dla core": str(core)}),
            **({"notes": "; ".join(notes)} if notes else {}),
        }


def _identity(device: cuda_device.CudaDevice) -> dict[str, str]:
    return {
        "runtime": TensorRtRuntime.name,
        "version": release(),
        "device": device.name,
        "compute capability": device.capability,
        "cuda": device.cuda,
    }


def _cache_key(device: cuda_device.CudaDevice) -> CacheKey:
    return CacheKey(
        device=device.name, capability=device.capability, tensorrt=release(), cuda=device.cuda
    )


def _typed_graph(onnx: bytes, precision: str) -> tuple[bytes, float]:
    """Return the graph in the types that the engine shall compute in, and its quantized share."""
    if precision == "fp32":
        return onnx, 0.0
    from nas.latency.half import to_half  # noqa: PLC0415 - fp32 engines do without it

    try:
        return to_half(onnx), quantized_share(onnx)
    except ExportError as error:
        raise EngineError(error.message, error.remedy) from error


def _deserialized(plan: bytes, facts: Mapping[str, str], log: Log) -> Any:
    try:
        runtime = trt.Runtime(log)
    except TypeError as error:  # what the bindings make of a null pointer
        raise EngineError(f"TensorRT cannot start: {log.last()}.") from error
    if core := facts.get("dla core"):
        runtime.DLA_core = int(core)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"TensorRT cannot load the plan: {log.last()}.", "Build the engine again, here."
        )
    return engine


def _names(engine: Any, mode: Any) -> list[str]:
    """Names of the engine's inputs or outputs, in its order."""
    names = (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
    return [name for name in names if engine.get_tensor_mode(name) == mode]


def _buffers(engine: Any, device: cuda_device.CudaDevice) -> dict[str, torch.Tensor]:
    """Allocate the engine's inputs and outputs, by name."""
    buffers = {}
    for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT):
        for name in _names(engine, mode):
            shape = tuple(engine.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise EngineError(
                    f"The shape of {name!r} depends on data: {shape}.",
                    "Give the network a fixed number of outputs; select boxes outside it.",
                )
            buffers[name] = device.buffer(shape, _TORCH_TYPES[engine.get_tensor_dtype(name)])
    return buffers


def _context(engine: Any, buffers: dict[str, torch.Tensor], log: Log) -> Any:
    context = engine.create_execution_context()
    if context is None:
        raise EngineError(
            f"TensorRT cannot run the engine: {log.last()}.",
            "It may need more memory than the device has left.",
        )
    for name, buffer in buffers.items():
        if not context.set_tensor_address(name, buffer.data_ptr()):
            raise EngineError(f"TensorRT refuses the buffer of {name!r}: {log.last()}.")
    return context
