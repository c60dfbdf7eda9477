from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from nas.errors import EngineError
from nas.latency.runtimes import cuda_device
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.pytorch import (
    CudaGraphTorchRuntime,
    CudaTorchRuntime,
    TorchRuntime,
    _tuned,
)

Anything = TypeVar("Anything")


class TestTorch(RuntimeConformance):
    runtime_class = TorchRuntime


class Device:
    """In the place of `CudaDevice`, with memory of the CPU: what CUDA does is for a GPU to say."""

    name, text = "NVIDIA L4", "NVIDIA L4 (compute capability 8.9)"
    captures, alive = True, True

    def place(self, what: Anything) -> Anything:
        return what

    def enqueue(self, launch: Callable[[], None]) -> None:
        launch()

    def synchronize(self) -> None:
        if not self.alive:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        launch()
        return launch


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "CudaDevice", Device)


@pytest.mark.usefixtures("fake_gpu")
class TestTorchInCudaGraph(RuntimeConformance):
    runtime_class = CudaGraphTorchRuntime


@pytest.mark.usefixtures("fake_gpu")
def test_cuda__says_what_runs_where(graph: bytes) -> None:
    said = CudaTorchRuntime().build(graph, "fp16").describe()
    assert (said["device"], said["mode"]) == ("NVIDIA L4", "eager")
    assert said["arithmetic layers"] == "9 fp16"
    assert CudaTorchRuntime().device() == Device.text


@pytest.mark.usefixtures("fake_gpu")
def test_cudagraph__what_cannot_be_captured_is_an_error(
    graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "captures", False)
    with pytest.raises(EngineError, match=r"PyTorch \(CUDA graph\).*not permitted when stream"):
        CudaGraphTorchRuntime().build(graph, "fp16")


@pytest.mark.usefixtures("fake_gpu")
def test_run__a_device_that_is_lost_is_an_error(
    graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CudaTorchRuntime().build(graph, "fp32")
    engine.bind(np.ones((1, 3, 32, 32), np.float32))
    monkeypatch.setattr(Device, "alive", False)
    with pytest.raises(EngineError, match="NVIDIA L4 failed: CUDA error: an illegal memory"):
        engine.run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("runtime", [CudaTorchRuntime(), CudaGraphTorchRuntime()])
def test_cuda__without_a_gpu_is_an_error(runtime: CudaTorchRuntime, graph: bytes) -> None:
    with pytest.raises(EngineError, match="An engine on a GPU needs"):
        runtime.build(graph, "fp32")


def test_tuned__leaves_torch_as_it_was() -> None:
    def now() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        return cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = now()
    with _tuned():
        assert now() == (True, False, False)
    assert now() == before


@pytest.mark.parametrize(
    ("sets", "able"),
    [("avx2 avx512f", False), ("avx512_bf16", True), ("avx2 amx_bf16", True), ("asimd bf16", True)],
)
def test_build__bf16_only_where_the_processor_has_it(
    graph: bytes, sets: str, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = f"A processor (cpu family 6; {sets})"
    monkeypatch.setattr(TorchRuntime, "device", lambda _: device)
    if able:
        said = TorchRuntime().build(graph, "bf16").describe()
        assert said["arithmetic layers"] == "9 bf16"
    else:
        with pytest.raises(EngineError, match=r"Asked PyTorch for bf16.*avx2 avx512f"):
            TorchRuntime().build(graph, "bf16")


def test_threads__come_back_with_the_last_engine(graph: bytes) -> None:
    gc.collect()  # engines that other tests left
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        one, two = (TorchRuntime().build(graph, "fp32", threads=2) for _ in range(2))
        assert one.describe()["threads"] == "2"
        one.close()
        one.close()
        two.bind(np.ones((1, 3, 32, 32), np.float32))
        torch.set_num_threads(1)  # whoever does so, the engine runs as it was built
        two.run()
        assert torch.get_num_threads() == 2
        del two  # never closed
        gc.collect()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
