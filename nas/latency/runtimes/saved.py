"""Engines on disk: what a library wrote, and beside it what that is true for.

An engine is good for one runtime in one version on one kind of device. What the library wrote is
kept as it is, so that any other program can load it; a JSON file beside it, with `.json` appended
to the name, says what it is true for and guards it with a digest. Nothing in either is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.errors import EngineError
from nas.files import replace

__all__ = ["Identity", "SavedEngine"]

_FORMAT = "nas engine 1"
_REMEDY = "Build the engine again, here, from its ONNX graph, and save it."


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What an engine is.

    Args:
        runtime: that built it.
        version: of that runtime's library.
        device: that it was built on; for a processor with its instruction sets.
        precision: it computes in.
        threads: it may use.
        input_shape: (N, 3, H, W).
    """

    runtime: str
    version: str
    device: str
    precision: str
    threads: int
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class SavedEngine:
    """An engine as it is written.

    Args:
        identity: what it is.
        content: in the library's own format.
        facts: what else the runtime wants to know when it loads the engine.
    """

    identity: Identity
    content: bytes
    facts: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write the content, and beside it what it is; each file is replaced in one step.

        Args:
            path: of the content; the folders above it are made.

        Raises:
            EngineError: a file cannot be written.
        """
        about = {
            "format": _FORMAT,
            **asdict(self.identity),
            "bytes": len(self.content),
            "sha256": _digest(self.content),
            "facts": dict(self.facts),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, self.content)
            replace(_about(path), f"{json.dumps(about, indent=1)}\n".encode())
        except OSError as error:
            raise EngineError(
                f"The engine cannot be written to {path}: {error.strerror or error}.",
                "Choose another place, or free space.",
            ) from error

    @classmethod
    def read(cls, path: Path) -> SavedEngine:
        """Read what `write` wrote.

        Raises:
            EngineError: a file is missing, foreign or broken, or the two do not belong together.
        """
        try:
            content, text = path.read_bytes(), _about(path).read_bytes()
        except OSError as error:
            raise EngineError(
                f"A saved engine is a file and its .json: {error.filename}: "
                f"{error.strerror or error}.",
                _REMEDY,
            ) from error
        try:
            about = json.loads(text)
            saved = cls(_identity(about), content, _facts(about["facts"]))
            digest, length = about["sha256"], int(about["bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{_about(path)} does not describe an engine: {type(error).__name__}: {error}.",
                _REMEDY,
            ) from error
        if digest != _digest(content):
            raise EngineError(
                f"{path} is not the engine that {_about(path).name} describes: it has "
                f"{len(content)} bytes, described are {length}, or others of that number.",
                _REMEDY,
            )
        return saved

    def require(self, *, runtime: str, version: str, device: str) -> None:
        """Refuse an engine that was built elsewhere.

        Args:
            runtime: that shall load it.
            version: of that runtime's library.
            device: of this machine.

        Raises:
            EngineError: one of them differs.
        """
        here = {"runtime": runtime, "version": version, "device": device}
        for what, wanted in here.items():
            found = getattr(self.identity, what)
            if found != wanted:
                raise EngineError(
                    f"An engine is good for the {what} that it was built with: this one for "
                    f"{found!r}, here is {wanted!r}.",
                    _REMEDY,
                )


def _identity(about: Mapping[str, Any]) -> Identity:
    if about["format"] != _FORMAT:
        raise ValueError(f"format {about['format']!r}, known is {_FORMAT!r}")
    words = {name: about[name] for name in ("runtime", "version", "device", "precision")}
    if not all(isinstance(word, str) for word in words.values()):
        raise TypeError(f"runtime, version, device and precision are words, got {words}")
    shape = tuple(int(side) for side in about["input_shape"])
    return Identity(**words, threads=int(about["threads"]), input_shape=shape)


def _facts(found: object) -> dict[str, str]:
    if not isinstance(found, Mapping) or not all(isinstance(one, str) for one in found.values()):
        raise TypeError(f"facts are words by name, got {found!r:.80}")
    return dict(found)


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
