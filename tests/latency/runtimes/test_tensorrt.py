"""TensorRT where there is none: its real bindings without a library, and a fake that computes.

The bindings say whether each of our calls exists with the arguments that it is given; the fake is
for what the runtime makes of TensorRT's answers. What a GPU does stays for `gpu_check.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from nas.errors import EngineError, InputError, MissingPackageError
from nas.latency.onnx_graph import parse_onnx
from nas.latency.quantization import quantize
from nas.latency.runtimes import base
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.tensorrt_audit import Audit, audit, quantized_share, verify
from nas.latency.runtimes.tensorrt_cache import CacheKey, TimingCacheFile, default_folder
from nas.latency.runtimes.tensorrt_device import CudaDevice
from nas.latency.runtimes.tensorrt_plan import Plan

SOURCES = Path(base.__file__).parent
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


bindings, fake = _load("bindings"), _load("fake")

# --------------------------------------------------------------------------------------------------
# The real bindings: every use of the library in our source, read from the source.

# What our names hold, by module. An attribute of anything that stands neither here nor in OTHERS
# fails the test, and so does one of an unnamed intermediate result: a new call needs its line here.
RECEIVERS = {
    "tensorrt": {
        "self._engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "inspector": "EngineInspector",
        "runtime": "Runtime",
    },
    "tensorrt_builder": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "error": "ParserError",
        "timings": "ITimingCache",
    },
    "tensorrt_library": {},
}
# Text and Python objects; what they are called with has nothing to do with TensorRT.
OTHERS = {
    "tensorrt": "self super torch Plan TensorRtRuntime buffer buffers device log plan profiler "
    "settings str error",
    "tensorrt_builder": "self cache_file log notes settings str error.desc()",
    "tensorrt_library": "self importlib re error msg",
}
CALLBACKS = {"log": "ILogger", "report_layer_time": "IProfiler"}


def _name(module: str, receiver: str, attribute: str) -> str | None:
    """The full name of an attribute, as `Class.member` of the library; None if it is not its."""
    if receiver in RECEIVERS[module]:
        return f"{RECEIVERS[module][receiver]}.{attribute}"
    if receiver == "trt" or receiver.startswith("trt."):
        return f"{receiver}.{attribute}".removeprefix("trt.")
    chained = any(re.match(rf"{re.escape(one)}[.\[(]", receiver) for one in RECEIVERS[module])
    others = [one for one in OTHERS[module].split() if not chained or "(" in one]
    known = receiver[0] in "'\"" or any(
        re.match(rf"{re.escape(one)}(?!\w)", receiver) for one in others
    )
    assert known, f"{module}: {receiver}.{attribute} is not in the tables of this test"
    return None


def _uses(module: str, source: str) -> Iterator[dict[str, object]]:
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in CALLBACKS:
            names = [one.arg for one in node.args.args[1:]]
            yield {
                "name": f"{CALLBACKS[node.name]}.{node.name}",
                "kind": "override",
                "parameters": names,
            }
        if not isinstance(node, ast.Attribute):
            continue
        receiver = ast.unparse(node.value)
        if (name := _name(module, receiver, node.attr)) is None:
            continue
        call = calls.get(id(node))
        if call is not None:
            yield {
                "name": name,
                "kind": "call",
                "positional": len(call.args),
                "keywords": [one.arg for one in call.keywords],
                "through_object": receiver in RECEIVERS[module],
            }
        else:
            yield {"name": name, "kind": "set" if isinstance(node.ctx, ast.Store) else "get"}


def _all_uses() -> list[dict[str, object]]:
    return [
        use
        for module in RECEIVERS
        for use in _uses(module, (SOURCES / f"{module}.py").read_text(encoding="utf-8"))
    ]


@pytest.fixture(scope="module", params=bindings.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    try:
        bindings.folder(request.param)
    except bindings.UnavailableError as error:
        if os.environ.get("NAS_REQUIRE_TENSORRT_BINDINGS"):
            raise
        pytest.skip(f"The bindings of TensorRT {request.param}: {error}")
    return str(request.param)


def test_bindings__have_all_that_we_use(version: str) -> None:
    uses = _all_uses()
    names = {use["name"] for use in uses}
    assert len(names) > 70
    assert {"IExecutionContext.execute_async_v3", "BuilderFlag.TF32", "Builder"} <= names
    assert bindings.problems(version, uses) == []


WRONG = {
    "config.calibrator = None": "set IBuilderConfig.calibrator: does not exist",
    "builder.num_DLA_cores = 1": "set Builder.num_DLA_cores: cannot be set",
    "builder.create_network": "get Builder.create_network: is a method, and is not called",
    "builder.num_DLA_cores()": "call Builder.num_DLA_cores: cannot be called",
    "parser.parse()": "call OnnxParser.parse: takes [(['self', 'model', 'path'], 2)]",
    "parser.parse(b'', '', 1)": "call OnnxParser.parse: takes [(['self', 'model', 'path'], 2)]",
    "parser.parse(modell=b'')": "call OnnxParser.parse: takes [(['self', 'model', 'path'], 2)]",
    "trt.Builder()": "call Builder: takes [(['self', 'logger'], 2)]",
    "trt.BuilderFlag.FP17": "get BuilderFlag.FP17: does not exist",
    "def log(self, level, msg): ...": "override ILogger.log: takes [['self', 'severity', 'msg']]",
}


def test_bindings__a_wrong_use_is_found(version: str) -> None:
    uses = [use for source in WRONG for use in _uses("tensorrt_builder", source)]
    assert bindings.problems(version, uses) == list(WRONG.values())


def test_bindings__know_what_the_releases_removed(version: str) -> None:
    uses = list(_uses("tensorrt_builder", "trt.BuilderFlag.FP16"))
    assert bool(bindings.problems(version, uses)) == version.startswith("11.")


@pytest.mark.parametrize("source", ["refitter.refit()", "builder.create_network(0).name"])
def test_bindings__a_call_that_no_table_names_fails(source: str) -> None:
    with pytest.raises(AssertionError, match="not in the tables"):
        list(_uses("tensorrt_builder", source))


_WITHOUT_LIBRARIES = """
import sys, tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from pathlib import Path
from nas.errors import EngineError
from nas.latency.runtimes import tensorrt, tensorrt_builder
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.tensorrt_cache import CacheKey, TimingCacheFile
from nas.latency.runtimes.tensorrt_library import Log, Profiler, trt
from nas.latency.runtimes.tensorrt_plan import Plan

log, profiler = Log(), Profiler()
log.log(trt.ILogger.Severity.INFO, "unheard")
log.log(trt.ILogger.Severity.ERROR, " heard ")
profiler.report_layer_time("conv", 0.5)
profiler.report_layer_time("conv", 1.5)
print(tensorrt.TensorRtRuntime().version(), log.last(), profiler.means())
print(tuple(trt.Dims([1, 3, 8])), str(trt.ErrorCode.UNSUPPORTED_NODE).rsplit(".", 1)[-1])
key = CacheKey(device="", capability="", tensorrt="", cuda="")
file = TimingCacheFile(Path("/nowhere"), key)
for start in (
    lambda: tensorrt_builder.build_plan(b"", tensorrt_builder.BuildSettings(), file, log),
    lambda: tensorrt._deserialized(Plan(b"", (), {}), log),
):
    try:
        start()
    except EngineError as error:
        print(error.message)
"""


def test_bindings__our_subclasses_and_errors_work_with_them(version: str) -> None:
    said = bindings.run(version, "-c", _WITHOUT_LIBRARIES).splitlines()
    assert said[0] == f"{version} heard {{'conv': 1.0}}"
    assert said[1] == "(1, 3, 8) UNSUPPORTED_NODE"
    assert said[2:] == ["TensorRT cannot start: heard."] * 2


# --------------------------------------------------------------------------------------------------
# A machine without TensorRT or without a GPU.


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("cuda", "reason"), [(None, "a torch with CUDA"), ("13.0", "an NVIDIA GPU")]
)
def test_device__none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, reason: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(EngineError, match=f"TensorRT needs {reason}"):
        CudaDevice()


# --------------------------------------------------------------------------------------------------
# The timing cache.

KEY = CacheKey(device="NVIDIA L4", capability="8.9", tensorrt="10.16.1.11", cuda="13.0")


def test_cache__comes_back(tmp_path: Path) -> None:
    file = TimingCacheFile(tmp_path / "new" / "folder", KEY)
    assert file.read() == (b"", "")
    assert file.write(b"\x00timings\n\xff") == ""
    assert file.read() == (b"\x00timings\n\xff", "")
    assert file.write(b"more") == ""
    assert TimingCacheFile(tmp_path / "new" / "folder", KEY).read() == (b"more", "")
    assert [one.name for one in file.path.parent.iterdir()] == [file.path.name]


@pytest.mark.parametrize("field", ["device", "capability", "tensorrt", "cuda"])
def test_cache__every_part_of_the_key_makes_another_file(tmp_path: Path, field: str) -> None:
    other = dataclasses.replace(KEY, **{field: getattr(KEY, field) + "1"})
    TimingCacheFile(tmp_path, KEY).write(b"timings")
    assert TimingCacheFile(tmp_path, other).read() == (b"", "")


def test_cache__names_that_look_alike_are_kept_apart() -> None:
    names = {
        dataclasses.replace(KEY, device=name).file_name for name in ("A-100", "A 100", "a/100")
    }
    assert len(names) == 3
    assert all(re.fullmatch(r"a-100-sm8\.9-trt10\.16\.1\.11-[a-z0-9.-]+\.timing", n) for n in names)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content.replace(b"timings", b"tamings"),
        lambda content: content.replace(b"NVIDIA L4", b"NVIDIA T4"),
        lambda _: b"",
        lambda _: b"\xff" * 40,
    ],
    ids=["short", "long", "changed", "other device", "empty", "noise"],
)
def test_cache__damage_is_noted_and_ignored(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = TimingCacheFile(tmp_path, KEY)
    file.write(b"timings")
    file.path.write_bytes(damage(file.path.read_bytes()))
    content, note = file.read()
    assert content == b""
    assert "ignored" in note
    assert file.write(b"again") == ""
    assert file.read() == (b"again", "")


def test_cache__a_folder_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = TimingCacheFile(tmp_path / "file", KEY)
    assert "not written" in file.write(b"timings")
    content, note = file.read()
    assert (content, "ignored" in note) == (b"", True)


def test_cache__lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/nas-detector/tensorrt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "nas-detector" / "tensorrt"


# --------------------------------------------------------------------------------------------------
# The audit: JSON by the documented names of its fields, of TensorRT 10 and of 11.


def _tensor_10(name: str, kind: str) -> dict[str, object]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": [1, 16, 8, 8],
        "Format/Datatype": kind,
    }


def _tensor_11(name: str, kind: str) -> dict[str, object]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": [1, 16, 8, 8],
        "DataType": kind,
        "Format": "Channel major format where channel % 8 == 0 (kHWC8)",
    }


def _layer(kind: str, inputs: list[object], outputs: list[object], **more: object) -> object:
    return {
        "Name": f"{kind} of something",
        "LayerType": kind,
        "Inputs": inputs,
        "Outputs": outputs,
        "StreamId": 0,
        "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]",
        **more,
    }


def _json_10(layers: list[object]) -> str:
    # The separator of the metadata stands in the text as it is, which strict JSON forbids.
    text = json.dumps({"Layers": layers, "Bindings": ["images", "boxes", "scores"]})
    return text.replace("\\u001e", "\x1e")


def _json_11(layers: list[object]) -> str:
    ports = [
        {
            "Name": "images",
            "IOMode": "Input",
            "DataType": "Float",
            "Location": "Device",
            "Dimensions": [1, 3, 16, 16],
            "IsShapeInferenceIO": False,
        }
    ]
    return json.dumps({"Layers": layers, "I/O Tensors": ports})


def _half_10() -> str:
    sentence = "Channel major FP16 format where channel % 8 == 0"
    to_half = [_tensor_10("images", "Row major linear FP32")], [_tensor_10("x", sentence)]
    half = [_tensor_10("x", sentence)], [_tensor_10("y", sentence)]
    words = [_tensor_10("y", "Half"), _tensor_10("w", "Half")], [_tensor_10("z", "Float")]
    return _json_10(
        [
            _layer("Reformat", *to_half, Origin="REFORMAT"),
            _layer("CaskConvolution", *half, ParameterType="Convolution", Weights={"Type": "Half"}),
            _layer("gemm", *words),
            _layer("kgen", [_tensor_10("z", "Float")], [_tensor_10("index", "Int32")]),
            _layer("TopK", [_tensor_10("z", "Float")], [_tensor_10("top", "Int64")]),
        ]
    )


def _int8_11() -> str:
    return _json_11(
        [
            _layer("kgen", [_tensor_11("images", "Half")], [_tensor_11("x", "Int8")]),
            _layer(
                "CaskConvolution",
                [_tensor_11("x", "Int8"), _tensor_11("identity", "Half")],
                [_tensor_11("y", "Half")],
            ),
            _layer("CaskConvolution", [_tensor_11("y", "Half")], [_tensor_11("z", "Half")]),
            _layer("gemm", [_tensor_11("index", "Int32"), _tensor_11("z", "Float")], []),
        ]
    )


def test_audit__of_tensorrt_10_reads_words_and_sentences() -> None:
    found = audit(_half_10())
    assert (dict(found.layers), found.total) == ({"fp16": 2}, 5)
    assert str(found) == "2 fp16 of 5 layers"


def test_audit__of_tensorrt_11_reads_data_types() -> None:
    found = audit(_int8_11())
    assert dict(found.layers) == {"int8": 1, "fp16": 1, "fp32": 1}
    assert found.share("int8", "fp16") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major INT8 format where column stride % 64 == 0", "int8"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("BFloat16", "bf16"),
        ("Row major linear FP8 format", "fp8"),
        ("Channel major FP32 format where channel % 4 == 0", "fp32"),
        ("Float", "fp32"),
    ],
)
def test_audit__knows_the_words_of_every_type(kind: str, expected: str) -> None:
    layers = [_layer("CaskConvolution", [_tensor_10("x", kind)], [])]
    assert dict(audit(_json_10(layers)).layers) == {expected: 1}


@pytest.mark.parametrize("kind", ["Int32", "UInt8", "Bool", "N/A due to dynamic shapes", "None"])
def test_audit__indices_are_no_arithmetic(kind: str) -> None:
    layers = [_layer("CaskConvolution", [_tensor_10("x", kind)], [_tensor_10("y", "Half")])]
    assert dict(audit(_json_10(layers)).layers) == {"fp16": 1}


def test_audit__where_no_layer_has_a_known_name_all_count() -> None:
    layers = [_layer("renamed", [_tensor_11("x", kind)], []) for kind in ("Half", "Half", "Float")]
    assert dict(audit(_json_11(layers)).layers) == {"fp16": 2, "fp32": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("not json", "cannot be read"),
        ('{"Bindings": []}', "cannot be read"),
        ('{"Layers": ["conv", "conv 2"], "Bindings": []}', "none of 2 layers"),
        ('{"Layers": []}', "none of 0 layers"),
    ],
)
def test_audit__without_types_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        audit(text)


@pytest.mark.parametrize(
    ("precision", "layers", "quantized"),
    [
        ("fp32", {"fp32": 9}, 0.0),
        ("fp16", {"fp16": 9, "fp32": 9}, 0.0),
        ("int8", {"int8": 6, "fp16": 3, "fp32": 1}, 0.9),
        ("int8", {"int8": 1, "fp16": 9}, 0.2),
    ],
)
def test_verify__what_was_asked_for(
    precision: str, layers: dict[str, int], quantized: float
) -> None:
    verify(Audit(layers, 20), precision, quantized)


@pytest.mark.parametrize(
    ("precision", "layers", "quantized"),
    [
        ("fp32", {"fp32": 9, "fp16": 1}, 0.0),
        ("fp32", {"fp16": 9}, 0.0),
        ("fp16", {"fp32": 9}, 0.0),
        ("fp16", {"fp32": 9, "fp16": 8}, 0.0),
        ("fp16", {"bf16": 9}, 0.0),
        ("int8", {"fp16": 9}, 0.0),
        ("int8", {"int8": 4, "fp16": 6}, 0.9),
        ("int8", {"int8": 4, "fp32": 6}, 0.4),
    ],
)
def test_verify__anything_else_is_an_error(
    precision: str, layers: dict[str, int], quantized: float
) -> None:
    with pytest.raises(EngineError, match=f"Asked TensorRT for {precision}"):
        verify(Audit(layers, 20), precision, quantized)


def test_quantized_share__counts_layers_that_read_integers() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale"], ["rounded"]),
        helper.make_node("Conv", ["rounded", "kernel"], ["x"]),
        helper.make_node("Relu", ["rounded"], ["unused"]),
        helper.make_node("DequantizeLinear", ["weights", "scale"], ["only_weights"]),
        helper.make_node("Conv", ["x", "only_weights"], ["y"]),
        helper.make_node("MatMul", ["y", "y"], ["z"]),
        helper.make_node("MatMul", ["rounded", "z"], ["out"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert quantized_share(model.SerializeToString()) == 2 / 4


# --------------------------------------------------------------------------------------------------
# Plans on disk.

FACTS = {
    "runtime": "tensorrt",
    "version": "10.16.1.11",
    "device": "NVIDIA L4",
    "compute capability": "8.9",
    "precision": "fp16",
}


def test_plan__comes_back(tmp_path: Path) -> None:
    plan = Plan(b"\x00plan", (1, 3, 8, 8), FACTS)
    plan.write(tmp_path / "deep" / "a.plan")
    assert (tmp_path / "deep" / "a.plan").read_bytes() == b"\x00plan"
    assert Plan.read(tmp_path / "deep" / "a.plan") == plan
    plan.require(FACTS)


@pytest.mark.parametrize("key", ["version", "device", "compute capability"])
def test_plan__of_elsewhere_is_an_error(key: str) -> None:
    plan = Plan(b"", (1, 3, 8, 8), FACTS)
    with pytest.raises(EngineError, match=f"for {key} {FACTS[key]}, this is another"):
        plan.require(FACTS | {key: "another"})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.plan", b"other", "is not the plan"),
        ("a.plan", None, "No such file"),
        ("a.plan.json", None, "No such file"),
        ("a.plan.json", b"{", "does not describe"),
        ("a.plan.json", b"[]", "does not describe"),
        ("a.plan.json", b'{"facts": {}}', "does not describe"),
        ("a.plan.json", b"\xff", "does not describe"),
    ],
)
def test_plan__broken_files_are_errors(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    Plan(b"plan", (1, 3, 8, 8), FACTS).write(tmp_path / "a.plan")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EngineError, match=reason):
        Plan.read(tmp_path / "a.plan")


# --------------------------------------------------------------------------------------------------
# What the runtime makes of TensorRT's answers: the fake.


class Device:
    """In the place of `CudaDevice`, with memory of the CPU."""

    name, capability, cuda, stream = "NVIDIA L4", "8.9", "13.0", 7
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
    monkeypatch.setattr(ours, "CudaDevice", Device)
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
    fake.script.inspector = _json_11([_layer("CaskConvolution", [_tensor_11("x", "Float")], [])])
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


def test_save__a_loaded_engine_is_the_saved_one(
    fake_runtime: Any, engine: Any, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    engine.save(tmp_path / "a.plan")
    loaded = fake_runtime.load(tmp_path / "a.plan")
    assert loaded.describe() == engine.describe()
    assert np.array_equal(loaded.infer(images)["scores"], engine.infer(images)["scores"])


def test_load__a_plan_of_another_release_is_an_error(
    fake_runtime: Any, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.save(tmp_path / "a.plan")
    monkeypatch.setattr(fake, "__version__", "11.4.0.106")
    with pytest.raises(EngineError, match=r"for version 10\.16\.1\.11, this is 11\.4\.0\.106"):
        fake_runtime.load(tmp_path / "a.plan")


def test_save__a_closed_engine_is_an_error(engine: Any, tmp_path: Path) -> None:
    engine.close()
    for call in (lambda: engine.save(tmp_path / "a.plan"), engine.inspect, engine.profile):
        with pytest.raises(EngineError, match="closed"):
            call()
