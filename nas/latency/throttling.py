"""Whether a device ran at the clock that its data sheet promises, block by block.

A `Watch` looks at the device before and after each block of runs; the clock throws away the blocks
that it finds unfit. Which one there is depends on the device:

* **NVML** (NVIDIA GPUs, by the package nvidia-ml-py): the reasons why clocks were lowered, and the
  clock of the multiprocessors. Reasons that count: power cap, thermal and hardware slowdowns, power
  brake, sync boost. That it was idle, or that clocks are locked by the user, is no throttling.
* **Jetson** (no such reasons in NVML): the frequency of the GPU in sysfs (devfreq), the states of
  the kernel's throttling cooling devices, and the counters of over-current events.
* **Processor**: the kernel's counters of thermal throttling (x86), where they exist; virtual
  machines have none, and the ratio to the reference is all the help there is.

A block whose clock differs by more than 1 % from what most blocks had is unfit as well, whatever
the reason: see `unfit`. The clock is read right after a block, because an idle device lowers it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nas.errors import MeasurementError

__all__ = [
    "JetsonWatch",
    "NvmlWatch",
    "ProcessorWatch",
    "Sight",
    "Watch",
    "unfit",
    "usual_watch",
]

REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}
"""Bits of `nvmlDeviceGetCurrentClocksEventReasons` that make a block unfit (nvml.h)."""

_CLOCK_TOLERANCE = 0.01
_SYS = Path("/sys")


@dataclass(frozen=True)
class Sight:
    """What a watch saw of one block.

    Args:
        reason: why the block does not count; None if it does.
        clock_mhz: the device's clock right after it; None if the watch does not know.
    """

    reason: str | None = None
    clock_mhz: float | None = None


class Watch(Protocol):
    """Looks at a device around each block."""

    name: str

    def begin(self) -> None:
        """Look at the device before a block."""

    def end(self) -> Sight:
        """Look at it after the block, and say whether the block is fit to count.

        Raises:
            MeasurementError: the device is gone.
        """


def unfit(sights: Sequence[Sight]) -> list[str | None]:
    """Return for each block why it does not count, or None.

    The usual clock is the one that most blocks had, within 1 %; a block with another one is unfit.
    """
    clocks = [one.clock_mhz for one in sights if one.reason is None and one.clock_mhz]
    usual = max(clocks, key=lambda one: sum(_near(one, other) for other in clocks), default=None)
    return [
        one.reason
        or (
            "another clock than usual"
            if usual and one.clock_mhz and not _near(one.clock_mhz, usual)
            else None
        )
        for one in sights
    ]


def _near(clock: float, other: float) -> bool:
    return abs(clock - other) <= _CLOCK_TOLERANCE * other


class NvmlWatch:
    """Watches an NVIDIA GPU through NVML.

    Args:
        library: the module `pynvml`, or what behaves like it.
        uuid: of the GPU; the first one if None.

    Raises:
        MeasurementError: NVML does not start, or does not know the GPU.
    """

    name = "NVML"

    def __init__(self, library: Any, uuid: str | None = None) -> None:
        self._nvml = library
        self._reasons = 0
        self._ask("nvmlInit")
        self._device = (
            self._ask("nvmlDeviceGetHandleByIndex", 0)
            if uuid is None
            else self._ask("nvmlDeviceGetHandleByUUID", uuid)
        )

    def begin(self) -> None:
        """Read why clocks are lowered now."""
        self._reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", self._device)

    def end(self) -> Sight:
        """Read it again, and the clock.

        Raises:
            MeasurementError: NVML does not answer: the GPU fell off the bus, or was taken away.
        """
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", self._device) | self._reasons
        clock = self._ask("nvmlDeviceGetClockInfo", self._device, self._nvml.NVML_CLOCK_SM)
        named = [text for bit, text in REASONS.items() if reasons & bit]
        return Sight(", ".join(named) or None, float(clock))

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError as error:
            raise MeasurementError(
                f"The GPU does not answer any more: {function} says {error}.",
                "Look at nvidia-smi and the kernel's log (dmesg); what was measured is stored.",
            ) from error


class JetsonWatch:
    """Watches the GPU of a Jetson through sysfs.

    Args:
        sys: where sysfs is mounted.

    Raises:
        MeasurementError: sysfs knows no GPU.
    """

    name = "sysfs of the Jetson"

    def __init__(self, sys: Path = _SYS) -> None:
        found = [
            one / "cur_freq"
            for one in sorted((sys / "class/devfreq").glob("*"))
            if any(part in one.name for part in ("gpu", "gv11b", "gp10b", "ga10b"))
        ]
        if not found:
            raise MeasurementError(f"No GPU is listed in {sys / 'class/devfreq'}.")
        self._clock = found[0]
        self._states = [
            one / "cur_state"
            for one in sorted((sys / "class/thermal").glob("cooling_device*"))
            if "throttle" in _text(one / "type")
        ]
        self._counters = sorted((sys / "class/hwmon").glob("hwmon*/oc*_event_cnt"))
        self._before = 0

    def begin(self) -> None:
        """Read the counters of over-current events."""
        self._before = sum(_count(one) for one in self._counters)

    def end(self) -> Sight:
        """Read them again, the throttling of the kernel, and the clock.

        Raises:
            MeasurementError: the GPU is not there any more.
        """
        reasons = []
        if any(_count(one) for one in self._states):
            reasons.append("thermal slowdown by software")
        if sum(_count(one) for one in self._counters) != self._before:
            reasons.append("over-current")
        clock = _count(self._clock)
        if not clock:
            raise MeasurementError(
                f"The GPU does not answer any more: {self._clock} is unreadable."
            )
        return Sight(", ".join(reasons) or None, clock / 1e6)


class ProcessorWatch:
    """Watches the cores that this process may use, through the kernel's counters.

    Args:
        counters: files that hold a count of throttling events each.
    """

    name = "counters of the processor"

    def __init__(self, counters: Sequence[Path]) -> None:
        self._counters = list(counters)
        self._before = 0

    @classmethod
    def found(cls, sys: Path = _SYS) -> ProcessorWatch | None:
        """Return a watch over the counters of this machine, or None if it has none."""
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        folders = [sys / f"devices/system/cpu/cpu{core}/thermal_throttle" for core in cores]
        counters = [folder / "core_throttle_count" for folder in sorted(folders)]
        existing = [one for one in counters if one.exists()]
        return cls(existing) if existing else None

    def begin(self) -> None:
        """Read the counters."""
        self._before = self._events()

    def end(self) -> Sight:
        """Read them again."""
        return Sight("thermal slowdown by hardware" if self._events() != self._before else None)

    def _events(self) -> int:
        return sum(_count(one) for one in self._counters)


def usual_watch(*, on_cpu: bool, uuid: str | None = None, sys: Path = _SYS) -> Watch | None:
    """Return what can watch the device of a runtime here; None if nothing can.

    Args:
        on_cpu: whether the runtime computes on the processor.
        uuid: of the GPU, if it computes on one.
        sys: where sysfs is mounted.
    """
    if on_cpu:
        return ProcessorWatch.found(sys)
    try:
        return JetsonWatch(sys)
    except MeasurementError:
        pass  # no Jetson
    try:
        watch = NvmlWatch(importlib.import_module("pynvml"), uuid)
        watch.begin()  # old drivers start, and cannot tell
        watch.end()
    except (ImportError, MeasurementError):
        return None
    return watch


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _count(path: Path) -> int:
    """Return the number in a file; 0 if it cannot be read."""
    text = _text(path)
    return int(text) if text.isdecimal() else 0
