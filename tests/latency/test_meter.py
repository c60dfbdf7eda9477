from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.errors import EngineError, InputError, MeasurementError, UnknownNameError
from nas.latency.device_lock import DeviceLock
from nas.latency.hardware import Hardware
from nas.latency.measurer import Around
from nas.latency.meter import LatencyMeter
from nas.latency.onnx_export import export_onnx
from nas.latency.runtimes.base import Engine, Runtime
from nas.latency.runtimes.conformance import ConformanceNet
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.latency.store import MemoryStore
from nas.latency.timing import ClockSettings, ProtocolName, Timing
from nas.latency.worker import Limits

CPU = Hardware.named("cpu")
QUICK = ClockSettings(half_width=0.9, min_blocks=3, max_blocks=4, block_ms=2, warmup_ms=2)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(params=[OpenVinoRuntime, OnnxRuntime])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    made: Runtime = request.param()
    return made


@pytest.fixture
def meter(runtime: Runtime, store: MemoryStore) -> Iterator[LatencyMeter]:
    with LatencyMeter(CPU, runtime, precisions=["fp32"], store=store, settings=QUICK) as made:
        yield made


def test_measure__first_measured_then_cached(meter: LatencyMeter, graph: bytes) -> None:
    first = meter.measure(graph, "fp32", "a")
    again = meter.measure(b"not looked at", "fp32", "a")
    assert first.source == "measured"
    assert again == dataclasses.replace(first, source="cached")
    assert meter.find("fp32", "a") == again
    assert meter.find("fp32", "b") is None


def test_measure__more_work_is_slower(
    meter: LatencyMeter, graph: bytes, large_graph: bytes
) -> None:
    small, large = (meter.measure(one, "fp32", one.hex()[:9999]) for one in (graph, large_graph))
    assert large.ms > 4 * small.ms


def test_measure__another_meter_answers_from_the_store(
    meter: LatencyMeter, runtime: Runtime, store: MemoryStore, graph: bytes
) -> None:
    first = meter.measure(graph, "fp32", "a")
    with LatencyMeter(CPU, runtime, store=store, settings=QUICK) as other:
        found = other.find("fp32", "a")
    assert found is not None
    assert found.ms == first.ms


def test_find__another_environment_does_not_answer(
    meter: LatencyMeter, runtime: Runtime, store: MemoryStore, graph: bytes
) -> None:
    meter.measure(graph, "fp32", "a")
    with LatencyMeter(CPU, runtime, store=store, threads=2) as other:
        assert other.find("fp32", "a") is None


def test_environment__says_what_ran(meter: LatencyMeter, runtime: Runtime) -> None:
    environment = meter.environment("fp32")
    assert (environment.runtime, environment.runtime_version) == (runtime.name, runtime.version())
    assert (environment.precision, environment.clock) == ("fp32", "process CPU time")


def test_drift__is_the_move_from_the_stored_calibration(
    meter: LatencyMeter, runtime: Runtime, store: MemoryStore
) -> None:
    assert meter.calibrate() == {"fp32": 0.0}
    digest = meter.environment("fp32").digest
    now = store.find_reference(digest)
    assert now is not None
    store.add_reference(digest, now * 4, now * 4, now * 4)
    with LatencyMeter(CPU, runtime, precisions=["fp32"], store=store, settings=QUICK) as later:
        assert -0.95 < later.calibrate()["fp32"] < -0.4
    assert store.find_reference(digest) == now * 4


def test_measure__uses_the_stored_scale(runtime: Runtime, graph: bytes) -> None:
    answers = []
    for scale in (1.0, 1000.0):
        store = MemoryStore()
        with LatencyMeter(CPU, runtime, precisions=["fp32"], store=store, settings=QUICK) as one:
            store.add_reference(one.environment("fp32").digest, scale, scale, scale)
            answers.append(one.measure(graph, "fp32", "a").ms)
    assert 200 < answers[1] / answers[0] < 5000


def test_time__unconverged_measurement_is_repeated_once(
    runtime: Runtime, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LatencyMeter(CPU, runtime, precisions=["fp32"], settings=QUICK) as meter:
        good = meter.time(graph, "fp32")
        bad = dataclasses.replace(good, converged=False, high_ms=good.ms * 9)
        answers: list[Timing] = [bad, good, good]
        monkeypatch.setattr(meter._measurer, "measure", lambda *_: answers.pop(0))
        assert meter.time(graph, "fp32") == good
        assert len(answers) == 1


def test_precision__unknown_is_an_error_before_anything_runs(
    meter: LatencyMeter, runtime: Runtime, graph: bytes
) -> None:
    with pytest.raises(UnknownNameError, match="int3"):
        LatencyMeter(CPU, runtime, precisions=["int3"])
    with pytest.raises(UnknownNameError, match="fp32"):
        meter.measure(graph, "int3", "a")


def test_measure__broken_graph_stores_nothing(meter: LatencyMeter) -> None:
    with pytest.raises(EngineError):
        meter.measure(b"broken", "fp32", "a")
    assert meter.find("fp32", "a") is None


def test_isolated__answers_for_the_same_environment(
    meter: LatencyMeter, runtime: Runtime, store: MemoryStore, graph: bytes
) -> None:
    first = meter.measure(graph, "fp32", "a")
    with LatencyMeter(
        CPU, runtime, precisions=["fp32"], store=store, settings=QUICK, isolated=True
    ) as other:
        assert other.environment("fp32") == meter.environment("fp32")
        assert other.find("fp32", "a") == dataclasses.replace(first, source="cached")
        latency = other.measure(graph, "fp32", "b")
        assert set(other.drift) == {"fp32"}
        with pytest.raises(EngineError):
            other.measure(b"broken", "fp32", "c")
    assert latency.source == "measured"
    assert first.ms / 4 < latency.ms < 4 * first.ms


def test_isolated__scale_outlives_the_worker(runtime: Runtime, graph: bytes) -> None:
    with LatencyMeter(CPU, runtime, precisions=["fp32"], settings=QUICK, isolated=True) as meter:
        first = meter.time(graph, "fp32")
        scale = first.ms / first.ratio
        meter._measurer.close()
        second = meter.time(graph, "fp32")
    assert second.ms / second.ratio == pytest.approx(scale, rel=1e-9)


def test_isolated__candidate_out_of_time_is_an_error(runtime: Runtime, graph: bytes) -> None:
    limits = Limits(build_s=0.001)
    with (
        LatencyMeter(CPU, runtime, settings=QUICK, isolated=True, limits=limits) as meter,
        pytest.raises(EngineError, match="did not finish within 0\\.001 s"),
    ):
        meter.measure(graph, "fp32", "a")


class Twice:
    name = "twice"

    def __call__(self, engine: Engine) -> Callable[[], object]:
        return lambda: (engine.run(), engine.run())

    def parts(self, engine: Engine) -> dict[str, Callable[[], object]]:
        return {"one": engine.run}


@pytest.mark.parametrize(
    ("protocol", "around", "name"),
    [
        ("hot", None, "hot"),
        ("hot", Twice(), "hot, twice"),
        ("buffered", None, "buffered 2 ms"),
        ("buffered", Twice(), "buffered 2 ms, twice"),
    ],
)
def test_protocol__is_that_of_the_environment_and_of_the_timing(
    runtime: Runtime,
    graph: bytes,
    protocol: ProtocolName,
    around: Around | None,
    name: str,
) -> None:
    quick = dataclasses.replace(QUICK, pause_ms=2, min_pauses=3, max_pauses=4)
    with LatencyMeter(
        CPU, runtime, precisions=["fp32"], settings=quick, protocol=protocol, around=around
    ) as meter:
        timing = meter.time(graph, "fp32")
        assert meter.environment("fp32").protocol == timing.protocol == name


def test_find__another_protocol_or_batch_does_not_answer(
    meter: LatencyMeter, runtime: Runtime, store: MemoryStore, graph: bytes
) -> None:
    meter.measure(graph, "fp32", "a")
    others: list[dict[str, Any]] = [{"protocol": "buffered"}, {"batch": 2}, {"around": Twice()}]
    for other in others:
        with LatencyMeter(CPU, runtime, precisions=["fp32"], store=store, **other) as one:
            assert one.find("fp32", "a") is None


def test_batch__is_per_run_and_must_be_that_of_the_graph(
    runtime: Runtime, network: ConformanceNet
) -> None:
    graphs = {batch: export_onnx(network, 64, 64, batch=batch) for batch in (1, 8)}
    with LatencyMeter(CPU, runtime, precisions=["fp32"], settings=QUICK, batch=8) as meter:
        many = meter.measure(graphs[8], "fp32", "a")
        with pytest.raises(InputError, match="8 images per run, it takes 1"):
            meter.measure(graphs[1], "fp32", "b")
    with LatencyMeter(CPU, runtime, precisions=["fp32"], settings=QUICK) as meter:
        one = meter.measure(graphs[1], "fp32", "a")
    assert (one.environment.batch, many.environment.batch) == (1, 8)
    assert many.ms > 2 * one.ms


def test_batch__of_no_images_is_an_error(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="at least 1 image"):
        LatencyMeter(CPU, runtime, batch=0)


def test_lock__is_waited_for_and_given_back(
    runtime: Runtime, graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    heard: list[str] = []
    other = contextlib.ExitStack()

    def end_the_other(message: str) -> None:
        heard.append(message)
        other.close()

    lock = DeviceLock(CPU.device(), limit_s=1)
    with LatencyMeter(
        CPU, runtime, precisions=["fp32"], settings=QUICK, on_wait=end_the_other
    ) as meter:
        meter._lock._notice_s = 0.0
        other.enter_context(lock.held())
        meter.measure(graph, "fp32", "a")
        assert len(heard) == 1
        with lock.held():  # not for the life of the meter
            assert meter.find("fp32", "a") is not None
            meter.measure(graph, "fp32", "a")  # known, so nothing is measured
    assert len(heard) == 1


def test_lock__is_held_while_it_measures(
    runtime: Runtime, graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with LatencyMeter(CPU, runtime, precisions=["fp32"], settings=QUICK) as meter:
        measure = meter._measurer.measure

        def refused(*arguments: Any) -> Timing:
            with pytest.raises(MeasurementError, match="kept"):
                DeviceLock(CPU.device(), limit_s=0.05).held().__enter__()
            return measure(*arguments)

        monkeypatch.setattr(meter._measurer, "measure", refused)
        assert meter.measure(graph, "fp32", "a").ms > 0


@pytest.fixture
def disturbed(
    runtime: Runtime, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[bool], bool], LatencyMeter]:
    """`disturbed(answers, strict)`: a meter whose measurements are disturbed, or not, in turns."""
    with LatencyMeter(CPU, runtime, precisions=["fp32"], settings=QUICK) as meter:
        good = dataclasses.replace(meter.time(graph, "fp32"), converged=True)

    def make(answers: list[bool], strict: bool) -> LatencyMeter:
        made = LatencyMeter(CPU, runtime, precisions=["fp32"], settings=QUICK, strict=strict)
        timings = [dataclasses.replace(good, disturbed=one, other_load=0.7) for one in answers]
        monkeypatch.setattr(made._measurer, "measure", lambda *_: timings.pop(0))
        return made

    return make


def test_disturbed__is_measured_again(
    disturbed: Callable[[list[bool], bool], LatencyMeter], graph: bytes
) -> None:
    with disturbed([True, False], True) as meter:
        assert not meter.time(graph, "fp32").disturbed


def test_disturbed__is_warned_about(
    disturbed: Callable[[list[bool], bool], LatencyMeter], graph: bytes
) -> None:
    with (
        disturbed([True, True], False) as meter,
        pytest.warns(UserWarning, match="Others used the processor"),
    ):
        assert meter.time(graph, "fp32").disturbed


def test_disturbed__is_refused_by_a_strict_meter(
    disturbed: Callable[[list[bool], bool], LatencyMeter], graph: bytes
) -> None:
    with (
        disturbed([True, True], True) as meter,
        pytest.raises(MeasurementError, match=r"0\.7 CPUs busy"),
    ):
        meter.measure(graph, "fp32", "a")
    assert meter.find("fp32", "a") is None


def test_close__can_be_used_again(meter: LatencyMeter, graph: bytes) -> None:
    meter.measure(graph, "fp32", "a")
    meter.close()
    assert meter.drift == {}
    assert meter.measure(graph, "fp32", "b").source == "measured"
