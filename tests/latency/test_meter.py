from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from nas.errors import EngineError, UnknownNameError
from nas.latency.clock import ClockSettings, Timing
from nas.latency.hardware import Hardware
from nas.latency.meter import LatencyMeter
from nas.latency.runtimes.base import Runtime
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.latency.store import MemoryStore
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


def test_close__can_be_used_again(meter: LatencyMeter, graph: bytes) -> None:
    meter.measure(graph, "fp32", "a")
    meter.close()
    assert meter.drift == {}
    assert meter.measure(graph, "fp32", "b").source == "measured"
