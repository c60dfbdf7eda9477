"""A TensorRT plan with what it is true for, in memory and on disk.

A plan runs on one kind of GPU with one release of TensorRT. The plan itself is written as it is, so
that any other program can load it; what it is true for lies beside it in JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nas.errors import EngineError

__all__ = ["Plan"]

_BOUND_TO = ("runtime", "version", "device", "compute capability")


@dataclass(frozen=True)
class Plan:
    """What TensorRT built.

    Args:
        content: the serialized engine.
        input_shape: (1, 3, H, W).
        facts: what `Engine.describe` says of how it was built.
    """

    content: bytes
    input_shape: tuple[int, ...]
    facts: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write the plan, and beside it a file with `.json` appended to its name.

        Raises:
            EngineError: a file cannot be written.
        """
        about = {
            "sha256": _digest(self.content),
            "input_shape": list(self.input_shape),
            "facts": dict(self.facts),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content)
            _about(path).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise EngineError(f"{path} cannot be written: {error.strerror or error}.") from error

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what `write` wrote.

        Raises:
            EngineError: a file is missing or broken, or the two do not belong together.
        """
        try:
            content = path.read_bytes()
            about = json.loads(_about(path).read_text(encoding="utf-8"))
            plan = cls(content, tuple(about["input_shape"]), dict(about["facts"]))
            digest = about["sha256"]
        except OSError as error:
            raise EngineError(
                f"A plan and its .json are needed: {error.filename}: {error.strerror or error}.",
                "Save the engine again.",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{_about(path)} does not describe a plan: {type(error).__name__}: {error}.",
                "Save the engine again.",
            ) from error
        if digest != _digest(content):
            raise EngineError(f"{path} is not the plan that {_about(path).name} describes.")
        return plan

    def require(self, here: Mapping[str, str]) -> None:
        """Refuse a plan of another device or release.

        Args:
            here: runtime, version, device and compute capability of this machine.

        Raises:
            EngineError: one of them differs.
        """
        for key in _BOUND_TO:
            if self.facts.get(key) != here[key]:
                raise EngineError(
                    f"The plan is for {key} {self.facts.get(key, 'unknown')}, this is {here[key]}.",
                    "Build the engine again on this machine.",
                )


def _about(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
