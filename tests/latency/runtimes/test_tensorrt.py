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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nas.errors import EngineError, MissingPackageError
from nas.latency.runtimes import base
from nas.latency.runtimes.tensorrt_audit import Audit, audit, verify
from nas.latency.runtimes.tensorrt_cache import CacheKey, TimingCacheFile, default_folder
from nas.latency.runtimes.tensorrt_device import CudaDevice
from nas.latency.runtimes.tensorrt_plan import Plan

SOURCES = Path(base.__file__).parent
STUB = Path(__file__).parent / "tensorrt_stub"
OURS = "nas.latency.runtimes.tensorrt"


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
    "settings str",
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
    # The class of an unknown member is a use of its own, and a right one.
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
from nas.latency.runtimes.tensorrt_cache import CacheKey, TimingCacheFile
from nas.latency.runtimes.tensorrt_library import Log, Profiler, trt
from nas.latency.runtimes.tensorrt_plan import Plan

log, profiler = Log(), Profiler()
log.log(trt.ILogger.Severity.INFO, "unheard")
log.log(trt.ILogger.Severity.ERROR, " heard ")
profiler.report_layer_time("conv", 0.5)
profiler.report_layer_time("conv", 1.5)
print(tensorrt.TensorRtRuntime().version(), log.last(), profiler.means())
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
    assert said[1:] == ["TensorRT cannot start: heard."] * 2


# --------------------------------------------------------------------------------------------------
# A machine without TensorRT or without a GPU.


def test_import__without_the_package_names_the_extra() -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    with pytest.raises(
        MissingPackageError, match=r"'tensorrt'.*pip install 'nas-detector\[tensorrt"
    ):
        importlib.import_module(OURS)


def test_device__none_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineError, match="torch"):
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
        lambda content: b"",
        lambda content: b"\xff" * 40,
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
