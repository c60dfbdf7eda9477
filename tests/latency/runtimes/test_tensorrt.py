"""What the runtime makes of TensorRT's answers, with a fake that computes in its place.

That every call exists with the arguments that it is given is the matter of
`test_tensorrt_bindings.py`. What a GPU does stays for `benchmarks/gpu_check.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from nas.errors import EngineError, InputError, MissingPackageError
from nas.latency.onnx_graph import parse_onnx
from nas.latency.quantization import quantize
from nas.latency.runtimes import cuda_device
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.tensorrt_cache import CacheKey, TimingCacheFile

STUB = Path(__file__).parent / "tensorrt_stub"
OURS = "nas.latency.runtimes.tensorrt"
NEEDING_TENSORRT = (OURS, f"{OURS}_builder", f"{OURS}_library")


def _load(name: str) -> ModuleType:
    """Import a file of the stub's folder: importlib mode leaves it off the path."""
    spec = importlib.util.spec_from_file_location(f"tensorrt_stub_{name}", STUB / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _load("fake")
KEY = CacheKey(device="NVIDIA L4", capability="8.9", tensorrt="10.16.1.11", cuda="13.0")


def _import_ours(patch: pytest.MonkeyPatch) -> ModuleType:
    """Import the runtime anew, with whatever `import tensorrt` finds."""
    for name in NEEDING_TENSORRT:
        patch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(OURS)


def test_import__without_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match=r"'tensorrt'.*nas-detector\[tensorrt\]"):
        _import_ours(monkeypatch)


def test_import__without_its_libraries_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    (tmp_path / "tensorrt.py").write_text(line, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"libnvinfer\.so\.10"):
        _import_ours(monkeypatch)


class Device:
    """In the place of `CudaDevice`, with memory of the CPU."""

    name, capability, cuda, stream = "NVIDIA L4", "8.9", "13.0", 7
    text = "NVIDIA L4 (compute capability 8.9)"
    captures, alive = True, True

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def synchronize(self) -> None:
        if not self.alive:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        return launch


@pytest.fixture(scope="module")
def ours() -> Iterator[ModuleType]:
    """The runtime's module, imported with the fake in the place of TensorRT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", fake)
        yield _import_ours(patch)
    for name in NEEDING_TENSORRT:
        sys.modules.pop(name, None)


@pytest.fixture
def fake_runtime(ours: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    fake.reset()
    monkeypatch.setattr(cuda_device, "CudaDevice", Device)
    return ours.TensorRtRuntime(cache_folder=tmp_path)


@pytest.fixture
def engine(fake_runtime: Any, graph: bytes) -> Any:
    return fake_runtime.build(graph, "fp32")


class TestTensorRt(RuntimeConformance):
    @pytest.fixture
    def runtime(self, fake_runtime: Any) -> Any:
        return fake_runtime


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 0.01), ("int8", 0.05)]
)
def test_build__every_precision_computes_in_it(
    fake_runtime: Any, graph: bytes, precision: str, tolerance: float
) -> None:
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    exact = fake_runtime.build(graph, "fp32").infer(images)["scores"]
    typed = quantize(graph, images) if precision == "int8" else graph
    engine = fake_runtime.build(typed, precision)
    deviation = np.abs(engine.infer(images)["scores"] - exact).max()
    assert engine.describe()["precision"] == precision
    assert engine.describe()["arithmetic layers"] == f"1 {precision} of 1 layers"
    assert engine.describe()["share in precision"] == "1.000"
    assert deviation <= tolerance
    assert (deviation > 0) == (precision != "fp32")


def test_build__a_weight_beyond_half_precision_is_an_error(fake_runtime: Any, graph: bytes) -> None:
    model = parse_onnx(graph)
    for weight in model.graph.initializer:
        if weight.name == "stem.0.weight":
            large = numpy_helper.to_array(weight) * 1e7
            weight.CopyFrom(numpy_helper.from_array(large.astype(np.float32), weight.name))
    with pytest.raises(EngineError, match="half"):
        fake_runtime.build(model.SerializeToString(), "fp16")


def test_build__is_strongly_typed_and_as_set(
    ours: ModuleType, fake_runtime: Any, graph: bytes, tmp_path: Path
) -> None:
    settings = ours.BuildSettings(
        optimization_level=5, workspace_bytes=1 << 20, timing_iterations=3
    )
    said = ours.TensorRtRuntime(settings, cache_folder=tmp_path).build(graph, "fp32").describe()
    config = fake.script.config
    assert fake.script.network.flags == 1 << fake.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert (config.builder_optimization_level, config.avg_timing_iterations) == (5, 3)
    assert (config.max_aux_streams, config.profiling_verbosity) == (0, "DETAILED")
    assert fake.script.pools == {"WORKSPACE": 1 << 20}
    assert fake.script.flags == set()
    assert (said["tf32"], said["optimization level"], said["workspace"]) == ("off", "5", "1 MiB")
    assert (said["device"], said["compute capability"]) == ("NVIDIA L4", "8.9")
    assert (said["device memory"], said["arithmetic layers"]) == ("3.0 MiB", "1 fp32 of 1 layers")
    assert "notes" not in said


def test_build__tf32_stays_only_if_it_is_asked_for(
    ours: ModuleType, fake_runtime: Any, graph: bytes, tmp_path: Path
) -> None:
    runtime = ours.TensorRtRuntime(ours.BuildSettings(tf32=True), cache_folder=tmp_path)
    assert runtime.build(graph, "fp32").describe()["tf32"] == "on"
    assert fake.script.flags == {"TF32"}


@pytest.mark.parametrize(
    "values",
    [
        {"optimization_level": 6},
        {"optimization_level": -1},
        {"workspace_bytes": 0},
        {"timing_iterations": 0},
    ],
)
def test_settings__that_cannot_work_are_refused(ours: ModuleType, values: dict[str, int]) -> None:
    with pytest.raises(InputError, match=str(*values.values())):
        ours.BuildSettings(**values)


def test_build__parser_errors_name_the_nodes(fake_runtime: Any, graph: bytes) -> None:
    def error(node: int, operator: str) -> SimpleNamespace:
        values = {
            "node": node,
            "node_name": f"/neck/{operator}_{node}",
            "node_operator": operator,
            "desc": "Assertion failed: K <= 3840.\n",
            "code": "ErrorCode.UNSUPPORTED_NODE",
        }
        return SimpleNamespace(**{name: lambda v=value: v for name, value in values.items()})

    fake.script.parser_errors = (error(12, "TopK"), error(40, "NonZero"))
    with pytest.raises(EngineError) as caught:
        fake_runtime.build(graph, "fp32")
    assert caught.value.message == (
        "TensorRT cannot read this graph: "
        "node 12 '/neck/TopK_12' (TopK): Assertion failed: K <= 3840 [UNSUPPORTED_NODE]; "
        "node 40 '/neck/NonZero_40' (NonZero): Assertion failed: K <= 3840 [UNSUPPORTED_NODE]."
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("driver", "TensorRT cannot start"),
        ("builds", "TensorRT built no engine: Could not find any implementation for node X"),
        ("loads", "TensorRT cannot load the plan"),
        ("memory", "TensorRT cannot run the engine"),
        ("accepts", "TensorRT refuses the buffer of 'images'"),
        ("starts", "TensorRT could not start a run"),
    ],
)
def test_build__every_refusal_is_an_error(
    fake_runtime: Any, graph: bytes, fault: str, message: str
) -> None:
    setattr(fake.script, fault, False)
    with pytest.raises(EngineError) as caught:
        fake_runtime.build(graph, "fp32")
    assert caught.value.message.startswith(message)
    assert "a kernel was tried" not in caught.value.message


def test_build__an_engine_that_stayed_in_fp32_is_an_error(fake_runtime: Any, graph: bytes) -> None:
    layer = {"LayerType": "CaskConvolution", "Inputs": [{"Name": "x", "DataType": "Float"}]}
    fake.script.inspector = json.dumps({"Layers": [layer], "I/O Tensors": []})
    with pytest.raises(EngineError, match=r"Asked TensorRT for fp16.* 1 fp32 of 1 layers"):
        fake_runtime.build(graph, "fp16")


def test_build__timings_go_from_build_to_build(
    fake_runtime: Any, graph: bytes, tmp_path: Path
) -> None:
    fake_runtime.build(graph, "fp32")
    fake_runtime.build(graph, "fp32")
    assert TimingCacheFile(tmp_path, KEY).read() == (b"++", "")


def test_build__a_damaged_cache_is_noted_and_replaced(
    fake_runtime: Any, graph: bytes, tmp_path: Path
) -> None:
    file = TimingCacheFile(tmp_path, KEY)
    file.path.write_bytes(b"damaged")
    assert "damaged" in fake_runtime.build(graph, "fp32").describe()["notes"]
    assert file.read() == (b"+", "")


def test_build__a_cache_that_tensorrt_refuses_is_noted_and_replaced(
    fake_runtime: Any, graph: bytes, tmp_path: Path
) -> None:
    file = TimingCacheFile(tmp_path, KEY)
    file.write(b"of another driver")
    fake.script.fits = False
    assert "TensorRT refuses it" in fake_runtime.build(graph, "fp32").describe()["notes"]
    assert file.read() == (b"+", "")


def test_build__dla_only_where_it_is(
    ours: ModuleType, fake_runtime: Any, graph: bytes, tmp_path: Path
) -> None:
    runtime = ours.TensorRtRuntime(ours.BuildSettings(dla_core=1), cache_folder=tmp_path)
    fake.script.dla_cores = 1
    with pytest.raises(EngineError, match="DLA core 1, TensorRT finds 1"):
        runtime.build(graph, "fp32")
    fake.script.dla_cores = 2
    assert runtime.build(graph, "fp32").describe()["dla core"] == "1"
    assert (fake.script.config.default_device_type, fake.script.config.DLA_core) == ("DLA", 1)
    assert fake.script.flags == {"GPU_FALLBACK"}


def test_build__outputs_of_unknown_size_are_an_error(
    fake_runtime: Any, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake._engine

    def dynamic(plan: bytes) -> Any:
        engine = real(plan)
        engine.get_tensor_shape = lambda _: (-1, 4)
        return engine

    monkeypatch.setattr(fake, "_engine", dynamic)
    with pytest.raises(EngineError, match="'images' depends on data"):
        fake_runtime.build(graph, "fp32")


@pytest.mark.parametrize(
    ("release", "supported"),
    [
        ("8.6.1", False),
        ("10.11.0.33", False),
        ("10.12.0.36", True),
        ("10.13.3.9.post1", True),
        ("11.4.0.106", True),
        ("unknown", False),
    ],
)
def test_runtime__old_releases_are_refused(
    ours: ModuleType, monkeypatch: pytest.MonkeyPatch, release: str, supported: bool
) -> None:
    monkeypatch.setattr(fake, "__version__", release)
    if supported:
        assert ours.TensorRtRuntime().version() == release
    else:
        with pytest.raises(EngineError, match=rf"must be 10\.12 or newer, this is {release}"):
            ours.TensorRtRuntime()


def test_describe__says_whether_runs_are_captured(
    ours: ModuleType,
    fake_runtime: Any,
    graph: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.ones((1, 3, 32, 32), np.float32)
    captured = fake_runtime.build(graph, "fp32")
    plain = ours.TensorRtRuntime(cache_folder=tmp_path, cuda_graph=False).build(graph, "fp32")
    monkeypatch.setattr(Device, "captures", False)
    fallen_back = fake_runtime.build(graph, "fp32")
    said = [one.describe()["cuda graph"] for one in (captured, plain, fallen_back)]
    assert said[:2] == ["yes", "no, not asked for"]
    assert said[2] == (
        "no, it cannot be captured: operation not permitted when stream is capturing"
    )
    boxes = [one.infer(images)["boxes"] for one in (captured, plain, fallen_back)]
    assert np.array_equal(boxes[0], boxes[1])
    assert np.array_equal(boxes[0], boxes[2])


def test_run__a_device_that_is_lost_is_an_error(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.bind(np.ones((1, 3, 32, 32), np.float32))
    monkeypatch.setattr(Device, "alive", False)
    with pytest.raises(EngineError, match="NVIDIA L4 failed: CUDA error: an illegal memory"):
        engine.run()


def test_run__that_cannot_start_is_an_error(engine: Any) -> None:
    engine.bind(np.ones((1, 3, 32, 32), np.float32))
    fake.script.starts = False
    with pytest.raises(EngineError, match="could not start"):
        engine.run()


def test_profile__is_of_a_context_of_its_own(engine: Any) -> None:
    with pytest.raises(EngineError, match="bound"):
        engine.profile()
    engine.bind(np.ones((1, 3, 32, 32), np.float32))
    assert engine.profile(runs=3) == {"conv": 0.25}
    assert engine._context.profiler is None


def test_load__is_good_for_any_settings_of_the_release(
    ours: ModuleType, fake_runtime: Any, engine: Any, tmp_path: Path
) -> None:
    engine.save(tmp_path / "a.plan")
    assert (tmp_path / "a.plan").read_bytes() == engine._engine.serialize()
    plain = ours.TensorRtRuntime(cache_folder=tmp_path, cuda_graph=False)
    assert plain.version() != fake_runtime.version()
    said = plain.load(tmp_path / "a.plan").describe()
    assert said == engine.describe() | {"cuda graph": "no, not asked for"}


def test_load__asks_for_the_share_of_int8_that_was_built(
    fake_runtime: Any, graph: bytes, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    fake_runtime.build(quantize(graph, images), "int8").save(tmp_path / "a.plan")
    types = ["Int8", *9 * ["Half"]]
    layers = [{"LayerType": "gemm", "Inputs": [{"DataType": one}]} for one in types]
    fake.script.inspector = json.dumps({"Layers": layers})
    with pytest.raises(EngineError, match=r"for int8.* 9 fp16, 1 int8 of 10 layers"):
        fake_runtime.load(tmp_path / "a.plan")


def test_load__a_plan_of_another_release_is_an_error(
    fake_runtime: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.save(tmp_path / "a.plan")
    monkeypatch.setattr(fake, "__version__", "11.4.0.106")
    with pytest.raises(EngineError, match=r"version .*'10\.16\.1\.11', here is '11\.4\.0\.106'"):
        fake_runtime.load(tmp_path / "a.plan")


def test_save__a_closed_engine_is_an_error(engine: Any, tmp_path: Path) -> None:
    engine.close()
    for call in (lambda: engine.save(tmp_path / "a.plan"), engine.inspect, engine.profile):
        with pytest.raises(EngineError, match="closed"):
            call()
