from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas.latency.detection import Attached, Machine, attached, cpu_flags, cpu_name, detect

GIB = 2**30
NANO = "NVIDIA Jetson Orin Nano Developer Kit"


class NvmlError(Exception):
    """As `pynvml` raises them: the class is made at run time, the number tells them apart."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


def gpu(name: str | bytes, memory_gb: float = 24, mig: int | None = None) -> dict[str, Any]:
    return {"name": name, "memory": memory_gb * GIB, "mig": mig, "capability": (8, 9)}


class Nvml:
    """The functions of `pynvml` that are used, for a machine that this one is not."""

    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12

    def __init__(self, *gpus: dict[str, Any], start: int | None = None) -> None:
        self._gpus, self._start = gpus, start
        self.open = 0

    def nvmlInit(self) -> None:
        if self._start is not None:
            raise NvmlError(self._start)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self._gpus[index]

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str | bytes:
        name: str | bytes = handle["name"]
        if not name:
            raise NvmlError(15)
        return name

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str:
        return f"GPU-{self._gpus.index(handle)}"

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(total=handle["memory"])

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> tuple[int, int]:
        capability: tuple[int, int] = handle["capability"]
        return capability

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> list[int]:
        if handle["mig"] is None:
            raise NvmlError(3)  # not supported
        return [handle["mig"], 0]

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"575.51"


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Look at a machine made of files in a temporary folder."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def detected(nvml: Any = None) -> Machine:
        return detect(
            nvml,
            device_tree=tmp_path / "device-tree",
            power_mode=tmp_path / "status",
            driver=tmp_path / "driver",
        )

    return detected


@pytest.fixture
def jetson(tmp_path: Path) -> Any:
    """Write the device tree of a Jetson."""

    def written(model: str, *compatible: str) -> None:
        folder = tmp_path / "device-tree"
        folder.mkdir(exist_ok=True)
        (folder / "model").write_bytes(model.encode() + b"\0")
        (folder / "compatible").write_bytes(b"".join(one.encode() + b"\0" for one in compatible))

    return written


def test_attached__begins_with_the_processor_of_this_machine() -> None:
    assert attached()[0] == Attached(kind="cpu", name=cpu_name())


def test_detect__without_a_driver_is_a_normal_state(look: Any) -> None:
    machine = look()
    assert [device.kind for device in machine.devices] == ["cpu"]
    assert machine.blind == ""


def test_detect__reads_every_gpu(look: Any) -> None:
    nvml = Nvml(gpu("NVIDIA L4"), gpu(b"Tesla T4", memory_gb=15))
    _, first, second = look(nvml).devices
    assert first == Attached(
        kind="gpu",
        name="NVIDIA L4",
        memory_gb=24,
        compute_capability="8.9",
        driver="575.51",
        uuid="GPU-0",
    )
    assert (second.name, second.uuid) == ("Tesla T4", "GPU-1")
    assert nvml.open == 0


def test_text__holds_what_moves_a_latency() -> None:
    device = Attached(
        kind="gpu", name="NVIDIA L4", memory_gb=22.5, compute_capability="8.9", driver="575.51"
    )
    assert device.text == "NVIDIA L4 (22.5 GB; compute capability 8.9; driver 575.51)"


def test_detect__a_lost_gpu_hides_no_other(look: Any) -> None:
    machine = look(Nvml(gpu(""), gpu("NVIDIA L4")))
    assert [device.name for device in machine.devices[1:]] == ["NVIDIA L4"]
    assert "GPU 0" in machine.blind


def test_detect__says_when_a_gpu_is_divided(look: Any) -> None:
    _, whole, part = look(Nvml(gpu("NVIDIA H200", mig=0), gpu("NVIDIA H200", mig=1))).devices
    assert not whole.partitioned
    assert part.partitioned
    assert "MIG" in part.text


@pytest.mark.parametrize("start", [9, 12])
def test_detect__nvml_without_a_driver_is_a_normal_state(look: Any, start: int) -> None:
    machine = look(Nvml(start=start))
    assert (len(machine.devices), machine.blind) == (1, "")


def test_detect__reports_another_failure_of_nvml(look: Any) -> None:
    assert "NVML error 18" in look(Nvml(start=18)).blind  # driver and library differ


def test_detect__a_driver_without_its_package_names_the_package(
    look: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver").touch()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in look().blind


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_detect__says_when_gpus_are_hidden(
    look: Any, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    machine = look(Nvml(gpu("NVIDIA L4")))
    assert len(machine.devices) == 1
    assert "CUDA_VISIBLE_DEVICES" in machine.blind


def test_detect__finds_a_jetson_with_its_module_and_power_mode(
    look: Any, jetson: Any, tmp_path: Path
) -> None:
    jetson(NANO, "nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005", "nvidia,tegra234")
    (tmp_path / "status").write_text("pmode:0002\n")
    _, board = look().devices
    assert (board.kind, board.name, board.power_mode) == ("jetson", NANO, "0002")
    assert board.modules == {"p3767-0005", "p3768-0000"}


def test_detect__super_firmware_replaces_its_module(look: Any, jetson: Any) -> None:
    jetson(
        f"{NANO} Super",
        "nvidia,p3768-0000+p3767-0005-super",
        "nvidia,p3767-0005",
        "nvidia,tegra234",
    )
    assert look().devices[1].modules == {"p3767-0005-super", "p3768-0000"}


def test_detect__a_carrier_of_another_maker_is_a_jetson_too(look: Any, jetson: Any) -> None:
    jetson("A camera", "vendor,camera", "nvidia,p3767-0000", "nvidia,tegra234")
    assert look().devices[1].kind == "jetson"


def test_detect__counts_the_gpu_of_a_jetson_once(look: Any, jetson: Any) -> None:
    jetson(NANO, "nvidia,p3767-0005", "nvidia,tegra234")
    assert [device.kind for device in look(Nvml(gpu("Orin (nvgpu)"))).devices] == ["cpu", "jetson"]


def test_detect__another_board_is_no_jetson(look: Any, jetson: Any) -> None:
    jetson("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
    assert len(look().devices) == 1


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "model name\t: Chip 9\ncpu family\t: 6\nmodel\t\t: 143\nflags\t: fpu amx_bf16 avx2\n\n"
            "model name\t: Another\n",
            "Chip 9 (cpu family 6, model 143; avx2 amx_bf16)",
        ),
        ("model name\t: Chip 9\n", "Chip 9"),
    ],
)
def test_cpu_name__reads_the_first_processor(tmp_path: Path, cpuinfo: str, expected: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert cpu_name(path) == expected


def test_cpu_flags__are_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: Chip 9\nflags\t: ssse3 avx_vnni\n\nflags\t: other\n")
    assert cpu_flags(path) == {"ssse3", "avx_vnni"}
    assert cpu_flags(tmp_path / "missing") == frozenset()


def test_cpu_name__without_linux_asks_the_platform(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing")
