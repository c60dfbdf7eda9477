"""The memory that this process holds, and held at the most, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

__all__ = ["PeakMemory", "forget_peak", "kibibytes", "own_memory"]

_PROC = Path("/proc/self")
_RESET_PEAK = "5"  # man 5 proc: the peak of the resident size starts at the present one


class PeakMemory:
    """Resident memory of this process at its highest since this was made, above what it had then.

    What was freed before is returned to the system first. Elsewhere than on Linux it is unknown.
    """

    def __init__(self) -> None:
        self._before = own_memory("VmRSS") if forget_peak() else 0

    @property
    def bytes(self) -> int | None:
        """How much more was held at the highest; None if unknown."""
        return max(own_memory("VmHWM") - self._before, 0) if self._before else None


def forget_peak() -> bool:
    """Begin the highest resident size anew; return whether the system can.

    What was used before and is kept for later would hide what a small step takes: it is freed.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROC / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def own_memory(field: str) -> int:
    """Return a line of what Linux says of this process's memory, in bytes; 0 if it says nothing."""
    return kibibytes(_PROC / "status", field)


def kibibytes(file: Path, field: str) -> int:
    """Return the bytes that a line `field: ... kB` of a file means; 0 if there is none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else 0
