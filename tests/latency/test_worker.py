from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from nas.errors import EngineError, InputError, MeasurementError, UnknownNameError
from nas.latency.measurer import Measurer
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.latency.timing import ClockSettings
from nas.latency.worker import Limits, Worker

QUICK = ClockSettings(half_width=0.9, min_blocks=3, max_blocks=4, block_ms=2, warmup_ms=2)
LIMITS = Limits(build_s=100, measure_s=100, memory_gib=0.5)  # none is met, however busy it is here
IMPATIENT = Limits(build_s=1.5, measure_s=1.5, memory_gib=1)


@pytest.fixture(scope="module")
def broken() -> Iterator[ModuleType]:
    """The module of runtimes; on the import path, where worker processes find it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("broken_runtimes")


@pytest.fixture(scope="module")
def worker(broken: ModuleType) -> Iterator[Worker]:
    """One for many tests: each leaves it usable, which is the point."""
    with contextlib.closing(Worker(broken.BrokenRuntime(), settings=QUICK, limits=LIMITS)) as made:
        yield made


@pytest.fixture(scope="module")
def impatient(broken: ModuleType) -> Iterator[Worker]:
    with contextlib.closing(
        Worker(broken.BrokenRuntime(), settings=QUICK, limits=IMPATIENT)
    ) as made:
        yield made


@pytest.fixture(scope="session")
def marked(graph: bytes) -> Callable[[str], bytes]:
    """`marked(text)`: a sound graph that tells the broken runtime what to do."""

    def mark(text: str) -> bytes:
        model = onnx.load_from_string(graph)
        model.doc_string = text
        return bytes(model.SerializeToString())

    return mark


def _measures(worker: Worker, graph: bytes) -> bool:
    timing = worker.measure(graph, "fp32", 1.0)
    return timing.clock == "process CPU time" and timing.low_ms <= timing.ms <= timing.high_ms


@pytest.mark.parametrize(
    ("misdeed", "cause"),
    [
        ("segfault", r"signal 11 \(Segmentation fault\)\. Its last words: 'about to read address"),
        ("abort", r"signal 6 \(Aborted\)"),
        ("leave", r"ended by itself, with status 3"),
        ("system_exit", r"The runtime raised SystemExit: 3"),
        ("allocate", r"ran out of memory \(limit 0\.5 GiB\)"),
        ("bad_alloc", r"ran out of memory \(limit 0\.5 GiB\)\. Its last words: .*std::bad_alloc"),
        ("out_of_memory_kill", r"signal 9 \(Killed\), which this program did not send.*memory"),
        ("engine_error", r"^The operator Foo is not supported\. Leave Foo out\.$"),
        ("own_error", r"^The operator Bar is not supported\.$"),
        ("unexpected", r"The runtime raised ZeroDivisionError: deep in the library"),
        ("no_engine", r"The runtime raised \w+: .*NoneType"),
        ("garbage_bytes", r"While the engine in fp32 was built, its process"),
        ("half_message", r"ended by itself, with status 0"),
        ("other_answer", r"answered what is no Timing"),
        ("no_answer", r"answered what cannot be read"),
        ("late segfault", r"While the engine in fp32 was measured, .* signal 11"),
    ],
)
def test_worker__broken_engine_costs_one_candidate(
    worker: Worker, marked: Callable[[str], bytes], misdeed: str, cause: str
) -> None:
    with pytest.raises(EngineError, match=cause):
        worker.measure(marked(misdeed), "fp32", 1.0)
    assert _measures(worker, marked(""))


@pytest.mark.parametrize("misdeed", ["hang", "hang_loudly", "late hang"])
def test_worker__engine_that_never_returns_is_ended(
    impatient: Worker, marked: Callable[[str], bytes], misdeed: str
) -> None:
    with pytest.raises(EngineError, match=r"did not finish within 1\.5 s and was ended"):
        impatient.measure(marked(misdeed), "fp32", 1.0)
    assert impatient.pid is None


def test_worker__what_an_engine_started_is_ended_with_it(
    broken: ModuleType,
    marked: Callable[[str], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = tmp_path / "pid"
    monkeypatch.setenv(broken.COLLEAGUE, str(note))
    limits = dataclasses.replace(IMPATIENT, build_s=8)  # until then, it has started another
    worker = Worker(broken.BrokenRuntime(), settings=QUICK, limits=limits)
    with pytest.raises(EngineError, match="did not finish"):
        worker.measure(marked("hang_with_child"), "fp32", 1.0)
    assert _is_gone(int(note.read_text()))


def test_worker__killed_from_outside_while_it_measures(
    worker: Worker, marked: Callable[[str], bytes]
) -> None:
    assert _measures(worker, marked(""))
    first = worker.pid
    assert first is not None
    threading.Timer(0.5, os.kill, (first, signal.SIGTERM)).start()
    with pytest.raises(EngineError, match=r"signal 15 \(Terminated\)"):
        worker.measure(marked("hang"), "fp32", 1.0)
    assert _measures(worker, marked(""))
    assert worker.pid != first


def test_worker__killed_while_it_waits_is_replaced_in_silence(worker: Worker, graph: bytes) -> None:
    assert _measures(worker, graph)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert _measures(worker, graph)


def test_worker__is_warm_until_it_is_closed(worker: Worker, graph: bytes) -> None:
    assert _measures(worker, graph)
    first = worker.pid
    assert _measures(worker, graph)
    assert worker.pid == first
    assert first is not None
    worker.close()
    worker.close()
    assert worker.pid is None
    assert _is_gone(first)
    assert _measures(worker, graph)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A shell starts what runs in the background deaf to interrupts; here they are heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_worker__interrupt_ends_what_it_does(
    worker: Worker, marked: Callable[[str], bytes]
) -> None:
    assert _measures(worker, marked(""))
    child = worker.pid
    assert child is not None
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.measure(marked("hang"), "fp32", 1.0)
    assert _is_gone(child)
    assert _measures(worker, marked(""))


def test_worker__ignores_the_interrupt_of_a_terminal(worker: Worker, graph: bytes) -> None:
    assert _measures(worker, graph)
    first = worker.pid
    assert first is not None
    assert os.getsid(first) == first != os.getsid(0)
    os.kill(first, signal.SIGINT)
    assert _measures(worker, graph)
    assert worker.pid == first


def test_worker__prints_nothing(
    worker: Worker, marked: Callable[[str], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError):
        worker.measure(marked("segfault"), "fp32", 1.0)
    worker.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("misdeed", ["", "hang"])
def test_worker__dies_with_its_parent(
    broken: ModuleType, marked: Callable[[str], bytes], tmp_path: Path, misdeed: str
) -> None:
    model, note = tmp_path / "model.onnx", tmp_path / "pid"
    model.write_bytes(marked(misdeed))
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, pathlib, sys, threading\n"
        "from broken_runtimes import BrokenRuntime\n"
        "from nas.latency.worker import Worker\n"
        "worker, note = Worker(BrokenRuntime()), pathlib.Path(sys.argv[2])\n"
        "worker.calibrate('fp32')\n"
        "note.write_text(str(worker.pid))\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()\n"
        "worker.measure(pathlib.Path(sys.argv[1]).read_bytes(), 'fp32', 1.0)\n"
        "threading.Event().wait()\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, str(script), str(model), str(note)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=600, check=False)
    assert done.returncode == -signal.SIGKILL
    assert _is_gone(int(note.read_text()))


def test_worker__agrees_with_measuring_in_this_process(graph: bytes, large_graph: bytes) -> None:
    runtime, settings = OnnxRuntime(), ClockSettings(min_blocks=8, max_blocks=16)
    with (
        contextlib.closing(Measurer(runtime, settings=settings)) as here,
        contextlib.closing(Worker(runtime, settings=settings)) as there,
    ):
        ratios = [one.measure(large_graph, "fp32", 1.0).ratio for one in (here, there)]
        small = there.measure(graph, "fp32", 1.0).ratio
    assert ratios[1] == pytest.approx(ratios[0], rel=0.4)
    assert small < ratios[1] / 4


def test_worker__runs_every_precision(graph: bytes) -> None:
    runtime = OpenVinoRuntime()
    with contextlib.closing(Worker(runtime, settings=QUICK, limits=LIMITS)) as worker:
        for precision in ("fp32", "int8"):
            assert worker.measure(graph, precision, 2.0).ms > 0
            assert worker.calibrate(precision).ms > 0


def test_worker__protocol_and_batch_reach_the_child(graph: bytes) -> None:
    settings = dataclasses.replace(QUICK, pause_ms=2, min_pauses=3, max_pauses=4)
    with contextlib.closing(
        Worker(OnnxRuntime(), settings=settings, protocol="buffered", batch=2, limits=LIMITS)
    ) as worker:
        assert worker.calibrate("fp32").ms > 0
        with pytest.raises(InputError, match=r"2 images per run, it takes 1"):
            worker.measure(graph, "fp32", 1.0)
    with contextlib.closing(
        Worker(OnnxRuntime(), settings=settings, protocol="buffered", limits=LIMITS)
    ) as worker:
        assert worker.measure(graph, "fp32", 1.0).protocol == "buffered 2 ms"


def test_worker__times_what_is_around_the_network(broken: ModuleType, graph: bytes) -> None:
    with contextlib.closing(Worker(OnnxRuntime(), settings=QUICK, limits=LIMITS)) as worker:
        timing = worker.measure(graph, "fp32", 1.0, broken.Twice())
        assert timing.protocol == "hot, twice"
        assert timing.ms == pytest.approx(sum(timing.parts_ms.values()), rel=0.5)
        with pytest.raises(EngineError, match=r"ModuleNotFoundError: .*accelerator"):
            worker.measure(graph, "fp32", 1.0, broken.UnloadableTwice())
        assert worker.measure(graph, "fp32", 1.0).protocol == "hot"


def test_worker__what_is_around_must_be_sendable(broken: ModuleType, graph: bytes) -> None:
    class Local(broken.Twice):  # type: ignore[misc, name-defined]  # the module is found at run time
        pass

    with pytest.raises(InputError, match=r"What is timed \('twice'\) cannot be sent"):
        Worker(OnnxRuntime()).measure(graph, "fp32", 1.0, Local())


def test_worker__lost_device_is_an_error_of_the_measurement(
    worker: Worker, marked: Callable[[str], bytes]
) -> None:
    with pytest.raises(MeasurementError, match="does not answer any more"):
        worker.measure(marked("late lose_device"), "fp32", 1.0)
    assert _measures(worker, marked(""))


def test_worker__unknown_protocol_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="lukewarm"):
        Worker(OnnxRuntime(), protocol="lukewarm")  # type: ignore[arg-type]  # as a user may


def test_worker__errors_keep_their_type(worker: Worker, large_graph: bytes) -> None:
    with pytest.raises(EngineError, match="ONNX"):
        worker.measure(b"broken", "fp32", 1.0)
    with pytest.raises(InputError, match="reference_ms"):
        worker.measure(large_graph, "fp32", -1.0)


def test_worker__needs_no_torch(graph: bytes) -> None:
    """A second of start-up; shown by the memory map of a live child."""
    with contextlib.closing(Worker(OnnxRuntime(), settings=QUICK, limits=LIMITS)) as worker:
        assert _measures(worker, graph)
        libraries = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "onnxruntime" in libraries
    assert "libtorch" not in libraries


def test_worker__runtime_that_cannot_be_sent_is_an_error() -> None:
    class Local(OnnxRuntime):
        pass

    with pytest.raises(InputError, match="top of a module"):
        Worker(Local())


def test_worker__runtime_of_a_script_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(OnnxRuntime):
        pass

    monkeypatch.setattr(Scripted, "__module__", "__main__")
    with pytest.raises(InputError, match="defined in a script"):
        Worker(Scripted())


def test_worker__runtime_that_cannot_be_loaded_says_why(broken: ModuleType, graph: bytes) -> None:
    with contextlib.closing(Worker(broken.UnloadableRuntime(), limits=LIMITS)) as worker:
        for _ in range(2):
            with pytest.raises(EngineError, match=r"ModuleNotFoundError: .*accelerator"):
                worker.measure(graph, "fp32", 1.0)


def test_worker__runtime_that_never_loads_is_ended(broken: ModuleType, graph: bytes) -> None:
    worker = Worker(broken.SlowToLoadRuntime(), limits=IMPATIENT)
    with pytest.raises(EngineError, match=r"While the runtime was loaded, .* within 1\.5 s"):
        worker.measure(graph, "fp32", 1.0)
    assert worker.pid is None


@pytest.mark.parametrize("field", ["build_s", "measure_s", "memory_gib"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_limits__must_be_positive(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        dataclasses.replace(Limits(), **{field: value})


def test_limits__give_other_devices_time_and_no_limit_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = OnnxRuntime()
    here = Limits.usual(runtime)
    monkeypatch.setattr(OnnxRuntime, "on_cpu", False)
    device = Limits.usual(runtime)
    assert here == Limits()
    assert device.build_s > here.build_s
    assert device.memory_gib is None


def _is_gone(pid: int, patience_s: float = 60.0) -> bool:
    """Whether a process ends soon; a zombie that its parent has yet to bury has ended."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
