"""Engines in a process of their own, so that one which crashes costs one candidate.

A `Worker` does what a `Measurer` does, in a child process that it starts when it is first asked and
then keeps warm. If the child dies, does not finish in time or runs out of memory,
the request is an `EngineError` that says so, and the next request gets a fresh child. The process
CPU time that the clock reads is then the child's, where nothing but the engines runs.

* **A fresh interpreter**, not a fork: libraries with threads do not survive a fork. And not
  `multiprocessing`'s spawn, which imports the main program again: that costs the import of torch,
  and repeats what an unguarded script does.
* **Memory** is limited by RLIMIT_DATA. RLIMIT_AS counts reserved addresses, too: OpenVINO needed
  0.6 GiB of those and less than 0.2 GiB of data for the same engines, and ran with fewer layers in
  INT8, or failed with other errors, before it really lacked memory. On a GPU there is no limit:
  what CUDA reserves counts as data.
* **Ctrl-C** does not reach the child, which has a session of its own; the parent ends it. If the
  parent is killed, the kernel kills the child, or the end of the pipe does.
* **What libraries print** goes to a pipe; its last lines stand in the error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from nas import errors
from nas.errors import EngineError, InputError, NasError
from nas.latency.clock import Elapsed
from nas.latency.measurer import Around, Stage
from nas.latency.runtimes.base import Runtime
from nas.latency.timing import Calibration, ClockSettings, ProtocolName, Timing, protocol_name
from nas.latency.worker_child import REMEDY, Setup

__all__ = ["Limits", "Worker"]

_CPU_BUILD_S, _DEVICE_BUILD_S = 120.0, 900.0
# Sending to a child that was stopped, or reading half an answer, ends after this.
_PIPE_S = 30
# How long a child may take to end before it is killed.
_CLOSE_S = 5.0
_LONGEST_ANSWER = 2**20
_QUOTED_LINES, _QUOTED_LETTERS = 3, 300
_KEPT_BYTES, _PIPE_BYTES = 2**14, 2**16
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|bad allocation|MemoryError|out of memory|(can't|cannot|could not|failed to) alloc",
    re.IGNORECASE,
)
_PROGRAM = "import sys; from nas.latency.worker_child import main; main(int(sys.argv[1]))"
_ERRORS: dict[str, type[NasError]] = {
    name: one
    for name, one in vars(errors).items()
    if isinstance(one, type) and issubclass(one, NasError)
}

_Answer = TypeVar("_Answer", Calibration, Timing)


@dataclass(frozen=True)
class Limits:
    """What one candidate may take.

    Args:
        build_s: wall seconds for building an engine, and again for its first run.
        measure_s: wall seconds for measuring it.
        memory_gib: memory of the process in GiB (RLIMIT_DATA); None for no limit.

    Raises:
        InputError: a value that is not positive.
    """

    build_s: float = _CPU_BUILD_S
    measure_s: float = 600.0
    memory_gib: float | None = 8.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise InputError(f"{field.name} must be positive, got {value:g}.")

    @classmethod
    def usual(cls, runtime: Runtime) -> Limits:
        """Return the limits for a runtime: on other devices engines are tuned when they are built.

        Their libraries reserve far more memory than they use, so there it is not limited.
        """
        if not runtime.on_cpu:
            return cls(build_s=_DEVICE_BUILD_S, memory_gib=None)
        return cls(build_s=_DEVICE_BUILD_S) if runtime.tunes else cls()

    def seconds(self, stage: Stage) -> float:
        """Return the wall seconds that a stage may take."""
        return self.measure_s if stage == "measuring" else self.build_s


class Worker:
    """Builds and times engines as `Measurer` does, in a child process.

    Args:
        runtime: what builds the engines; it is pickled.
        threads: threads per engine.
        settings: how long and how narrow a measurement is.
        seed: of the input images and of the bootstrap.
        protocol: how runs follow each other.
        batch: images per run of a candidate.
        uuid: of the GPU that is watched for throttling, if the runtime computes on one.
        limits: what one candidate may take; the usual ones for the runtime if None.

    Raises:
        InputError: another process cannot load the runtime.
        UnknownNameError: there is no such protocol.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        threads: int = 1,
        settings: ClockSettings | None = None,
        seed: int = 0,
        protocol: ProtocolName = "hot",
        batch: int = 1,
        uuid: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        protocol_name(protocol, settings)
        self._limits = limits or Limits.usual(runtime)
        memory = self._limits.memory_gib
        pickled = _pickled(runtime, f"The runtime {runtime.name!r}")
        self._setup = Setup(pickled, threads, settings, seed, protocol, batch, uuid, memory)
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, or None if there is none now."""
        return None if self._child is None else self._child.process.pid

    def calibrate(self, precision: str) -> Calibration:
        """Time the reference network alone.

        Raises:
            EngineError: its engine cannot be built, or the child died of it.
            MeasurementError: other threads of the child kept disturbing.
        """
        return self._ask(Calibration, "calibrate", precision)

    def measure(
        self, onnx: bytes, precision: str, reference_ms: float, around: Around | None = None
    ) -> Timing:
        """Build an engine and time it against the reference network.

        Args:
            onnx: graph in fp32, or in int8 if that is the precision; input (batch, 3, H, W).
            precision: one of the runtime's.
            reference_ms: the reference's own time, which sets the scale.
            around: what is timed with the network; it is pickled.

        Raises:
            InputError: the graph has another batch size, or another process cannot load `around`.
            EngineError: an engine cannot be built, or the child died, did not finish in time or ran
                out of memory.
            ExportError: the graph is broken.
            MeasurementError: other threads of the child kept disturbing, the clock does not work,
                or the device is gone.
        """
        wrapped = None if around is None else _pickled(around, f"What is timed ({around.name!r})")
        return self._ask(Timing, "measure", onnx, precision, reference_ms, wrapped)

    def close(self) -> None:
        """End the child. The worker can be used again, and starts another one."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(self, answer: type[_Answer], method: str, *arguments: object) -> _Answer:
        if self._child is not None and self._child.process.poll() is not None:
            self.close()  # it died while it had nothing to do: no candidate's fault
        if self._child is None:
            self._child = _Child(self._setup, self._limits)
        try:
            return self._child.ask(answer, (method, *arguments))
        except _RefusedError as refusal:
            raise refusal.error from None
        except BaseException:
            # Whatever it is doing is wanted no more, and its state is unknown.
            self._child.kill()
            self._child = None
            raise


class _RefusedError(Exception):
    """The child is well, and answered with an error."""

    def __init__(self, error: NasError) -> None:
        super().__init__(error)
        self.error = error


class _Child:
    """The parent's end of one child process."""

    def __init__(self, setup: Setup, limits: Limits) -> None:
        self._limits = limits
        self._doing = "the runtime was loaded"
        self._tail = b""
        ours, theirs = socket.socketpair()
        with theirs:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _PIPE_S, 0))
            self._connection = Connection(ours.detach())
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                },
            )
        assert self.process.stdout is not None
        self._output = self.process.stdout
        os.set_blocking(self._output.fileno(), False)
        # A child that hangs while it starts must not block the request, which may be long: the
        # setup is short, and the request is sent when the child has answered it.
        self._first: object = setup

    def ask(self, answer: type[_Answer], request: object) -> _Answer:
        """Send a request and wait for its answer, of that type.

        Raises:
            _RefusedError: the child answered with an error.
            EngineError: the child died, did not finish in time or ran out of memory.
        """
        self._read_output()
        self._tail = b""
        self._start()
        values = self._exchange(request)
        try:
            return answer(**values)
        except TypeError as error:
            raise self._failure(f"answered what is no {answer.__name__}: {values!r:.80}") from error

    def _start(self) -> None:
        """Wait until the child has loaded the runtime; once."""
        if self._first is not None:
            try:
                self._exchange(self._first)
            except _RefusedError as refusal:
                raise refusal.error from None  # there is nothing to ask again
            self._first = None

    def close(self) -> None:
        """Let the child free its engines and end; kill it if it does not."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """Kill the child, and whatever it started."""
        self._connection.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()

    def _exchange(self, message: object) -> Any:
        """Send a message; return what the child answers, after the stages that it entered."""
        stage: Stage = "building"
        try:
            self._connection.send(message)
            while True:
                kind, *values = self._receive(self._limits.seconds(stage))
                if kind == "enter":
                    stage, self._doing = values
                elif kind == "refuse":
                    self._refuse(*values)
                else:
                    return values[0]
        except BlockingIOError as error:
            raise self._failure(f"left a message unfinished for {_PIPE_S} s") from error
        except (EOFError, OSError) as error:
            raise self._death() from error
        except (LookupError, TypeError, ValueError) as error:
            raise self._failure(f"answered what cannot be read ({error})") from error

    def _receive(self, seconds: float) -> Any:
        """Return the next message; meanwhile keep what the child prints."""
        elapsed = Elapsed()
        printed = self._output.fileno()
        ends: list[Connection | int] = [self._connection, printed]
        while (left := seconds - elapsed.wall_s) > 0:
            ready = wait(ends, left)
            if printed in ready and not self._read_output():
                ends.remove(printed)
            if self._connection in ready:
                return json.loads(self._connection.recv_bytes(_LONGEST_ANSWER))
        raise self._failure(f"did not finish within {seconds:g} s and was ended")

    def _refuse(self, kind: str, message: str, remedy: str) -> NoReturn:
        """Raise what the child answered; lack of memory ends the child, so it is no refusal."""
        if self._limits.memory_gib is not None and _OUT_OF_MEMORY.search(message):
            raise self._failure(f"{self._without_memory()}: {message}")
        raise _RefusedError(_ERRORS[kind](message, remedy))

    def _death(self) -> EngineError:
        """Say what the child, whose end of the pipe is closed, died of."""
        try:
            code = self.process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            return self._failure("broke its connection to this program")
        self._read_output()
        if self._limits.memory_gib is not None and _OUT_OF_MEMORY.search(self._text()):
            return self._failure(self._without_memory())
        if code >= 0:
            return self._failure(f"ended by itself, with status {code}")
        cause = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        if -code == signal.SIGKILL:
            cause += ", which this program did not send: mostly, that is Linux out of memory"
        return self._failure(cause)

    def _without_memory(self) -> str:
        return f"ran out of memory (limit {self._limits.memory_gib:g} GiB)"

    def _failure(self, cause: str) -> EngineError:
        self._read_output()
        lines = [line.strip() for line in self._text().splitlines() if line.strip()]
        last = " | ".join(lines[-_QUOTED_LINES:])[-_QUOTED_LETTERS:]
        said = f" Its last words: {last!r}." if last else ""
        return EngineError(f"While {self._doing}, its process {cause}.{said}", REMEDY)

    def _text(self) -> str:
        return self._tail.decode(errors="replace")

    def _read_output(self) -> bool:
        """Keep the end of what the child printed; say whether there may be more to come."""
        for _ in range(_PIPE_BYTES // _KEPT_BYTES):  # a child that never stops must not keep us
            data = self._output.read(_KEPT_BYTES)
            if not data:
                return data is None
            self._tail = (self._tail + data)[-_KEPT_BYTES:]
        return True


def _pickled(value: object, name: str) -> bytes:
    remedy = (
        "Define its class at the top of a module that can be imported, or measure in this process "
        "with isolated=False."
    )
    if type(value).__module__ == "__main__":
        raise InputError(f"{name} is defined in a script: no other process can load it.", remedy)
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"{name} cannot be sent to another process: {error}.", remedy) from error
