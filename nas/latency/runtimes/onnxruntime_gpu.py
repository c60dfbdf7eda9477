"""ONNX Runtime on an NVIDIA GPU, by its CUDA provider or by its TensorRT provider.

Both want the package `onnxruntime-gpu` in the place of `onnxruntime`, and a torch with CUDA, which
says which GPU it is. The graph holds the precision, as for `tensorrt`: fp16 is the fp32 graph with
islands of fp32, int8 has quantizers.

A provider leaves what it cannot do to the processor, silently and with copies to and fro. Here that
is an error: the fallback is forbidden in the session, so that each node runs on the provider. What
TensorRT computes in cannot be asked through ONNX Runtime; the runtime `tensorrt` can.

A saved engine is the graph in its types. It is built again when it is loaded; TensorRT's timing
cache makes that quick.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from nas.errors import EngineError, ExportError, MissingPackageError
from nas.latency.half import to_half
from nas.latency.onnx_graph import parse_onnx, quantized_operators
from nas.latency.runtimes import cuda_device
from nas.latency.runtimes.base import Engine, Images, Runtime
from nas.latency.runtimes.saved import SavedEngine
from nas.latency.runtimes.tensorrt_cache import default_folder

_REMEDY = (
    "Put it in the place of the other: pip uninstall onnxruntime, then pip install onnxruntime-gpu."
)

try:
    import onnxruntime

    from nas.latency.runtimes.onnxruntime import OnnxRuntimeEngine, new_session, session_options
except ModuleNotFoundError as missing:
    raise MissingPackageError(
        "ONNX Runtime on a GPU needs the package 'onnxruntime-gpu', which is not installed.",
        _REMEDY,
    ) from missing

__all__ = ["CudaOnnxRuntime", "ProviderEngine", "TensorRtOnnxRuntime"]

_NO_PROCESSOR = "session.disable_cpu_ep_fallback"


class ProviderEngine(OnnxRuntimeEngine):
    """A session with its input and outputs in the GPU's memory. Made by the runtimes below.

    Args:
        session: of ONNX Runtime.
        input_shape: (N, 3, H, W).
        onnx: the graph that the session was made from.
        facts: what `describe` says.
        place: kind and number of the device that holds input and outputs.
    """

    def __init__(
        self,
        session: Any,
        input_shape: tuple[int, ...],
        onnx: bytes,
        facts: Mapping[str, str],
        place: tuple[str, int],
    ) -> None:
        super().__init__(session, input_shape, onnx)
        self._facts, self._place = dict(facts), place

    def _bind(self, images: Images) -> None:
        self._binding = self._session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images, *self._place)
        self._binding.bind_ortvalue_input(self._input_name, value)
        for name in self._output_names:
            self._binding.bind_output(name, *self._place)

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except RuntimeError as error:
            raise EngineError(
                f"A run of ONNX Runtime on {self._facts['device']} failed: {error}.",
                "After such an error the process cannot use the device: start it again.",
            ) from error

    def _describe(self) -> dict[str, str]:
        return dict(self._facts)

    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        return self._onnx, {}


class CudaOnnxRuntime(Runtime):
    """ONNX Runtime by cuDNN and kernels of its own.

    Raises:
        MissingPackageError: the installed ONNX Runtime does not have the provider.
    """

    name: ClassVar[str] = "onnxruntime-cuda"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    on_cpu: ClassVar[bool] = False
    provider: ClassVar[str] = "CUDAExecutionProvider"
    place: ClassVar[str] = "cuda"

    def __init__(self) -> None:
        here = onnxruntime.get_available_providers()
        if self.provider not in here:
            raise MissingPackageError(
                f"The runtime {self.name!r} needs the {self.provider} of the package "
                f"'onnxruntime-gpu', the installed ONNX Runtime has {', '.join(here)}.",
                _REMEDY,
            )

    def version(self) -> str:
        """Return the release and the CUDA that it was built for."""
        cuda = getattr(onnxruntime, "cuda_version", None)
        return f"{onnxruntime.__version__} CUDA {cuda}" if cuda else str(onnxruntime.__version__)

    def settings(self, onnx: bytes, precision: str, index: int) -> dict[str, str]:
        """Return what the provider is told.

        Args:
            onnx: the graph in the types that it shall be computed in.
            precision: of the engine.
            index: of the GPU, as CUDA counts.
        """
        del onnx, precision
        # With TF32, fp32 would have 10 bits of mantissa.
        return {"device_id": str(index), "use_tf32": "0"}

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        try:
            graph = onnx if precision == "fp32" else to_half(onnx)
        except ExportError as error:
            raise EngineError(error.message, error.remedy) from error
        return self._made(graph, input_shape, precision, threads)

    def _load(self, saved: SavedEngine) -> Engine:
        what = saved.identity
        return self._made(saved.content, what.input_shape, what.precision, what.threads)

    def _made(
        self, graph: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        """Build from a graph that holds its types."""
        device, options = cuda_device.CudaDevice(), session_options(threads)
        options.add_session_config_entry(_NO_PROCESSOR, "1")
        _find_libraries()
        settings = self.settings(graph, precision, device.index)
        session = new_session(graph, options, precision, self.provider, settings)
        session.disable_fallback()  # which a run that fails would take
        facts = {
            "runtime": self.name,
            "version": self.version(),
            "precision": precision,
            "device": device.name,
            "threads": "1",
            "provider": self.provider,
            **{name: text for name, text in settings.items() if name != "device_id"},
        }
        return ProviderEngine(session, input_shape, graph, facts, (self.place, device.index))


@functools.cache
def _find_libraries() -> None:
    """Load CUDA and cuDNN from where torch or pip put them; older releases look on the path."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


class TensorRtOnnxRuntime(CudaOnnxRuntime):
    """ONNX Runtime by TensorRT, which must be installed beside it.

    Args:
        cache_folder: where timing caches live; the user's cache folder if None.

    Raises:
        MissingPackageError: the installed ONNX Runtime does not have the provider.
    """

    name: ClassVar[str] = "onnxruntime-tensorrt"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    provider: ClassVar[str] = "TensorrtExecutionProvider"

    def __init__(self, *, cache_folder: Path | None = None) -> None:
        super().__init__()
        self._cache_folder = cache_folder or default_folder() / "onnxruntime"

    def settings(self, onnx: bytes, precision: str, index: int) -> dict[str, str]:
        """See `CudaOnnxRuntime`: what `nas.latency.runtimes.tensorrt` sets, as far as there is."""
        self._cache_folder.mkdir(parents=True, exist_ok=True)
        integers = bool(quantized_operators(parse_onnx(onnx)))
        return {
            "device_id": str(index),
            # Before TensorRT 11, these allow the types that the graph is written in.
            "trt_fp16_enable": str(int(precision != "fp32")),
            "trt_int8_enable": str(int(integers)),
            "trt_builder_optimization_level": "3",
            "trt_auxiliary_streams": "0",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(self._cache_folder),
        }
