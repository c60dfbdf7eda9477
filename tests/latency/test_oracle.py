from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import EngineError, InputError, UnknownNameError
from nas.latency.clock import ClockSettings, Timing
from nas.latency.hardware import Environment, Hardware
from nas.latency.oracle import Latency, LatencyOracle, MemoryStore
from nas.latency.runtimes.base import Runtime
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.latency.worker import Limits

CPU = Hardware.named("cpu")
QUICK = ClockSettings(half_width=0.9, min_blocks=3, max_blocks=4, block_ms=2, warmup_ms=2)
ENVIRONMENT = Environment(
    device="a processor",
    runtime="openvino",
    runtime_version="1",
    precision="fp32",
    threads=1,
    protocol="hot",
    clock="wall",
    reference="0" * 16,
)
POSITIVE = st.floats(1e-6, 1e6)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(params=[OpenVinoRuntime, OnnxRuntime])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    made: Runtime = request.param()
    return made


@pytest.fixture
def oracle(runtime: Runtime, store: MemoryStore) -> Iterator[LatencyOracle]:
    with LatencyOracle(CPU, runtime, precisions=["fp32"], store=store, settings=QUICK) as made:
        yield made


@given(st.lists(POSITIVE, min_size=3, max_size=3).map(sorted), st.sampled_from(["table", "cached"]))
def test_latency__survives_json(values: list[float], source: str) -> None:
    low, ms, high = values
    latency = Latency(ms, low, high, source, ENVIRONMENT)
    assert Latency.from_dict(json.loads(json.dumps(latency.as_dict()))) == latency


@pytest.mark.parametrize("values", [(0, 0, 0), (1, 2, 3), (3, 1, 2), (1, 1, float("inf"))])
def test_latency__impossible_interval_is_an_error(values: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="low_ms <= ms <= high_ms"):
        Latency(*values, "measured", ENVIRONMENT)


def test_latency__unknown_source_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="guessed"):
        Latency(1, 1, 1, "guessed", ENVIRONMENT)


def test_measure__first_measured_then_cached(oracle: LatencyOracle, graph: bytes) -> None:
    first = oracle.measure(graph, "fp32", "a")
    again = oracle.measure(b"not looked at", "fp32", "a")
    assert first.source == "measured"
    assert again == dataclasses.replace(first, source="cached")
    assert oracle.find("fp32", "a") == again
    assert oracle.find("fp32", "b") is None


def test_measure__more_work_is_slower(
    oracle: LatencyOracle, graph: bytes, large_graph: bytes
) -> None:
    small, large = (oracle.measure(one, "fp32", one.hex()[:9999]) for one in (graph, large_graph))
    assert large.ms > 4 * small.ms


def test_measure__another_oracle_answers_from_the_store(
    oracle: LatencyOracle, runtime: Runtime, store: MemoryStore, graph: bytes
) -> None:
    first = oracle.measure(graph, "fp32", "a")
    with LatencyOracle(CPU, runtime, store=store, settings=QUICK) as other:
        found = other.find("fp32", "a")
    assert found is not None
    assert found.ms == first.ms


def test_find__another_environment_does_not_answer(
    oracle: LatencyOracle, runtime: Runtime, store: MemoryStore, graph: bytes
) -> None:
    oracle.measure(graph, "fp32", "a")
    with LatencyOracle(CPU, runtime, store=store, threads=2) as other:
        assert other.find("fp32", "a") is None


def test_environment__says_what_ran(oracle: LatencyOracle, runtime: Runtime) -> None:
    environment = oracle.environment("fp32")
    assert (environment.runtime, environment.runtime_version) == (runtime.name, runtime.version())
    assert (environment.precision, environment.clock) == ("fp32", "process CPU time")


def test_drift__is_the_move_from_the_stored_calibration(
    oracle: LatencyOracle, runtime: Runtime, store: MemoryStore
) -> None:
    assert oracle.calibrate() == {"fp32": 0.0}
    digest = oracle.environment("fp32").digest
    now = store.find_reference(digest)
    assert now is not None
    store.add_reference(digest, now * 4, now * 4, now * 4)
    with LatencyOracle(CPU, runtime, precisions=["fp32"], store=store, settings=QUICK) as later:
        assert -0.95 < later.calibrate()["fp32"] < -0.4
    assert store.find_reference(digest) == now * 4


def test_measure__uses_the_stored_scale(runtime: Runtime, graph: bytes) -> None:
    answers = []
    for scale in (1.0, 1000.0):
        store = MemoryStore()
        with LatencyOracle(CPU, runtime, precisions=["fp32"], store=store, settings=QUICK) as one:
            store.add_reference(one.environment("fp32").digest, scale, scale, scale)
            answers.append(one.measure(graph, "fp32", "a").ms)
    assert 200 < answers[1] / answers[0] < 5000


def test_time__unconverged_measurement_is_repeated_once(
    runtime: Runtime, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LatencyOracle(CPU, runtime, precisions=["fp32"], settings=QUICK) as oracle:
        good = oracle.time(graph, "fp32")
        bad = dataclasses.replace(good, converged=False, high_ms=good.ms * 9)
        answers: list[Timing] = [bad, good, good]
        monkeypatch.setattr(oracle._measurer, "measure", lambda *_: answers.pop(0))
        assert oracle.time(graph, "fp32") == good
        assert len(answers) == 1


def test_precision__unknown_is_an_error_before_anything_runs(
    oracle: LatencyOracle, runtime: Runtime, graph: bytes
) -> None:
    with pytest.raises(UnknownNameError, match="int3"):
        LatencyOracle(CPU, runtime, precisions=["int3"])
    with pytest.raises(UnknownNameError, match="fp32"):
        oracle.measure(graph, "int3", "a")


def test_measure__broken_graph_stores_nothing(oracle: LatencyOracle) -> None:
    with pytest.raises(EngineError):
        oracle.measure(b"broken", "fp32", "a")
    assert oracle.find("fp32", "a") is None


def test_isolated__answers_for_the_same_environment(
    oracle: LatencyOracle, runtime: Runtime, store: MemoryStore, graph: bytes
) -> None:
    first = oracle.measure(graph, "fp32", "a")
    with LatencyOracle(
        CPU, runtime, precisions=["fp32"], store=store, settings=QUICK, isolated=True
    ) as other:
        assert other.environment("fp32") == oracle.environment("fp32")
        assert other.find("fp32", "a") == dataclasses.replace(first, source="cached")
        latency = other.measure(graph, "fp32", "b")
        assert set(other.drift) == {"fp32"}
        with pytest.raises(EngineError):
            other.measure(b"broken", "fp32", "c")
    assert latency.source == "measured"
    assert first.ms / 4 < latency.ms < 4 * first.ms


def test_isolated__scale_outlives_the_worker(runtime: Runtime, graph: bytes) -> None:
    with LatencyOracle(CPU, runtime, precisions=["fp32"], settings=QUICK, isolated=True) as oracle:
        first = oracle.time(graph, "fp32")
        scale = first.ms / first.ratio
        oracle._measurer.close()
        second = oracle.time(graph, "fp32")
    assert second.ms / second.ratio == pytest.approx(scale, rel=1e-9)


def test_isolated__candidate_out_of_time_is_an_error(runtime: Runtime, graph: bytes) -> None:
    limits = Limits(build_s=0.001)
    with (
        LatencyOracle(CPU, runtime, settings=QUICK, isolated=True, limits=limits) as oracle,
        pytest.raises(EngineError, match="did not finish within 0\\.001 s"),
    ):
        oracle.measure(graph, "fp32", "a")


def test_close__can_be_used_again(oracle: LatencyOracle, graph: bytes) -> None:
    oracle.measure(graph, "fp32", "a")
    oracle.close()
    assert oracle.drift == {}
    assert oracle.measure(graph, "fp32", "b").source == "measured"
