"""PyTorch itself, from the same ONNX graphs as every other runtime: eager, compiled, CUDA graph.

The graph is converted to torch (`torch_graph.py`), so that what is measured is what other engines
compute, with batch norms folded, and not a training network. Images and filters lie in memory with
their channels last, which is what torch is fastest with.

Half precision (bf16 on processors, fp16 on GPUs) is in the graph, with the islands of fp32 that
`nas.latency.half` leaves. What the conversion finds its arithmetic to be in is what torch computes
in: it has no other choice of types.

A saved engine is the ONNX graph; a compiled one is compiled again, from the cache that torch keeps.
"""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Literal

import torch

from nas.errors import EngineError, ExportError, MissingPackageError
from nas.latency.half import to_half
from nas.latency.runtimes import cuda_device
from nas.latency.runtimes.base import Engine, Images, Outputs, Runtime, refusal
from nas.latency.runtimes.saved import SavedEngine
from nas.latency.runtimes.torch_graph import TorchGraph

__all__ = [
    "CompiledCudaTorchRuntime",
    "CompiledTorchRuntime",
    "CudaGraphTorchRuntime",
    "CudaTorchRuntime",
    "TorchEngine",
    "TorchRuntime",
]

Mode = Literal["eager", "compiled", "CUDA graph"]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES = {kind: name for name, kind in _TYPES.items()}
# Instruction sets with products of bf16; on other processors torch would emulate them.
_BF16_SETS = ("avx512_bf16", "amx_bf16", "bf16")
_VECTOR_BITS = {"AVX2": 256, "AVX512": 512}
_WARM_UPS = 3  # before a capture: libraries choose kernels and allocate in the first runs


class TorchEngine(Engine):
    """A converted graph with its input. Made by the runtimes below.

    Args:
        onnx: the graph in fp32.
        input_shape: (N, 3, H, W).
        facts: what `describe` says.
        mode: how torch runs it.
        threads: of the processor.
        device: the GPU; None for the processor.

    Raises:
        EngineError: torch does not run the graph so, or in another precision.
    """

    def __init__(
        self,
        onnx: bytes,
        input_shape: tuple[int, ...],
        facts: Mapping[str, str],
        *,
        mode: Mode,
        threads: int,
        device: cuda_device.CudaDevice | None,
    ) -> None:
        super().__init__(input_shape)
        self._onnx, self._device, self._threads = onnx, device, threads
        graph = _converted(onnx, facts["precision"])
        self._facts = {**facts, "arithmetic layers": _verified(graph, facts["precision"])}
        self._names = graph.outputs
        self._free_threads: Callable[[], object] = lambda: None
        if device is None:
            self._free_threads = _THREADS.claim(self, threads)
        self._input = torch.zeros(input_shape).to(memory_format=torch.channels_last)
        self._module: Any = graph.module
        if device is not None:
            self._input, self._module = device.place(self._input), device.place(self._module)
        if mode == "compiled":
            self._module = torch.compile(
                self._module, fullgraph=True, dynamic=False, options=_compiler_options()
            )
        self._result: tuple[torch.Tensor, ...] = ()
        self._launch: Callable[[], object] = self._call
        try:
            self._launch = self._captured(device) if mode == "CUDA graph" else self._warmed_up()
        except Exception as error:
            self.close()
            reason = " ".join(str(error).split("\n\n", 1)[0].split()) or type(error).__name__
            raise refusal(f"PyTorch ({mode})", onnx, facts["precision"], reason) from error

    def _bind(self, images: Images) -> None:
        self._input.copy_(torch.from_numpy(images))

    def _run(self) -> None:
        if self._device is None:
            _THREADS.want(self._threads)
            self._launch()
            return
        try:
            self._launch()
            self._device.synchronize()
        except RuntimeError as error:
            raise EngineError(
                f"A run on {self._device.name} failed: {error}.",
                "After such an error the process cannot use the device: start it again.",
            ) from error

    def _outputs(self) -> Outputs:
        return {
            name: value.to("cpu", torch.float32, copy=True).numpy()
            for name, value in zip(self._names, self._result, strict=True)
        }

    def _describe(self) -> dict[str, str]:
        on_cpu = {} if self._device else {"threads": str(torch.get_num_threads())}
        return {**self._facts, **on_cpu}

    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        return self._onnx, {}

    def _close(self) -> None:
        self._free_threads()
        self._launch = self._module = self._require_open
        self._result = ()

    def _call(self) -> None:
        with torch.inference_mode(), nullcontext() if self._device is None else _tuned():
            self._result = self._module(self._input)

    def _warmed_up(self) -> Callable[[], object]:
        """Run once, which compiles; return what a run calls."""
        self._call()
        return self._call

    def _captured(self, device: cuda_device.CudaDevice | None) -> Callable[[], object]:
        assert device is not None
        for _ in range(_WARM_UPS):
            device.enqueue(self._call)
        device.synchronize()
        replay = device.capture(self._call)
        replay()
        return replay


class TorchRuntime(Runtime):
    """Torch as it is on the processor, one call after the other."""

    name: ClassVar[str] = "pytorch"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    mode: ClassVar[Mode] = "eager"

    def version(self) -> str:
        """Return the release, such as `"2.13.0+cpu"`: CUDA's version is part of it."""
        return str(torch.__version__)

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        device = None if self.on_cpu else cuda_device.CudaDevice()
        self._require(precision)
        facts = {
            "runtime": self.name,
            "version": self.version(),
            "precision": precision,
            "device": "CPU" if device is None else device.name,
            "threads": "1",
            "mode": self.mode,
        }
        return TorchEngine(onnx, input_shape, facts, mode=self.mode, threads=threads, device=device)

    def _load(self, saved: SavedEngine) -> Engine:
        what = saved.identity
        return self._build(saved.content, what.input_shape, what.precision, what.threads)

    def _require(self, precision: str) -> None:
        """Refuse what this machine cannot do."""
        sets = self.device().replace(")", " ").replace(";", " ").split() if self.on_cpu else ()
        if precision == "bf16" and not set(sets).intersection(_BF16_SETS):
            raise EngineError(
                f"Asked PyTorch for bf16, this processor does not compute in it: {self.device()}.",
                "Choose what this processor can do; fp32 runs everywhere.",
            )


class CompiledTorchRuntime(TorchRuntime):
    """Torch's compiler for the processor: it writes C++, so it needs a compiler of that.

    Raises:
        MissingPackageError: there is none.
    """

    name: ClassVar[str] = "pytorch-compiled"
    tunes: ClassVar[bool] = True
    mode: ClassVar[Mode] = "compiled"

    def __init__(self) -> None:
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise MissingPackageError(
                f"The runtime {self.name!r} needs a C++ compiler, and {compiler!r} is not there.",
                "Install g++, or name a compiler in the environment variable CXX; the runtime "
                "'pytorch' needs none.",
            )


class CudaTorchRuntime(TorchRuntime):
    """Torch as it is on a GPU: each call is launched by the host, which small networks wait for."""

    name: ClassVar[str] = "pytorch-cuda"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    on_cpu: ClassVar[bool] = False


class CompiledCudaTorchRuntime(CudaTorchRuntime):
    """Torch's compiler for a GPU: it writes Triton."""

    name: ClassVar[str] = "pytorch-cuda-compiled"
    mode: ClassVar[Mode] = "compiled"


class CudaGraphTorchRuntime(CudaTorchRuntime):
    """Torch on a GPU, with all its calls launched at once."""

    name: ClassVar[str] = "pytorch-cudagraph"
    mode: ClassVar[Mode] = "CUDA graph"


class _Threads:
    """Torch's number of threads, which is one for the whole process.

    Setting it makes torch forget kernels that it prepared, so it is set when engines are built and
    not for each run. With the last engine, the number of before comes back: training goes on.
    """

    def __init__(self) -> None:
        self._open, self._before = 0, 0

    def claim(self, engine: Engine, threads: int) -> Callable[[], object]:
        """Set the number for an engine; return what gives it back, which its end does, too."""
        if not self._open:
            self._before = torch.get_num_threads()
        self._open += 1
        self.want(threads)
        return weakref.finalize(engine, self._release)

    @staticmethod
    def want(threads: int) -> None:
        """Set the number if another engine, or anybody, changed it."""
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _release(self) -> None:
        self._open -= 1
        if not self._open:
            self.want(self._before)


_THREADS = _Threads()


def _converted(onnx: bytes, precision: str) -> TorchGraph:
    try:
        return TorchGraph(onnx if precision == "fp32" else to_half(onnx), _TYPES[precision])
    except ExportError as error:
        raise EngineError(error.message, error.remedy) from error


def _verified(graph: TorchGraph, precision: str) -> str:
    """Say what the arithmetic is in; it must be what was asked for, in fp32 all of it."""
    counts = graph.arithmetic
    asked, total = counts[_TYPES[precision]], counts.total()
    said = ", ".join(
        f"{count} {_NAMES.get(kind, kind)}"
        for kind, count in sorted(counts.items(), key=lambda item: str(item[0]))
    )
    if asked < total if precision == "fp32" else 2 * asked < total:
        raise EngineError(
            f"Asked PyTorch for {precision}, the arithmetic layers of this graph are: {said}.",
            "Export the network in fp32, or choose the precision that runs.",
        )
    return said or "none"


def _compiler_options() -> dict[str, Any]:
    """Name the vectors of this processor, as torch would choose them by itself.

    What torch's cache knows of a compiled graph are its options, and not the processor. On one of
    narrower vectors it would compile the code that another had written for wider ones, and compute
    nonsense: caches lie in folders that machines share, and in images of containers.
    """
    bits = _VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    return {"freezing": True, "cpp.simdlen": bits}


@contextmanager
def _tuned() -> Iterator[None]:
    """Let cuDNN try its kernels, and fp32 be fp32: with TF32 it has 10 bits of mantissa."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32 = True, False, False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32 = before
