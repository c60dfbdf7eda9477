"""TensorRT's Python bindings, found once: which release they are, its log and its profiler.

Everything else of TensorRT's Python interface is used in `tensorrt_builder.py` and `tensorrt.py`.
The bindings have no annotations, and on most machines they are not installed; so they are imported
by name, and are `Any` to the type checker wherever it runs.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict, deque
from typing import Any

from nas.errors import EngineError, MissingPackageError

__all__ = ["OLDEST", "Log", "Profiler", "release", "require_supported", "trt"]

OLDEST = (10, 12)
"""First release in which strong typing is complete; from 11 on there is nothing else."""

_KEPT_MESSAGES = 50


def _imported() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The runtime 'tensorrt' needs the package {error.name!r}.",
            "Install it with: pip install 'nas-detector[tensorrt]'; on a Jetson it comes with "
            "JetPack.",
        ) from error
    except ImportError as error:
        raise MissingPackageError(
            f"TensorRT is installed, and its libraries cannot be loaded: {error}.",
            "Install 'nas-detector[tensorrt]' again, for the CUDA version of this driver.",
        ) from error


trt: Any = _imported()


class Log(trt.ILogger):  # type: ignore[misc]  # the bindings have no annotations
    """Keeps the last warnings and errors; TensorRT says in its log what its results do not say."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._messages: deque[str] = deque(maxlen=_KEPT_MESSAGES)

    def log(self, severity: Any, msg: str) -> None:
        """Take a message; called by TensorRT, also from its own threads."""
        if int(severity) <= int(trt.ILogger.Severity.WARNING):
            self._messages.append(msg.strip())

    def last(self, count: int = 5) -> str:
        """Return the last messages in one line."""
        return " | ".join(list(self._messages)[-count:]) or "it gave no reason"


class Profiler(trt.IProfiler):  # type: ignore[misc]  # as above
    """Collects what each layer took, in ms."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self._times: defaultdict[str, list[float]] = defaultdict(list)

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take one time; called by TensorRT after each run."""
        self._times[layer_name].append(ms)

    def means(self) -> dict[str, float]:
        """Return the mean ms of each layer, in the order of execution."""
        return {name: sum(times) / len(times) for name, times in self._times.items()}


def release() -> str:
    """Return the release, such as `"10.16.1.11"`."""
    return str(trt.__version__)


def require_supported() -> None:
    """Refuse a release that lacks what this runtime is written for.

    Raises:
        EngineError: it is older than `OLDEST`.
    """
    found = re.match(r"(\d+)\.(\d+)", release())
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise EngineError(
            f"TensorRT must be {OLDEST[0]}.{OLDEST[1]} or newer, this is {release()}.",
            "Older ones lack strongly typed networks: install 'nas-detector[tensorrt]'.",
        )
