"""ONNX Runtime's providers for GPUs, on the processor: what is asked of it, and what is refused.

That CUDA and TensorRT really run is for `benchmarks/gpu_check.py` to say.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest

from nas import plugins
from nas.errors import EngineError, MissingPackageError
from nas.latency.quantization import quantize
from nas.latency.runtimes import cuda_device, onnxruntime_gpu
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.onnxruntime_gpu import CudaOnnxRuntime, TensorRtOnnxRuntime

MODULE = "nas.latency.runtimes.onnxruntime_gpu"


class Device:
    """In the place of `CudaDevice`."""

    name, text, index = "NVIDIA L4", "NVIDIA L4 (compute capability 8.9)", 0


class OnCpu(CudaOnnxRuntime):
    """The same on the provider that is here."""

    provider: ClassVar[str] = "CPUExecutionProvider"
    place: ClassVar[str] = "cpu"

    def settings(self, onnx: bytes, precision: str, index: int) -> dict[str, str]:
        del onnx, precision, index
        return {}


class OnNothing(OnCpu):
    """On a provider that is installed, and computes no operator of a detector."""

    provider: ClassVar[str] = "AzureExecutionProvider"


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "CudaDevice", Device)


@pytest.mark.usefixtures("fake_gpu")
class TestOnDevice(RuntimeConformance):
    runtime_class = OnCpu

    @pytest.fixture(autouse=True)
    def _processor_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime_gpu, "_NO_PROCESSOR", "session.nothing")


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.skipif(
    OnNothing.provider not in onnxruntime.get_available_providers(), reason="another build"
)
def test_build__nodes_on_the_processor_are_an_error(graph: bytes) -> None:
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot build this graph.*CPU EP"):
        OnNothing().build(graph, "fp32")


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_runtime__without_its_provider_names_the_package(name: str) -> None:
    runtime = plugins.load("runtimes", name)
    assert (runtime.name, runtime.on_cpu) == (name, False)
    if runtime.provider in onnxruntime.get_available_providers():
        pytest.skip("it is installed here")
    with pytest.raises(MissingPackageError, match=f"{runtime.provider}.*install onnxruntime-gpu"):
        runtime()


def test_import__without_onnxruntime_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, MODULE)
    monkeypatch.delitem(sys.modules, "nas.latency.runtimes.onnxruntime")
    with pytest.raises(MissingPackageError, match="needs the package 'onnxruntime-gpu'"):
        importlib.import_module(MODULE)


class Asked:
    """What a session was asked for, and one that cannot run in its place."""

    def __init__(self) -> None:
        self.options: Any = None
        self.provider, self.settings = "", dict[str, str]()
        self.fallback = True

    def __call__(
        self, onnx: bytes, options: Any, precision: str, provider: str, settings: dict[str, str]
    ) -> Asked:
        del onnx, precision
        self.options, self.provider, self.settings = options, provider, settings
        return self

    def disable_fallback(self) -> None:
        self.fallback = False

    def get_inputs(self) -> list[Asked]:
        return [self]

    def get_outputs(self) -> list[Asked]:
        return []

    name = "images"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, fake_gpu: None) -> Asked:
    found = Asked()
    monkeypatch.setattr(onnxruntime_gpu, "new_session", found)
    providers = [CudaOnnxRuntime.provider, TensorRtOnnxRuntime.provider]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    return found


def test_cuda__is_asked_for_alone_and_in_full_precision(asked: Asked, graph: bytes) -> None:
    said = CudaOnnxRuntime().build(graph, "fp32").describe()
    assert asked.provider == "CUDAExecutionProvider"
    assert asked.settings == {"device_id": "0", "use_tf32": "0"}
    assert asked.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert not asked.fallback
    assert (said["provider"], said["device"]) == ("CUDAExecutionProvider", "NVIDIA L4")


@pytest.mark.parametrize(
    ("precision", "half", "integers"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "1", "1")]
)
def test_tensorrt__is_allowed_the_types_of_the_graph(
    asked: Asked, graph: bytes, tmp_path: Path, precision: str, half: str, integers: str
) -> None:
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    typed = quantize(graph, images) if precision == "int8" else graph
    runtime = TensorRtOnnxRuntime(cache_folder=tmp_path / "timing")
    runtime.build(typed, precision)
    assert asked.provider == "TensorrtExecutionProvider"
    assert asked.settings["trt_fp16_enable"] == half
    assert asked.settings["trt_int8_enable"] == integers
    assert Path(asked.settings["trt_timing_cache_path"]).is_dir()


def test_version__names_the_cuda_of_the_package(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "cuda_version", "12.8", raising=False)
    assert CudaOnnxRuntime().version() == f"{onnxruntime.__version__} CUDA 12.8"
