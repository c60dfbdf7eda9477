"""The check of machines with a GPU, as far as a machine without one can run it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from nas.latency.runtimes import cuda_device
from nas.space.space import load_space

ROOT = Path(__file__).parents[2]
GUARANTEED = ("torch", "numpy", "onnx", "pydantic")
ABSENT = ("yaml", "PIL", "safetensors", "onnxruntime", "scipy", "pandas", "optuna", "nas")
STUB = ROOT / "tests/latency/runtimes/tensorrt_stub/fake.py"
OURS = "nas.latency.runtimes.tensorrt"


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("gpu_check")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with what is guaranteed and what that needs, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    for name in _needed(GUARANTEED):
        for top in {file.parts[0] for file in distribution(name).files or ()}:
            place = Path(str(distribution(name).locate_file(top)))
            if top != ".." and not (folder / top).exists():
                (folder / top).symlink_to(place)
    return folder


def _needed(names: tuple[str, ...]) -> set[str]:
    """Names of distributions and of all that they require, directly or not."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            requires = distribution(name).requires or ()
        except PackageNotFoundError:
            continue  # a requirement of another platform
        if name not in found:
            found.add(name)
            parsed = (Requirement(one) for one in requires)
            waiting += [r.name for r in parsed if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as git has it: without the metadata of an installation."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("nas", "benchmarks", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def start(bare: Path, checkout: Path) -> Callable[..., subprocess.Popen[str]]:
    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        kept = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            [sys.executable, "-S", *arguments],  # -S: no packages but those of PYTHONPATH
            cwd=checkout,
            env={**kept, "PYTHONPATH": os.pathsep.join((".", str(bare)))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def _whole(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_bare__has_nothing_but_what_is_guaranteed(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    found, errors = start("-c", code, *GUARANTEED, *ABSENT).communicate(timeout=600)
    assert found.strip() == str([*GUARANTEED, "nas"]), errors
    code = "import importlib.metadata as m; print(list(m.entry_points(group='nas.blocks')))"
    assert start("-c", code).communicate(timeout=600)[0].strip() == "[]"


def test_gpu_check__without_a_gpu_says_what_it_cannot_check(
    start: Callable[..., subprocess.Popen[str]], check: ModuleType
) -> None:
    process = start("benchmarks/gpu_check.py")
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 2, errors
    assert "No NVIDIA GPU was found" in said
    assert all(f"- {part.text}" in said for part in check.PARTS[1:])
    assert not errors


def test_gpu_check__bare_machine_runs_small_and_keeps_a_whole_file(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, check: ModuleType
) -> None:
    output, seen = tmp_path / "result.json", set()
    process = start("benchmarks/gpu_check.py", "--allow-cpu", "--output", output)
    while process.poll() is None:
        threading.Event().wait(0.1)
        if output.exists():
            seen.add(tuple(_whole(output)["parts"]))
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not errors
    assert len(seen) > 3  # it was read while it grew
    result = _whole(output)
    assert {"commit", "created", "versions", "machine", "summary"} <= set(result)
    assert result["small"]
    rows = {name: part["rows"] for name, part in result["parts"].items()}
    assert [len(rows[name]) for name in ("networks", "torch_modes", "repeatability")] == [2, 2, 1]
    assert {row["family"] for row in rows["attention"]} == set(check.parts.FAMILIES)
    assert rows["training"][0]["steps_per_s"] > 0
    assert all(row["boxes_max"] < 1e-3 for row in rows["torch_modes"])
    assert all(row["loaded_max"] == 0 for row in rows["torch_modes"])
    assert all(row["deviation_max"] < 1e-5 for row in rows["batches"])
    assert len(rows["batches"]) == 2
    missed = {one["what"]: one["why"] for one in result["not_checked"]}
    assert {"tensorrt", "onnxruntime", "compiled", "parity of INT8", "throttling"} <= set(missed)
    assert "needs the package 'onnxruntime'" in missed["onnxruntime"]
    assert all(f"not checked: {what}" in said for what in missed)


def test_ladder__is_what_the_search_spaces_name(check: ModuleType) -> None:
    published = {"yolov8n": "hsv_det", "yolov8s": "hsv_det", "yolo_nas_s": "yolo_nas"}
    networks = check.parts.ladder()
    for name, space_name in published.items():
        space = load_space(space_name)
        point = space.anchors["S" if name == "yolo_nas_s" else name]
        assert networks[name] == space.candidate(point, 80).architecture
    space = load_space("digits")
    largest = {**space.anchors["max"]}
    assert networks["digits"] == space.candidate(largest, 10).architecture
    sparse = {"p3_attention": 64, "p4_attention": 32, "p5_attention": 8}
    for choice, tokens in sparse.items():
        options = space.options[choice]
        wanted = {"kind": "sparse", "tokens": tokens}
        largest[choice] = next(label for label, value in options.items() if value == wanted)
    assert networks["digits_sparse"] == space.candidate(largest, 10).architecture


# --- TensorRT, with a fake that computes in its place ----------------------------------------


class Device:
    """In the place of `CudaDevice`, with memory of the CPU."""

    name, capability, cuda, stream = "NVIDIA L4", "8.9", "13.0", 7
    text = "NVIDIA L4 (compute capability 8.9)"

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch


@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    spec = importlib.util.spec_from_file_location("tensorrt", STUB)
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    fake.reset()
    names = (OURS, f"{OURS}_builder", f"{OURS}_library")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(cuda_device, "CudaDevice", Device)
    yield
    for name in names:
        sys.modules.pop(name, None)


class Heard:
    """Collects what a part tells."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.missed: dict[str, str] = {}

    def __call__(self, message: tuple[str, Any]) -> None:
        kind, what = message
        if kind == "row":
            self.rows.append(json.loads(json.dumps(what, allow_nan=False)))
        elif kind == "missed":
            self.missed[what[0]] = what[1]


@pytest.mark.usefixtures("fake_tensorrt")
def test_tensorrt__builds_compares_times_and_repeats(check: ModuleType, tmp_path: Path) -> None:
    setup = check.Setup("cpu", small=True, folder=tmp_path)
    heard = Heard()
    check.parts.networks(setup, check.Report(heard, 60))
    assert len(heard.rows) == 2, heard.missed
    heard = Heard()
    check.runtimes.tensorrt(setup, check.Report(heard, 60))
    # The fake takes every graph with a Cast for one in half precision, and the audit does not.
    assert list(heard.missed) == ["digits fp32", "digits_sparse fp32"]
    assert all(why.startswith("Asked TensorRT for fp32") for why in heard.missed.values())
    rows = {row["what"]: row for row in heard.rows}
    for what in ("digits fp16", "digits int8", "digits_sparse fp16", "digits_sparse int8"):
        assert rows[what]["cuda_graph"] == "yes"
        assert rows[what]["precision"] in rows[what]["layers"]
        assert rows[what]["boxes_mean"] < 0.05
    for what in ("digits fp16, again", "digits_sparse fp16, again"):
        assert min(rows[what]["rebuild_s"], rows[what]["without_cuda_graph_ms"]) > 0
    assert len(rows) == 6
    assert set(check.summarise({"tensorrt": {"rows": heard.rows}})) >= {"int8_speed_up_over_fp16"}
    heard = Heard()
    check.parts.repeatability(setup, check.Report(heard, 60))
    assert not heard.missed
    assert [row["what"] for row in heard.rows] == [
        "digits, tensorrt fp16 loaded",
        "digits, tensorrt fp16 rebuilt",
    ]


def test_tensorrt__without_time_is_not_begun(check: ModuleType, tmp_path: Path) -> None:
    heard = Heard()
    check.parts.training(check.Setup("cpu", small=True, folder=tmp_path), check.Report(heard, 1))
    assert list(heard.missed.values()) == ["no time was left"]


# --- parts that fail -------------------------------------------------------------------------


def _hangs(setup: Any, report: Any) -> None:
    report.row({"what": "before"})
    threading.Event().wait()


def _dies(setup: Any, report: Any) -> None:
    report.row({"what": "before"})
    os.kill(os.getpid(), signal.SIGKILL)


def _fails(setup: Any, report: Any) -> None:
    report.row({"what": "before"})
    raise ValueError("no reason")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("run", "outcome"),
    [(_hangs, "stopped after 1 s"), (_dies, "ended with status -9"), (_fails, "done")],
)
def test_run__failing_part_costs_itself(
    check: ModuleType, tmp_path: Path, run: Callable[..., None], outcome: str
) -> None:
    heard = Heard()
    setup = check.Setup("cpu", small=True, folder=tmp_path)
    part = check.Part(run, 1)
    assert check._run(part, setup, 1, lambda *message: heard(message)) == outcome
    assert heard.rows == [{"what": "before"}]
    assert heard.missed == ({"_fails": "ValueError: no reason"} if run is _fails else {})


# --- what is made of figures -----------------------------------------------------------------


def test_summarise__says_what_was_asked_for(check: ModuleType) -> None:
    timed = [("a", "fp32", 4.0), ("a", "fp16", 2.0), ("a", "int8", 1.0), ("b", "fp16", 3.0)]
    rows: list[dict[str, Any]] = [{"network": n, "precision": p, "ms": ms} for n, p, ms in timed]
    rows[1] |= {"matched": 0.9, "boxes_max": 0.1, "scores_max": 0.2}
    rows[3] |= {"matched": None, "boxes_max": 0.2, "scores_max": 0.1}
    families = [("dense", 100, 2.0), ("sparse", 100, 1.0), ("sparse", 200, 1.0)]
    done = {
        "tensorrt": {"rows": rows, "gpu": {"samples": 4, "throttled": {"software power cap": 2}}},
        "repeatability": {"rows": [{"what": "a", "ratio": ratio} for ratio in (0.9, 1.0, 1.1)]},
        "attention": {
            "rows": [
                {"family": f, "positions": n, "engine": "torch", "ms": ms} for f, n, ms in families
            ]
        },
    }
    assert check.summarise(done) == {
        "int8_speed_up_over_fp16": {"a": 2.0},
        "int8_speed_up_over_fp32": {"a": 4.0},
        "fp16_speed_up_over_fp32": {"a": 2.0},
        "cv_of_ratio_between_processes": {"a": 0.1},
        "attention_over_dense": {"sparse, N 100, torch": 0.5},
        "worst_parity": {"tensorrt fp16": {"matched": 0.9, "boxes_max": 0.2, "scores_max": 0.2}},
        "throttled": {"tensorrt": {"software power cap": 2}},
    }


def test_watch__reads_throttling_by_either_name(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "*clocks_event_reasons*) exit 2;;\n"  # an old driver
        '*loop-ms*) printf "0x0000000000000024, 1500, 5000, 70.5, 61, 90\\n[N/A], [N/A]\\n'
        '0x0000000000000001, 300, 405, 10.1, 40, 0\\n0x0000"; exec sleep 60;;\n'
        "*) echo 0x0000000000000001;;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with check.Watch("GPU-1") as watch:
        seen = {"samples": 0}
        while not seen["samples"]:
            seen = watch.since()
        assert watch.since() == {"samples": 0}
    assert seen == {
        "samples": 2,
        "throttled": {"software power cap": 1, "software thermal slowdown": 1},
        "clocks.sm": [1500, 1500],
        "clocks.mem": [5000, 5000],
        "power.draw": [70.5, 70.5],
        "temperature.gpu": [61, 61],
        "utilization.gpu": [90, 90],
    }
