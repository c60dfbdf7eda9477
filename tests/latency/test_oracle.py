"""What an oracle says, from measurements that obey a law which the test knows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch

from nas.errors import InputError, UnknownNameError
from nas.latency.clock import ClockSettings
from nas.latency.environment import Environment
from nas.latency.features import FEATURES
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.meter import LatencyMeter
from nas.latency.onnx_export import export_onnx
from nas.latency.oracle import EstimatingOracle, MeasuringOracle, Network, TableOracle
from nas.latency.predictor import LEAST_SAMPLES
from nas.latency.runtimes.conformance import ConformanceNet
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.table import LatencyTable, TableRow
from nas.model.detector import Detector
from nas.space.architecture import Architecture
from nas.space.space import load_space
from nas.units import Budget

CPU = Hardware.named("cpu")
QUICK = ClockSettings(half_width=0.9, min_blocks=3, max_blocks=4, block_ms=2, warmup_ms=2)
SPACE = load_space("digits")
ENVIRONMENT = Environment(
    device="a card",
    runtime="tensorrt",
    runtime_version="10",
    precision="fp16",
    threads=1,
    protocol="hot",
    clock="wall",
    reference="0" * 16,
)


class _KnownMeter:
    """A meter whose measurements obey a law, and which counts them."""

    hardware = CPU
    precisions = ("fp32",)
    drift: ClassVar[dict[str, float]] = {}

    def __init__(self, law: Callable[[str], float]) -> None:
        self._law = law
        self.known: dict[str, Latency] = {}
        self.measured: list[str] = []

    def environment(self, precision: str) -> Environment:
        if precision not in self.precisions:
            raise UnknownNameError.of("precision", precision, self.precisions)
        return ENVIRONMENT

    def find(self, precision: str, key: str) -> Latency | None:
        self.environment(precision)
        return self.known.get(key)

    def measure(self, onnx: bytes, precision: str, key: str) -> Latency:
        assert onnx == b"graph"
        self.measured.append(key)
        ms = self._law(key)
        found = Latency(ms, ms, ms, "measured", self.environment(precision))
        self.known[key] = Latency(ms, ms, ms, "cached", ENVIRONMENT)
        return found


def _features(key: str) -> np.ndarray:
    return np.random.default_rng(int(key)).uniform(1, 3, len(FEATURES))


def _law(key: str) -> float:
    return float(_features(key).mean())


def _network(key: str) -> Network:
    """A network whose features are given: what they are made from is tested elsewhere."""
    network = Network(key, lambda: b"graph")
    network.__dict__["features"] = _features(key)
    return network


def _oracle(**settings: Any) -> tuple[MeasuringOracle, _KnownMeter]:
    meter = _KnownMeter(_law)
    return MeasuringOracle(cast("LatencyMeter", meter), **settings), meter


def test_answer__a_prediction_that_decides_spares_the_measurement() -> None:
    oracle, meter = _oracle()
    for index in range(LEAST_SAMPLES + 10):
        oracle.answer(_network(str(index)), "fp32")
    measured = len(meter.measured)
    budget = Budget(2.0)
    answers = {str(n): oracle.answer(_network(str(n)), "fp32", budget) for n in range(1000, 1200)}
    predicted = {key: one for key, one in answers.items() if one.source == "predicted"}
    assert len(predicted) + len(meter.measured) - measured == 200
    assert len(predicted) > 100
    for key, one in predicted.items():
        assert not one.low_ms <= budget.latency_ms < one.high_ms
        assert one.ms == pytest.approx(_law(key), rel=0.2)
    wrong = [key for key, one in predicted.items() if budget.admits(one.ms) != (_law(key) <= 2.0)]
    assert len(wrong) <= 0.05 * len(predicted)


def test_answer__without_a_budget_it_measures() -> None:
    oracle, meter = _oracle()
    for index in range(LEAST_SAMPLES + 5):
        assert oracle.answer(_network(str(index)), "fp32").source == "measured"
    assert oracle.answer(_network("0"), "fp32").source == "cached"
    assert len(meter.measured) == LEAST_SAMPLES + 5


def test_answer__too_few_measurements_predict_nothing() -> None:
    oracle, _ = _oracle()
    for index in range(LEAST_SAMPLES):
        found = oracle.answer(_network(str(index)), "fp32", Budget(1000.0))
        assert found.source == "measured"
    assert oracle.answer(_network("999"), "fp32", Budget(1000.0)).source == "predicted"


def test_answer__told_to_measure_it_never_predicts() -> None:
    oracle, meter = _oracle(predicts=False)
    for index in range(LEAST_SAMPLES + 5):
        oracle.answer(_network(str(index)), "fp32", Budget(1000.0))
    assert len(meter.measured) == LEAST_SAMPLES + 5


def test_confirm__measures_whatever_is_known(graph: bytes) -> None:
    with LatencyMeter(CPU, OnnxRuntime(), settings=QUICK) as meter:
        oracle = MeasuringOracle(meter)
        network = Network("key", lambda: graph)
        first = oracle.answer(network, "fp32")
        again = oracle.confirm(network, graph, "fp32")
        assert (first.source, again.source) == ("measured", "measured")
        assert oracle.answer(network, "fp32") == Latency(**{**vars(first), "source": "cached"})


def _architectures(count: int) -> list[Architecture]:
    generator = np.random.default_rng(0)
    points = [SPACE.sample(generator) for _ in range(count)]
    return [SPACE.candidate(point, 10).architecture for point in points]


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    rows = [
        TableRow(one, _features(str(n)), _law(str(n)), 0.9 * _law(str(n)), 1.1 * _law(str(n)))
        for n, one in enumerate(_architectures(LEAST_SAMPLES + 6))
    ]
    return LatencyTable.of(
        rows,
        ENVIRONMENT,
        hardware="l4",
        space="digits",
        space_digest="0",
        created="2026-01-01",
        commit="0",
        versions={"python": "3"},
    )


def test_table__knows_its_rows_and_predicts_the_rest(table: LatencyTable) -> None:
    oracle = TableOracle(Hardware.named("l4"), {"fp16": table})
    known = oracle.answer(Network(table.rows[3].architecture.digest, bytes), "fp16", Budget(1.0))
    assert (known.ms, known.source) == (table.rows[3].ms, "table")
    other = oracle.answer(_network("77"), "fp16")
    assert other.source == "predicted"
    assert other.low_ms < other.ms < other.high_ms
    assert other.environment == ENVIRONMENT
    with pytest.raises(UnknownNameError, match="int8"):
        oracle.answer(_network("77"), "int8")


def test_table__of_an_equal_environment_is_what_it_begins_with(table: LatencyTable) -> None:
    oracle, meter = _oracle(table={"fp32": table})
    assert oracle.answer(_network("500"), "fp32", Budget(1000.0)).source == "predicted"
    assert not meter.measured


def test_table__of_another_environment_is_refused(table: LatencyTable) -> None:
    class Elsewhere(_KnownMeter):
        def environment(self, precision: str) -> Environment:
            return Environment(**{**ENVIRONMENT.as_dict(), "device": precision})

    with pytest.raises(InputError, match="device 'a card' instead of"):
        MeasuringOracle(cast("LatencyMeter", Elsewhere(_law)), table={"fp32": table})


def test_prior__of_another_environment_helps_before_its_scale_is_known(
    table: LatencyTable,
) -> None:
    oracle = MeasuringOracle(
        cast("LatencyMeter", _KnownMeter(lambda key: 7 * _law(key))), prior={"fp32": table}
    )
    for index in range(1000, 1000 + LEAST_SAMPLES):
        oracle.answer(_network(str(index)), "fp32")
    found = oracle.answer(_network("5000"), "fp32", Budget(1000.0))
    assert found.source == "predicted"
    assert found.ms == pytest.approx(7 * _law("5000"), rel=0.1)


def test_estimate__says_what_it_is() -> None:
    torch.manual_seed(0)
    oracle = EstimatingOracle(Hardware.named("l4"))
    detector = Detector(SPACE.candidate(SPACE.anchors["max"], 10).architecture)
    onnx = export_onnx(detector.deploy(), *detector.architecture.input)
    found = oracle.answer(Network("key", lambda: onnx), "fp16", Budget(1.0))
    assert (found.source, found.level) == ("estimated", 0.8)
    assert found.environment.device == "NVIDIA L4"
    assert oracle.confirm(Network("key", lambda: onnx), b"", "fp16") == found
    assert not oracle.measures
    slower = EstimatingOracle(Hardware.named("xavier-nx"))
    assert slower.answer(Network("key", lambda: onnx), "fp16").ms > found.ms


def test_estimate__needs_a_data_sheet_and_fp16() -> None:
    with pytest.raises(InputError, match="lacks"):
        EstimatingOracle(CPU)
    with pytest.raises(UnknownNameError, match="int8"):
        EstimatingOracle(Hardware.named("l4")).answer(Network("key", bytes), "int8")


def test_network__is_exported_once_and_only_if_needed() -> None:
    calls = SimpleNamespace(count=0)

    def export() -> bytes:
        calls.count += 1
        return export_onnx(ConformanceNet(8).eval(), 32, 32)

    network = Network("key", export)
    assert calls.count == 0
    assert network.onnx == network.onnx
    assert network.features.sum() > 0
    assert calls.count == 1
