"""The other end of a `Worker`: a process that builds and times engines when it is asked.

Messages to the parent are JSON: `enter` (a stage begins), `answer`, and `refuse` (an error).
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from nas import errors
from nas.errors import NasError
from nas.latency.measurer import Around, Measurer, Stage
from nas.latency.runtimes.base import Runtime
from nas.latency.timing import Calibration, ClockSettings, ProtocolName, Timing

__all__ = ["REMEDY", "Setup", "main"]

REMEDY = "Choose another runtime or precision, or leave out the block that does this."
"""What to do about an engine that fails."""

_GIB = 2**30
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Setup:
    """What a child begins with; the runtime is pickled, so that failing to load it is answered."""

    runtime: bytes
    threads: int
    settings: ClockSettings | None
    seed: int
    protocol: ProtocolName
    batch: int
    uuid: str | None
    memory_gib: float | None


def main(descriptor: int) -> None:
    """Answer requests until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    _die_with_parent()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(connection)


def _serve(connection: Connection) -> None:
    def tell(*message: object) -> None:
        connection.send_bytes(json.dumps(message).encode())

    setup: Setup = connection.recv()
    _limit(setup.memory_gib)
    measurer, answer = _loaded(setup, lambda stage, what: tell("enter", stage, what))
    tell(*answer)
    if measurer is None:
        return
    calls: dict[str, Callable[..., Calibration | Timing]]
    calls = {"calibrate": measurer.calibrate, "measure": partial(_measure, measurer)}
    try:
        while True:
            method, *arguments = connection.recv()
            tell(*_answered(calls[method], *arguments))
    finally:
        measurer.close()


def _loaded(
    setup: Setup, enter: Callable[[Stage, str], None]
) -> tuple[Measurer | None, tuple[object, ...]]:
    """Load the runtime; the measurer, if that worked, and what to answer."""
    try:
        runtime: Runtime = pickle.loads(setup.runtime)
        measurer = Measurer(
            runtime,
            threads=setup.threads,
            settings=setup.settings,
            seed=setup.seed,
            protocol=setup.protocol,
            batch=setup.batch,
            uuid=setup.uuid,
            enter=enter,
        )
    except BaseException as error:  # noqa: BLE001 - a broken install fails in a way of its own
        return None, _refusal(error)
    return measurer, ("answer", None)


def _measure(
    measurer: Measurer, onnx: bytes, precision: str, reference_ms: float, around: bytes | None
) -> Timing:
    wrapped: Around | None = None if around is None else pickle.loads(around)
    return measurer.measure(onnx, precision, reference_ms, wrapped)


def _answered(call: Callable[..., Calibration | Timing], *arguments: object) -> tuple[object, ...]:
    try:
        value = call(*arguments)
    except BaseException as error:  # noqa: BLE001 - a plug-in may raise anything, SystemExit too
        return _refusal(error)
    return ("answer", dataclasses.asdict(value))


def _refusal(error: BaseException) -> tuple[object, ...]:
    if isinstance(error, NasError):
        return ("refuse", _public_name(error), error.message, error.remedy)
    said = f"{type(error).__name__}: {error}".strip(": .")
    return ("refuse", "EngineError", f"The runtime raised {said}.", REMEDY)


def _public_name(error: NasError) -> str:
    """Return the nearest class of `nas.errors`: the parent may not know the plug-in's own."""
    return next(one.__name__ for one in type(error).__mro__ if one.__module__ == errors.__name__)


def _limit(gib: float | None) -> None:
    import resource  # noqa: PLC0415 - Windows has none

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # dumping a core takes longer than a search
    if gib is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = int(gib * _GIB)
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    with suppress(OSError):  # if memory runs out, let the kernel end this process, not the parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _die_with_parent() -> None:
    """Ask Linux to kill this process with the thread that started it, even if it hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
