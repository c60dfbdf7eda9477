"""What is attached to this machine: its processor, NVIDIA GPUs, and the Jetson that it may be.

Nothing here is an error: no driver and no NVML are what most machines have. What keeps GPUs from
being seen although they may be there is reported as `Machine.blind`, because "no GPU" would send
its reader the wrong way.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Attached", "Kind", "Machine", "attached", "cpu_flags", "cpu_name", "detect"]

Kind = Literal["cpu", "gpu", "jetson"]
"""`gpu` is an NVIDIA GPU that NVML reports; a Jetson's own GPU belongs to the `jetson`."""

_CPUINFO = Path("/proc/cpuinfo")
_DEVICE_TREE = Path("/proc/device-tree")
_POWER_MODE = Path("/var/lib/nvpmodel/status")
_DRIVER = Path("/proc/driver/nvidia/version")
_GIB = 2**30
# An engine picks its kernels by these, and virtual machines hide some of them: two machines of one
# model name can differ by a factor of two in bf16.
_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "sve", "sve2", "bf16", "i8mm"),
)
_PART_NUMBER = re.compile(r"p\d{4}-\d{4}(?:-super)?")
_INTEGRATED = "(nvgpu)"  # how NVML names the GPU inside a Jetson


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A device of this machine.

    Args:
        kind: what it is.
        name: as `/proc/cpuinfo`, NVML or the device tree reports it.
        memory_gb: memory of a GPU in GiB, which is what its label calls GB.
        compute_capability: of a GPU, such as `"8.9"`.
        driver: version of the GPU's driver.
        uuid: of a GPU; `CUDA_VISIBLE_DEVICES` takes it.
        modules: part numbers of a Jetson, such as `p3767-0000`.
        power_mode: of a Jetson, as nvpmodel numbers it.
        partitioned: whether a GPU is divided by MIG, so that a program gets a part of it.
    """

    kind: Kind
    name: str
    memory_gb: float | None = None
    compute_capability: str | None = None
    driver: str | None = None
    uuid: str | None = None
    modules: frozenset[str] = frozenset()
    power_mode: str | None = None
    partitioned: bool = False

    @property
    def text(self) -> str:
        """The device as it belongs into an `Environment`: everything that moves a latency."""
        details = (
            f"{self.memory_gb:.1f} GB" if self.memory_gb else "",
            f"compute capability {self.compute_capability}" if self.compute_capability else "",
            ", ".join(sorted(self.modules)),
            f"power mode {self.power_mode}" if self.power_mode else "",
            f"driver {self.driver}" if self.driver else "",
            "divided by MIG" if self.partitioned else "",
        )
        joined = "; ".join(detail for detail in details if detail)
        return f"{self.name} ({joined})" if joined else self.name


@dataclass(frozen=True)
class Machine:
    """What was found.

    Args:
        devices: the processor first.
        blind: why GPUs that may be there cannot be seen or used; empty if nothing hints at any.
    """

    devices: tuple[Attached, ...]
    blind: str = ""


def attached() -> tuple[Attached, ...]:
    """List the devices of this machine, the processor first."""
    return detect().devices


def detect(
    nvml: Any = None,
    *,
    cpuinfo: Path = _CPUINFO,
    device_tree: Path = _DEVICE_TREE,
    power_mode: Path = _POWER_MODE,
    driver: Path = _DRIVER,
) -> Machine:
    """Look at this machine; takes milliseconds, and never raises.

    Args:
        nvml: the module `pynvml`; imported if None.
        cpuinfo: Linux's description of the processor.
        device_tree: Linux's description of the board; PCs have none.
        power_mode: where nvpmodel of a Jetson keeps its mode.
        driver: exists where an NVIDIA driver is loaded.
    """
    processor = Attached(kind="cpu", name=cpu_name(cpuinfo))
    board = _jetson(device_tree, power_mode)
    gpus, blind = _gpus(nvml, driver)
    if board:  # its own GPU needs no NVML
        gpus, blind = [gpu for gpu in gpus if not gpu.name.endswith(_INTEGRATED)], ""
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}:
        gpus, blind = [], "CUDA_VISIBLE_DEVICES hides every NVIDIA GPU"
    return Machine((processor, *([board] if board else []), *gpus), blind)


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """Name the processor: model, family and the instruction sets that engines choose kernels by.

    Args:
        cpuinfo: Linux's description of the processor; where it is missing, `platform` answers.
    """
    fields = _first_processor(cpuinfo)
    name = fields.get("model name") or platform.processor() or platform.machine()
    # Virtual machines shorten model names ("AMD EPYC"); family and model tell generations apart.
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    flags = _flags(fields)
    sets = " ".join(one for one in _INSTRUCTION_SETS if one in flags)
    detail = "; ".join(part for part in (", ".join(numbers), sets) if part)
    return f"{name} ({detail})" if detail else name


def cpu_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return every instruction set that Linux names, such as `avx_vnni`; none where it is missing.

    `cpu_name` names those alone that tell environments apart.

    Args:
        cpuinfo: Linux's description of the processor.
    """
    return _flags(_first_processor(cpuinfo))


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _flags(fields: dict[str, str]) -> frozenset[str]:
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _jetson(device_tree: Path, power_mode: Path) -> Attached | None:
    model = _strings(device_tree / "model")
    compatible = _strings(device_tree / "compatible")
    tegra = any(one.startswith("nvidia,tegra") for one in compatible)
    if not model or not (tegra or "jetson" in model[0].casefold()):
        return None
    found = set(_PART_NUMBER.findall(" ".join(compatible)))
    # Super firmware names a module twice, with and without the suffix; it clocks like the first.
    plain = {one.removesuffix("-super") for one in found if one.endswith("-super")}
    mode = _strings(power_mode)
    return Attached(
        kind="jetson",
        name=model[0],
        modules=frozenset(found - plain),
        power_mode=mode[0].removeprefix("pmode:").strip() if mode else None,
    )


def _strings(path: Path) -> list[str]:
    """Read a property of the device tree: strings that each end in a zero byte."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [one.strip() for one in text.split("\0") if one.strip()]


def _gpus(nvml: Any, driver: Path) -> tuple[list[Attached], str]:
    """List the GPUs that NVML reports, and say what keeps it from reporting."""
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ModuleNotFoundError:
        missing = (
            "an NVIDIA driver is loaded, but the package that sees its GPUs is missing: "
            "pip install nvidia-ml-py"
        )
        return [], missing if driver.exists() else ""
    except Exception as error:  # noqa: BLE001 - a broken install fails in a way of its own
        return [], f"nvidia-ml-py cannot be imported: {_reason(error)}"
    try:
        nvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - as above; NVML's errors are made at run time
        return [], "" if _is_no_driver(nvml, error) else f"NVML does not start: {_reason(error)}"
    try:
        return _listed(nvml)
    finally:
        _ask(nvml.nvmlShutdown)


def _is_no_driver(nvml: Any, error: Exception) -> bool:
    """Whether NVML says what it says on any machine without an NVIDIA driver."""
    normal = {nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED}
    return getattr(error, "value", None) in normal


def _listed(nvml: Any) -> tuple[list[Attached], str]:
    found, lost = [], ""
    for index in range(_ask(nvml.nvmlDeviceGetCount) or 0):
        try:
            found.append(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        except Exception as error:  # noqa: BLE001 - a GPU that fell off the bus hides no other
            lost = f"NVML cannot read GPU {index}: {_reason(error)}"
    return found, lost


def _gpu(nvml: Any, handle: Any) -> Attached:
    """Read one GPU; only its name must be known."""
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    capability = _ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    mig = _ask(nvml.nvmlDeviceGetMigMode, handle)
    return Attached(
        kind="gpu",
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_gb=memory.total / _GIB if memory else None,
        compute_capability="{}.{}".format(*capability) if capability else None,
        driver=_text(_ask(nvml.nvmlSystemGetDriverVersion)) or None,
        uuid=_text(_ask(nvml.nvmlDeviceGetUUID, handle)) or None,
        partitioned=bool(mig and mig[0]),
    )


def _ask(function: Any, *arguments: Any) -> Any:
    """Ask NVML what not every GPU or driver can answer."""
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001 - "not supported" and its kin
        return None


def _text(value: Any) -> str:
    """Return text; older releases of nvidia-ml-py give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _reason(error: Exception) -> str:
    """Return the first line of an error, or its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
