"""What `nvidia-smi` says of the device: its limits, and its clocks and throttling over time.

A process of its own asks twice a second, so that asking does not disturb what is measured.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["REASONS", "Watch", "ask", "summary"]

REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of NVML's reasons that mean throttling; an idle GPU and clocks that were set do not."""

_FIELDS = "clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"
# The second is what drivers before 535 call the first.
_ACTIVE = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_COLUMNS = 1 + len(_FIELDS.split(","))
_PERIOD_MS = 500


def ask(uuid: str, fields: str, of: str = "gpu") -> dict[str, str]:
    """Return what nvidia-smi says of one GPU, by field; empty where it cannot be asked.

    Args:
        uuid: of the GPU, as torch knows it.
        fields: separated by commas.
        of: `gpu` or `compute-apps`.
    """
    try:
        done = subprocess.run(
            _command(uuid, fields, of), capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = [line.split(", ") for line in done.stdout.strip().splitlines()]
    return {
        name: "; ".join(values) for name, *values in zip(fields.split(","), *lines, strict=False)
    }


def _command(uuid: str, fields: str, of: str = "gpu") -> list[str]:
    chosen = [f"--id=GPU-{uuid.removeprefix('GPU-')}"] if uuid else []
    return ["nvidia-smi", *chosen, f"--query-{of}={fields}", "--format=csv,noheader,nounits"]


class Watch:
    """Keeps asking until it is left; does nothing where nvidia-smi cannot tell throttling.

    Args:
        uuid: of the GPU; empty watches nothing.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._reasons = next((one for one in _ACTIVE if uuid and ask(uuid, one)), "")
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = ""  # of a line that is being written
        self._file = tempfile.NamedTemporaryFile("r", encoding="utf-8")  # noqa: SIM115 - until left

    def __enter__(self) -> Self:
        if self._reasons:
            command = _command(self._uuid, f"{self._reasons},{_FIELDS}")
            command.append(f"--loop-ms={_PERIOD_MS}")
            with Path(self._file.name).open("wb") as written:
                self._process = subprocess.Popen(command, stdout=written)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
        self._file.close()

    def since(self) -> dict[str, Any]:
        """Return what was seen since the last call."""
        whole, end, self._begun = (self._begun + self._file.read()).rpartition("\n")
        return summary(whole + end)


def summary(text: str) -> dict[str, Any]:
    """Sum samples up, of lines `reasons, SM MHz, memory MHz, W, C, %`.

    Returns:
        How many samples; the range of each figure while the GPU worked; and in how many samples
        each reason of `REASONS` was active.
    """
    rows = [line.split(", ") for line in text.splitlines()]
    rows = [
        row for row in rows if len(row) == 1 + _FIELDS.count(",") + 1 and row[0].startswith("0x")
    ]
    found: dict[str, Any] = {"samples": len(rows)}
    masks = [int(row[0], 16) for row in rows]
    for bit, reason in REASONS.items():
        if seen := sum(bool(mask & bit) for mask in masks):
            found.setdefault("throttled", {})[reason] = seen
    for index, field in enumerate(_FIELDS.split(","), 1):
        values = [float(row[index]) for row in rows if _is_number(row[index]) and row[-1] != "0"]
        if values:
            found[field] = [min(values), max(values)]
    return found


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
