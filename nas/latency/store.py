"""Where measurements are kept between runs."""

from __future__ import annotations

from typing import Protocol

from nas.latency.clock import Timing
from nas.latency.latency import Latency

__all__ = ["MeasurementStore", "MemoryStore"]


class MeasurementStore(Protocol):
    """Where measurements are kept between runs. The meter makes the keys."""

    def find_latency(self, key: str) -> Latency | None:
        """Return what `add_latency` stored under the key, or None."""

    def add_latency(self, key: str, latency: Latency, timing: Timing) -> None:
        """Store a latency and the raw timing behind it; a key that exists is replaced."""

    def find_reference(self, environment_digest: str) -> float | None:
        """Return the reference's calibrated ms in that environment, or None."""

    def add_reference(
        self, environment_digest: str, ms: float, low_ms: float, high_ms: float
    ) -> None:
        """Store the reference's calibrated ms and its interval."""


class MemoryStore:
    """A `MeasurementStore` that lives as long as the process."""

    def __init__(self) -> None:
        self._latencies: dict[str, Latency] = {}
        self._references: dict[str, float] = {}

    def find_latency(self, key: str) -> Latency | None:
        """Return what `add_latency` stored under the key, or None."""
        return self._latencies.get(key)

    def add_latency(self, key: str, latency: Latency, timing: Timing) -> None:
        """Store a latency; the timing is not kept."""
        del timing
        self._latencies[key] = latency

    def find_reference(self, environment_digest: str) -> float | None:
        """Return the reference's calibrated ms in that environment, or None."""
        return self._references.get(environment_digest)

    def add_reference(
        self, environment_digest: str, ms: float, low_ms: float, high_ms: float
    ) -> None:
        """Store the reference's calibrated ms; the interval is not kept."""
        del low_ms, high_ms
        self._references[environment_digest] = ms
