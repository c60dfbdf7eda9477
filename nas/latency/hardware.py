"""What a latency belongs to: the hardware that a user names, and the fingerprint of a measurement.

`Hardware` is what `--hardware` accepts. The registry holds only what this version really measures:
a name is added together with the runtime and the clock that make its numbers true.

`Environment` decides whether two numbers may be compared: a measurement is reused only under an
equal one. It holds what moves a latency and stays the same between two runs on one machine, so
neither the load nor the kernel is in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nas.errors import InputError, UnknownNameError

__all__ = ["Environment", "Hardware", "cpu_name"]

_CPUINFO = Path("/proc/cpuinfo")
# An engine picks its kernels by these, and virtual machines hide some of them: two machines of one
# model name can differ by a factor of two in bf16.
_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "sve", "sve2", "bf16", "i8mm"),
)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A kind of device that latencies are measured on.

    Args:
        name: what the user types.
        runtime: the runtime that is used unless another one is asked for.
        description: one line for lists and reports.
    """

    name: str
    runtime: str
    description: str

    @classmethod
    def named(cls, name: str) -> Hardware:
        """Look a name up.

        Raises:
            UnknownNameError: this version measures nothing under that name.
        """
        if name not in _REGISTRY:
            raise UnknownNameError.of("hardware", name, _REGISTRY)
        return _REGISTRY[name]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """List the names that `named` accepts, sorted."""
        return tuple(sorted(_REGISTRY))

    def device(self) -> str:
        """Name the device of this kind that is in this machine."""
        return cpu_name()


_REGISTRY = {
    hardware.name: hardware
    for hardware in (
        Hardware(
            name="cpu",
            runtime="openvino",
            description="one core of the processor of this machine, batch 1",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The fingerprint of a latency measurement.

    Args:
        device: model of the device, with the instruction sets that engines choose kernels by.
        runtime: name of the runtime, such as `"openvino"`.
        runtime_version: its version.
        precision: what the engine computes in, such as `"bf16"`.
        threads: threads that the engine may use.
        protocol: how runs follow each other, such as `"hot"`; see `nas.latency.clock`.
        clock: `"process CPU time"` or `"wall"`.
        reference: digest of the network that the candidate is interleaved with.
        batch: images per run; always 1 today.
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


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """Name the processor: model, family and the instruction sets that engines choose kernels by.

    Args:
        cpuinfo: Linux's description of the processor; where it is missing, `platform` answers.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    name = fields.get("model name") or platform.processor() or platform.machine()
    # Virtual machines shorten model names ("AMD EPYC"); family and model tell generations apart.
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    sets = " ".join(one for one in _INSTRUCTION_SETS if one in flags)
    detail = "; ".join(part for part in (", ".join(numbers), sets) if part)
    return f"{name} ({detail})" if detail else name
