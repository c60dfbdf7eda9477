"""The fingerprint of a measurement: two latencies may be compared if their environments are equal.

A measurement is reused only under an equal environment. It holds what moves a latency and stays the
same between two runs on one machine, so neither the load nor the kernel is in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nas.errors import InputError

__all__ = ["Environment"]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The fingerprint of a latency measurement.

    Args:
        device: model of the device, with the instruction sets that engines choose kernels by.
        runtime: name of the runtime, such as `"openvino"`.
        runtime_version: its version.
        precision: what the engine computes in, such as `"bf16"`.
        threads: threads that the engine may use.
        protocol: how runs follow each other, and what is timed around the network, such as `"hot"`,
            `"buffered 200 ms"` or `"hot, end to end from 480x640"`; see `nas.latency.timing`.
        clock: `"process CPU time"` or `"wall"`.
        reference: digest of the network that the candidate is interleaved with.
        batch: images per run of the candidate; the reference network always takes one.
    """

    device: str
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    protocol: str
    clock: str
    reference: str
    batch: int = 1

    _TYPES: ClassVar[dict[str, type]] = {"threads": int, "batch": int}

    @property
    def digest(self) -> str:
        """16 hexadecimal characters that are equal exactly if the environments are."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Environment:
        """Read what `as_dict` wrote.

        Raises:
            InputError: a field is missing, unknown, or of another type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) != known:
            raise InputError(
                f"An environment has exactly the fields {sorted(known)}, got {sorted(values)}.",
                "It was written by another version: measure again.",
            )
        for name, value in values.items():
            expected = cls._TYPES.get(name, str)
            if type(value) is not expected:
                raise InputError(
                    f"Environment field {name!r} must be {expected.__name__}, got {value!r}."
                )
        return cls(**values)
