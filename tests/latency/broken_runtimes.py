"""Runtimes, and what is timed around them, for tests; worker processes import this module.

`BrokenRuntime` is ONNX Runtime, unless the graph's `doc_string` names a method of `Misdeeds`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from nas.errors import EngineError, MeasurementError
from nas.latency.runtimes.base import Engine
from nas.latency.runtimes.onnxruntime import OnnxRuntime, OnnxRuntimeEngine

COLLEAGUE = "NAS_TEST_COLLEAGUE"
CRASHED = "NAS_TEST_CRASHED"


class OwnError(EngineError):
    """An error that only this module knows."""


class Misdeeds:
    """What an engine may do instead of being built, by the name in the graph."""

    @staticmethod
    def segfault() -> None:
        sys.stderr.write("about to read address zero\n")
        sys.stderr.flush()
        ctypes.string_at(0)

    @staticmethod
    def abort() -> None:
        os.abort()

    @staticmethod
    def leave() -> None:
        os._exit(3)

    @staticmethod
    def system_exit() -> None:
        sys.exit(3)

    @staticmethod
    def hang() -> None:
        # Held: a thread of the child that waits for the parent's death could not run.
        ctypes.PyDLL(None).sleep(600)

    @staticmethod
    def hang_loudly() -> None:
        while True:
            os.write(1, b"still tuning\n" * 99)

    @staticmethod
    def hang_with_child() -> None:
        child = os.fork()
        if child:
            Path(os.environ[COLLEAGUE]).write_text(str(child))
        time.sleep(600)

    @staticmethod
    def allocate() -> None:
        kept = []
        while True:
            kept.append(np.ones(2**24))

    @staticmethod
    def bad_alloc() -> None:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()

    @staticmethod
    def out_of_memory_kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def engine_error() -> None:
        raise EngineError("The operator Foo is not supported.", "Leave Foo out.")

    @staticmethod
    def own_error() -> None:
        raise OwnError("The operator Bar is not supported.")

    @staticmethod
    def lose_device() -> None:
        raise MeasurementError("The GPU does not answer any more.")

    @staticmethod
    def unexpected() -> None:
        raise ZeroDivisionError("deep in the library")

    @staticmethod
    def garbage_bytes() -> None:
        os.write(int(sys.argv[1]), b"\xff\xfe garbage, no message")
        time.sleep(600)

    @staticmethod
    def half_message() -> None:
        os.write(int(sys.argv[1]), b"\x00\x00\x00\x63[")
        os._exit(0)

    @staticmethod
    def other_answer() -> None:
        text = b'["answer", {"ms": 1.0}]'
        os.write(int(sys.argv[1]), len(text).to_bytes(4, "big") + text)

    @staticmethod
    def no_answer() -> None:
        os.write(int(sys.argv[1]), b"\x00\x00\x00\x04true")


class _LateEngine(OnnxRuntimeEngine):
    """Dies, or hangs, when it has run a few times."""

    def __init__(self, engine: OnnxRuntimeEngine, misdeed: str) -> None:
        super().__init__(engine._session, engine.input_shape, b"")
        self._misdeed = misdeed
        self._runs = 0

    def _run(self) -> None:
        self._runs += 1
        if self._runs > 5:
            getattr(Misdeeds, self._misdeed)()
        super()._run()


class BrokenRuntime(OnnxRuntime):
    """ONNX Runtime that does what a graph's `doc_string` says."""

    name: ClassVar[str] = "broken"

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        words = _doc_string(onnx).split()
        if words == ["no_engine"]:
            return None  # type: ignore[return-value]  # as a library's builder does
        if len(words) == 1:
            getattr(Misdeeds, words[0])()
        engine = super()._build(onnx, input_shape, precision, threads)
        if words[:1] == ["late"]:
            assert isinstance(engine, OnnxRuntimeEngine)
            return _LateEngine(engine, words[1])
        return engine


class UnloadableRuntime(OnnxRuntime):
    """Can be sent, and not be received."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_fail, ())


class CrashingOnceRuntime(OnnxRuntime):
    """Crashes once: when the file that the environment names says that it is armed."""

    name: ClassVar[str] = "crashing-once"

    def _build(
        self, onnx: bytes, input_shape: tuple[int, ...], precision: str, threads: int
    ) -> Engine:
        marker = Path(os.environ[CRASHED])
        if marker.read_text() == "armed":
            marker.write_text("done")
            Misdeeds.segfault()
        return super()._build(onnx, input_shape, precision, threads)


class SlowToLoadRuntime(OnnxRuntime):
    """Never loads in another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (time.sleep, (600,))


class Twice:
    """Times two runs of a network as one."""

    name = "twice"

    def __call__(self, engine: Engine) -> Callable[[], object]:
        return lambda: (engine.run(), engine.run())

    def parts(self, engine: Engine) -> dict[str, Callable[[], object]]:
        return {"first": engine.run, "second": engine.run}


class UnloadableTwice(Twice):
    """Can be sent, and not be received."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_fail, ())


def _doc_string(content: bytes) -> str:
    return str(onnx.load_from_string(content).doc_string)


def _fail() -> None:
    raise ModuleNotFoundError("No module named 'accelerator'")
