"""The NVIDIA GPU that an engine runs on, through torch: memory, one stream, CUDA graphs.

Torch is in the process anyway, so one allocator serves it and the engines, and a context of the
driver is made once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from nas.errors import EngineError

__all__ = ["CudaDevice"]

_Placed = TypeVar("_Placed", torch.Tensor, nn.Module)


class CudaDevice:
    """The current CUDA device, with a stream of its own.

    Raises:
        EngineError: there is none that this torch can use.
    """

    def __init__(self) -> None:
        _require_cuda()
        self.index = torch.cuda.current_device()
        # TensorRT synchronises the whole device when it runs on the default stream.
        self._stream = torch.cuda.Stream(self.index)  # type: ignore[no-untyped-call]  # torch's
        self.name = torch.cuda.get_device_name(self.index)
        major, minor = torch.cuda.get_device_capability(self.index)
        self.capability = f"{major}.{minor}"
        self.cuda = str(torch.version.cuda)

    @property
    def text(self) -> str:
        """The kind of GPU, as far as an engine depends on it."""
        return f"{self.name} (compute capability {self.capability})"

    @property
    def stream(self) -> int:
        """The handle of the stream, as TensorRT takes it."""
        return int(self._stream.cuda_stream)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate a tensor of zeros, contiguous."""
        return torch.zeros(shape, dtype=dtype, device=f"cuda:{self.index}")

    def place(self, what: _Placed) -> _Placed:
        """Move a tensor or module to the device."""
        return what.to(f"cuda:{self.index}")

    def enqueue(self, launch: Callable[[], None]) -> None:
        """Call what puts work on the stream."""
        with torch.cuda.stream(self._stream):
            launch()

    def synchronize(self) -> None:
        """Wait for everything on the device; an error of an earlier launch is raised here."""
        torch.cuda.synchronize(self.index)

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Record what `launch` puts on the stream; calling the result does it again.

        Raises:
            RuntimeError: something in it cannot be recorded, such as a shape that depends on data.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launch()
            finally:
                graph.capture_end()
        return graph.replay


def _require_cuda() -> None:
    if torch.version.cuda is None:
        raise EngineError(
            f"An engine on a GPU needs a torch with CUDA, this is {torch.__version__}.",
            "Install torch for CUDA: https://pytorch.org/get-started/locally.",
        )
    if not torch.cuda.is_available():
        raise EngineError(
            "An engine on a GPU needs one of NVIDIA, and torch finds none in this machine.",
            "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or choose the runtime openvino.",
        )
