"""What can be measured here and now: which devices, by which runtimes, in which precisions.

`measurable` answers for lists: it loads the runtimes of attached devices and asks them for their
version, so a broken installation shows as the reason it gives. `runtime_for` answers for a search:
it returns the runtime, or raises. Whether an engine of a given network builds is only known by
building it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nas import plugins
from nas.errors import InputError, MeasurementError, NasError
from nas.latency.detection import Attached, Machine, detect
from nas.latency.hardware import Hardware, registry
from nas.latency.runtimes.base import Runtime

__all__ = ["Ability", "Measurable", "measurable", "runtime_for", "unregistered"]

_GIB = 2**30
# x86 processors that compute in bf16; on others OpenVINO would emulate it, and refuses.
_BF16_SETS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True, kw_only=True)
class Ability:
    """What one runtime can do on one device.

    Args:
        runtime: its name.
        version: of its library; empty if it cannot be loaded.
        precisions: that can be measured.
        reason: why it can do nothing, or why a precision is missing; empty otherwise.
    """

    runtime: str
    version: str = ""
    precisions: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Measurable:
    """A device of the registry, seen from this machine.

    Args:
        hardware: the device.
        attached: those of this machine that are such a device.
        abilities: of its runtimes; empty unless it is attached.
        reason: why nothing can be measured; empty if something can.
    """

    hardware: Hardware
    attached: tuple[Attached, ...] = ()
    abilities: tuple[Ability, ...] = ()
    reason: str = ""

    @property
    def here(self) -> bool:
        """Whether something can be measured on it, here and now."""
        return any(ability.precisions for ability in self.abilities)


def runtime_for(
    hardware: Hardware, name: str | None = None, machine: Machine | None = None
) -> Runtime:
    """Return the runtime that measures on a device, and make that device the current one of CUDA.

    Args:
        hardware: the device.
        name: of the runtime; the device's usual one if None.
        machine: what is attached; looked for now if None.

    Raises:
        MeasurementError: the device is not attached, or this version cannot measure on it.
        UnknownNameError: no runtime has the name.
        MissingPackageError: the runtime is not installed.
        InputError: the runtime computes elsewhere, so that its times say nothing of the device.
    """
    hardware.require_attached(machine)
    if hardware.unmeasurable:
        raise MeasurementError(f"{hardware.name} cannot be measured: {hardware.unmeasurable}.")
    runtime: Runtime = plugins.load("runtimes", name or hardware.runtime)()
    if runtime.on_cpu != (hardware.kind == "cpu"):
        where = "the processor" if runtime.on_cpu else "a GPU"
        raise InputError(
            f"The runtime {runtime.name!r} computes on {where}, which says nothing of "
            f"{hardware.name} ({hardware.description}).",
            f"Leave the runtime out, or name one of {', '.join(hardware.runtimes)}.",
        )
    if not runtime.on_cpu:
        _choose_gpu(hardware)
    return runtime


def measurable(
    folder: Path | None = None, machine: Machine | None = None
) -> tuple[Measurable, ...]:
    """Say of every device in the registry what can be measured on it here; attached ones first.

    Args:
        folder: of the user's own devices; see `nas.latency.hardware.registry`.
        machine: what is attached; looked for now if None.

    Raises:
        InputError: a device file cannot be read or breaks a rule.
    """
    machine = machine or detect()
    load = functools.cache(_load)
    rows = [_seen(hardware, machine, load) for hardware in registry(folder)]
    return tuple(sorted(rows, key=lambda row: (not row.attached, not row.here)))


def unregistered(
    folder: Path | None = None, machine: Machine | None = None
) -> tuple[Attached, ...]:
    """List what is attached and has no entry in the registry.

    Args:
        folder: of the user's own devices.
        machine: what is attached; looked for now if None.

    Raises:
        InputError: as `measurable`.
    """
    machine = machine or detect()
    known = registry(folder)
    return tuple(device for device in machine.devices if not any(one.fits(device) for one in known))


_Loaded = tuple[Runtime | None, str]


def _seen(hardware: Hardware, machine: Machine, load: Callable[[str], _Loaded]) -> Measurable:
    here = tuple(device for device in machine.devices if hardware.fits(device))
    if not here:
        return Measurable(hardware=hardware, reason=_why_absent(hardware, machine))
    if hardware.unmeasurable:
        return Measurable(hardware=hardware, attached=here, reason=hardware.unmeasurable)
    abilities = tuple(_ability(hardware, here[0], name, load(name)) for name in hardware.runtimes)
    able = any(ability.precisions for ability in abilities)
    reason = "" if able else "; ".join(ability.reason for ability in abilities)
    return Measurable(hardware=hardware, attached=here, abilities=abilities, reason=reason)


def _why_absent(hardware: Hardware, machine: Machine) -> str:
    same = [device.name for device in machine.devices if device.kind == hardware.kind]
    if hardware.kind != "cpu" and machine.blind:
        return machine.blind
    if same:
        return f"attached is {', '.join(same)}"
    return "this machine is no Jetson" if hardware.kind == "jetson" else "no NVIDIA GPU is attached"


def _load(name: str) -> _Loaded:
    """Return a runtime, or why there is none."""
    try:
        runtime: Runtime = plugins.load("runtimes", name)()
        runtime.version()
    except NasError as error:
        return None, f"{name}: {error}"
    except Exception as error:  # noqa: BLE001 - a broken install fails in a way of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return None, f"{name}: installed, and cannot be loaded: {first}"
    return runtime, ""


def _ability(hardware: Hardware, device: Attached, name: str, loaded: _Loaded) -> Ability:
    runtime, reason = loaded
    if runtime is None:
        return Ability(runtime=name, reason=reason)
    if not runtime.on_cpu and (reason := _no_cuda()):
        return Ability(runtime=name, version=runtime.version(), reason=f"{name}: {reason}")
    common = [one for one in hardware.precisions if one in runtime.precisions]
    lacking = [one for one in common if _lacks(device, one)]
    return Ability(
        runtime=name,
        version=runtime.version(),
        precisions=tuple(one for one in common if one not in lacking),
        reason="; ".join(f"{name}: this processor does not compute in {one}" for one in lacking),
    )


def _lacks(device: Attached, precision: str) -> bool:
    """Whether a processor lacks a precision; the GPUs of the registry have all that they list."""
    if device.kind != "cpu" or precision != "bf16":
        return False
    return _BF16_SETS.isdisjoint(device.name.replace(")", " ").split())


def _choose_gpu(hardware: Hardware) -> None:
    """Make the first GPU of the kind the current one; engines are built where CUDA stands."""
    if reason := _no_cuda():
        raise MeasurementError(
            f"{hardware.name} is attached, and cannot be used: {reason}.",
            "Install torch for CUDA (https://pytorch.org/get-started/locally), and check "
            "CUDA_VISIBLE_DEVICES.",
        )
    import torch  # noqa: PLC0415 - as in `_no_cuda`

    if hardware.kind == "jetson":
        return
    for index in range(torch.cuda.device_count()):
        memory_gb = torch.cuda.get_device_properties(index).total_memory / _GIB
        name = torch.cuda.get_device_name(index)
        if hardware.fits(Attached(kind="gpu", name=name, memory_gb=memory_gb)):
            torch.cuda.set_device(index)
            return
    raise MeasurementError(
        f"{hardware.name} is attached, and CUDA does not show it.", "Check CUDA_VISIBLE_DEVICES."
    )


@functools.cache
def _no_cuda() -> str:
    """Say why torch cannot hold the memory and the stream of engines on a GPU; empty if it can."""
    import torch  # noqa: PLC0415 - a second that only machines with a GPU need to spend

    if torch.version.cuda is None:
        return f"it needs a torch with CUDA, this is {torch.__version__}"
    return "" if torch.cuda.is_available() else "torch finds no NVIDIA GPU"
