"""Every use of TensorRT's Python interface in our source, asked of its real bindings.

The uses are read from the source, so one that no table here names fails the test.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nas.latency.runtimes import base

SOURCES = Path(base.__file__).parent
STUB = Path(__file__).parent / "tensorrt_stub"


def _load(name: str) -> ModuleType:
    """Import a file of the stub's folder: importlib mode leaves it off the path."""
    spec = importlib.util.spec_from_file_location(f"tensorrt_stub_{name}", STUB / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bindings = _load("bindings")

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
    "tensorrt": "self self._device self._log self._buffers super torch TensorRtRuntime buffer "
    "buffers cuda_device device facts layers log profiler saved settings str error",
    "tensorrt_builder": "self cache_file log notes settings str error.desc()",
    "tensorrt_library": "self self._messages self._times importlib re error msg",
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
    # What hangs on anything here is nothing of TensorRT's either, save on our own object.
    known = receiver[0] in "'\"" or any(
        receiver == one or (one != "self" and re.match(rf"{re.escape(one)}(?!\w)", receiver))
        for one in others
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


def test_tables__have_every_module_that_uses_the_library() -> None:
    using = {path.stem for path in SOURCES.glob("*.py") if "trt." in path.read_text("utf-8")}
    assert using == set(RECEIVERS)


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


@pytest.mark.parametrize(
    "source", ["refitter.refit()", "builder.create_network(0).name", "self._refitter.refit()"]
)
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
    lambda: tensorrt._deserialized(b"", {}, log),
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
