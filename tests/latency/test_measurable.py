from __future__ import annotations

import time
from pathlib import Path

import openvino
import pytest
import torch

from nas import plugins
from nas.errors import InputError, MeasurementError, UnknownNameError
from nas.latency.detection import Attached, Machine
from nas.latency.hardware import Hardware, registry
from nas.latency.measurable import Measurable, measurable, runtime_for, unregistered

CPU = Attached(kind="cpu", name="A processor (cpu family 6; avx2 avx512_bf16)")
L4 = Attached(kind="gpu", name="NVIDIA L4", memory_gb=22.5)
STRANGER = Attached(kind="gpu", name="NVIDIA GeForce GTX 970", memory_gb=4)


def row(name: str, *devices: Attached, blind: str = "") -> Measurable:
    rows = measurable(machine=Machine((CPU, *devices), blind))
    return next(one for one in rows if one.hardware.name == name)


def test_measurable__the_processor_of_this_machine() -> None:
    first = measurable()[0]
    assert first.hardware.name == "cpu"
    assert first.here
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    able = {ability.runtime: ability.precisions for ability in first.abilities}
    assert ("bf16" in able["openvino"]) == ("BF16" in capabilities)
    assert "fp32" in able["onnxruntime"]


def test_measurable__torch_needs_no_package_and_its_compiler_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    seen = {ability.runtime: ability for ability in row("cpu").abilities}
    assert seen["pytorch"].precisions == ("fp32", "bf16")
    assert seen["pytorch"].version == torch.__version__
    assert seen["pytorch-compiled"].precisions == ()
    assert "needs a C++ compiler" in seen["pytorch-compiled"].reason


def test_registry__lists_runtimes_that_exist_and_run_there() -> None:
    known = set(plugins.names("runtimes"))
    on_processors = {"openvino", "onnxruntime", "pytorch", "pytorch-compiled"}
    for hardware in registry():
        assert set(hardware.runtimes) <= known
        assert (hardware.kind == "cpu") == bool(on_processors & set(hardware.runtimes))


def test_measurable__names_the_precision_that_a_processor_lacks() -> None:
    plain = Attached(kind="cpu", name="A processor (cpu family 6; avx2)")
    (ability, *_) = measurable(machine=Machine((plain,)))[0].abilities
    assert "bf16" not in ability.precisions
    assert "bf16" in ability.reason


def test_measurable__begins_with_what_is_attached() -> None:
    rows = measurable(machine=Machine((CPU, L4)))
    assert {one.hardware.name for one in rows[:2]} == {"cpu", "l4"}
    assert all(one.reason and not one.here for one in rows[1:])


def test_measurable__says_what_a_runtime_lacks() -> None:
    seen = row("l4", L4)
    assert seen.attached == (L4,)
    if seen.here:  # on a machine with a GPU and TensorRT
        assert seen.abilities[0].precisions == ("fp16", "int8", "fp32")
    else:
        wanted = ("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt", "pytorch-cudagraph")
        assert all(f"{name}: " in seen.reason for name in wanted)


@pytest.mark.parametrize(
    ("name", "devices", "blind", "reason"),
    [
        ("l4", (), "", "no NVIDIA GPU is attached"),
        ("l4", (STRANGER,), "", "attached is NVIDIA GeForce GTX 970"),
        ("l4", (), "NVML does not start", "NVML does not start"),
        ("orin-nx", (), "", "this machine is no Jetson"),
    ],
)
def test_measurable__says_why_a_device_is_absent(
    name: str, devices: tuple[Attached, ...], blind: str, reason: str
) -> None:
    seen = row(name, *devices, blind=blind)
    assert (seen.attached, seen.abilities, seen.reason) == ((), (), reason)


def test_measurable__says_when_this_version_cannot() -> None:
    board = Attached(kind="jetson", name="A board", modules=frozenset({"p3668-0001"}))
    seen = row("xavier-nx", board)
    assert seen.attached == (board,)
    assert "10.12" in seen.reason


def test_measurable__survives_a_broken_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "broken_runtime-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-runtime\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[nas.runtimes]\nbroken = broken_runtime:Maker\n")
    (tmp_path / "broken_runtime.py").write_text("raise OSError('libbroken.so.10: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "broken" in plugins.names("runtimes")
    mine = "{name: mine, kind: cpu, description: Mine, runtimes: [broken], precisions: [fp32]}"
    (tmp_path / "mine.yaml").write_text(f"devices: [{mine}]")
    rows = measurable(tmp_path, Machine((CPU,)))
    seen = next(one for one in rows if one.hardware.name == "mine")
    assert not seen.here
    assert "broken: installed, and cannot be loaded: libbroken.so.10" in seen.reason


def test_measurable__is_quick() -> None:
    measurable()
    start = time.process_time()
    measurable()
    assert time.process_time() - start < 1


def test_measurable__refuses_a_broken_device_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("devices: 3")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        measurable(tmp_path)


def test_unregistered__lists_what_has_no_entry() -> None:
    assert unregistered(machine=Machine((CPU, L4, STRANGER))) == (STRANGER,)


def test_runtime_for__the_processor_is_ready() -> None:
    cpu = Hardware.named("cpu")
    assert runtime_for(cpu).name == "openvino"
    assert runtime_for(cpu, "onnxruntime").name == "onnxruntime"


def test_runtime_for__unknown_runtime_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="openvino"):
        runtime_for(Hardware.named("cpu"), "openvine")


def test_runtime_for__a_device_elsewhere_is_named_before_its_runtime() -> None:
    with pytest.raises(MeasurementError, match=r"l4.*not attached"):
        runtime_for(Hardware.named("l4"), machine=Machine((CPU,)))


def test_runtime_for__refuses_to_time_the_processor_in_the_name_of_a_gpu() -> None:
    with pytest.raises(InputError, match=r"'openvino' computes on the processor.*tensorrt"):
        runtime_for(Hardware.named("l4"), "openvino", Machine((CPU, L4)))


def test_runtime_for__says_when_this_version_cannot() -> None:
    board = Attached(kind="jetson", name="A board", modules=frozenset({"p3668-0001"}))
    with pytest.raises(MeasurementError, match=r"10\.12"):
        runtime_for(Hardware.named("xavier-nx"), machine=Machine((CPU, board)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_runtime_for__a_gpu_that_torch_cannot_use_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gpu_runtime-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: gpu-runtime\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[nas.runtimes]\nelsewhere = gpu_runtime:Maker\n")
    (tmp_path / "gpu_runtime.py").write_text(
        "from nas.latency.runtimes.onnxruntime import OnnxRuntime\n"
        "class Maker(OnnxRuntime):\n    on_cpu = False\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MeasurementError, match="l4 is attached, and cannot be used"):
        runtime_for(Hardware.named("l4"), "elsewhere", Machine((CPU, L4)))
