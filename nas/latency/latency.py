"""A latency: milliseconds with an interval, a source, and what they are true for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nas.errors import InputError, UnknownNameError
from nas.latency.environment import Environment
from nas.latency.timing import Timing

__all__ = ["ESTIMATED_LEVEL", "MEASURED_LEVEL", "Latency", "Source"]

Source = Literal["measured", "cached", "table", "predicted", "estimated"]
"""Measured here and now; measured earlier in an equal environment; profiled on that device by
somebody, with provenance; predicted from measurements of that device; transferred from others."""


MEASURED_LEVEL, ESTIMATED_LEVEL = 0.95, 0.8
"""Confidence levels of the intervals: of whatever was measured on the device, and of estimates,
whose level is as high as the number of devices that they were checked on allows."""


@dataclass(frozen=True)
class Latency:
    """A latency that knows how sure it is and where it comes from.

    Args:
        ms: milliseconds per image, batch 1.
        low_ms: lower end of its interval, at `level`.
        high_ms: upper end.
        source: how it was obtained.
        environment: what it is true for.

    Raises:
        InputError: a value that no latency has, or an interval that does not hold it.
    """

    ms: float
    low_ms: float
    high_ms: float
    source: Source
    environment: Environment

    def __post_init__(self) -> None:
        ordered = 0 < self.low_ms <= self.ms <= self.high_ms
        if not (ordered and math.isfinite(self.high_ms)):
            raise InputError(
                "A latency must keep 0 < low_ms <= ms <= high_ms, "
                f"got {self.low_ms:g}, {self.ms:g}, {self.high_ms:g}."
            )
        if self.source not in get_args(Source):
            raise UnknownNameError.of("latency source", self.source, get_args(Source))

    @property
    def level(self) -> float:
        """Confidence level of the interval."""
        return ESTIMATED_LEVEL if self.source == "estimated" else MEASURED_LEVEL

    @classmethod
    def measured(cls, timing: Timing, environment: Environment) -> Latency:
        """Return what the clock found."""
        return cls(timing.ms, timing.low_ms, timing.high_ms, "measured", environment)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Latency:
        """Read what `as_dict` wrote.

        Raises:
            InputError: a field is missing, unknown, or has a value that no latency has.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) != known:
            raise InputError(
                f"A latency has exactly the fields {sorted(known)}, got {sorted(values)}."
            )
        return cls(**{**values, "environment": Environment.from_dict(values["environment"])})
