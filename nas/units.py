"""Units, parsed once at the edge: a budget in milliseconds; accuracy is mAP in 0..1 everywhere."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from nas.errors import BudgetError

__all__ = ["COCO_CLASSES", "Budget", "bytes_text", "format_ms", "percent"]

COCO_CLASSES = 80
"""Of a network whose classes nothing else says: what published detectors are trained for."""

_PATTERN = re.compile(r"(?P<value>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)(?P<unit>ms|us|µs)")
_MS_PER_UNIT = {"ms": 1.0, "us": 1e-3, "µs": 1e-3}
_LARGEST_MS = 10_000.0
_REMEDY = "Write a positive number and its unit without a space, such as 10ms, 0.4ms or 400us."


@dataclass(frozen=True, order=True)
class Budget:
    """The hard upper bound on latency, in milliseconds per image.

    Raises:
        BudgetError: the bound is not a number above 0 and at most 10 s.
    """

    latency_ms: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.latency_ms) or not 0 < self.latency_ms <= _LARGEST_MS:
            raise BudgetError(
                f"A budget must lie above 0 ms and at most {_LARGEST_MS:g} ms, "
                f"got {self.latency_ms:g} ms.",
                _REMEDY,
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `"10ms"`, `"0.4ms"` or `"400us"`.

        Raises:
            BudgetError: no unit, a space, a sign, another unit, or a value out of range.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            message = f"A budget is a number with the unit ms or us, got {text!r}."
            raise BudgetError(message, _REMEDY)
        return cls(float(match["value"]) * _MS_PER_UNIT[match["unit"]])

    def admits(self, latency_ms: float) -> bool:
        """Whether a latency keeps the budget (equality does)."""
        return latency_ms <= self.latency_ms

    def __str__(self) -> str:
        return format_ms(self.latency_ms)


def format_ms(latency_ms: float) -> str:
    """Format a latency so that `Budget.parse` reads the same value back."""
    return f"{latency_ms!r}ms" if latency_ms != int(latency_ms) else f"{int(latency_ms)}ms"


def bytes_text(count: float) -> str:
    """Format bytes, such as `"1.5 GiB"`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB" if count < 1000 else f"{count:.0f} GiB"


def percent(share: float) -> str:
    """Format a share in 0..1, such as `"95 %"`."""
    return f"{share * 100:.0f} %"
