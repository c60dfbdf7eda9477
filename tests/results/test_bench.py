from __future__ import annotations

import dataclasses

import pytest
import torch
from processor import needs_bf16

from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.errors import EngineError
from nas.latency.hardware import Hardware
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import MeasuringOracle
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.model.blocks.head import ClassPredictor
from nas.model.detector import Detector
from nas.model.supernet import recalibrate
from nas.results.bench import Bench
from nas.space.architecture import Candidate
from nas.space.space import load_space

SPACE = load_space("digits")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    recipe = DigitsRecipe(train=8, validation=6, test=1, size=64)
    dataset = digits_dataset(recipe, tmp_path_factory.mktemp("digits"))
    runtime = OpenVinoRuntime()
    return Bench(dataset, runtime, MeasuringOracle(LatencyMeter(Hardware.named("cpu"), runtime)))


def _candidate(precision: str) -> Candidate:
    architecture = SPACE.candidate(SPACE.anchors["min"], 10).architecture
    return Candidate.model_validate({"architecture": architecture, "precision": precision})


def _certain(seed: int) -> Detector:
    """A detector of random weights that finds something in every image."""
    detector = Detector(_candidate("fp32").architecture, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in detector.modules():
        if isinstance(module, ClassPredictor):
            torch.nn.init.normal_(module.weight, std=1.0, generator=generator)
    recalibrate(detector, [torch.rand(8, 3, *detector.architecture.input, generator=generator)])
    return detector


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.99), pytest.param("bf16", 0.7, marks=needs_bf16)]
)
def test_bench__scores_and_compares_the_graph_that_is_delivered(
    bench: Bench, precision: str, least: float
) -> None:
    candidate = _candidate(precision)
    graph = bench.graph(_certain(0), candidate)
    for split in (bench.dataset.validation, bench.dataset.test):
        assert split is not None
        agreement = bench.score(graph, candidate, split, "trained").agreement
        assert agreement is not None
        assert agreement.share is not None
        assert agreement.share >= least
        assert agreement.images == len(split)


def test_bench__of_another_network_in_fp32(bench: Bench) -> None:
    candidate = _candidate("fp32")
    graph, wrong = (bench.graph(_certain(seed), candidate) for seed in (0, 1))
    graph = dataclasses.replace(graph, engine=wrong.engine)
    with pytest.raises(EngineError, match="must find 95%"):
        bench.score(graph, candidate, bench.dataset.validation, "trained")
