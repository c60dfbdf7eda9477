"""The most memory that a piece of work held, as Linux counts it."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

__all__ = ["PeakMemory"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # man 5 proc: the peak of the resident size starts at the present one


class PeakMemory:
    """Resident memory of this process at its highest since this was made, above what it had then.

    What was freed before is returned to the system first. Elsewhere than on Linux it is unknown.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        if not sys.platform.startswith("linux"):
            return
        ctypes.CDLL(None).malloc_trim(0)
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self._before = _resident("VmRSS")
        except OSError:
            return

    @property
    def bytes(self) -> int | None:
        """How much more was held at the highest; None if unknown."""
        return None if self._before is None else max(_resident("VmHWM") - self._before, 0)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text("ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
