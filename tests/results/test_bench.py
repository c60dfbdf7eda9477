from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.latency.hardware import Hardware
from nas.latency.meter import LatencyMeter
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
    return Bench(dataset, runtime, LatencyMeter(Hardware.named("cpu"), runtime))


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


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99), ("bf16", 0.7)])
def test_agreement__of_an_engine_with_its_own_network(
    bench: Bench, precision: str, least: float
) -> None:
    detector, candidate = _certain(0), _candidate(precision)
    found = bench.agreement(detector, candidate, bench.graph(detector, candidate))
    assert found.share is not None
    assert found.share >= least
    assert found.images == 6


def test_agreement__of_an_engine_with_another_network(bench: Bench) -> None:
    candidate = _candidate("fp32")
    found = bench.agreement(_certain(0), candidate, bench.graph(_certain(1), candidate))
    assert found.share is not None
    assert found.share < 0.3


def test_agreement__nothing_to_compare(bench: Bench, tmp_path: Path) -> None:
    detector, candidate = Detector(_candidate("fp32").architecture), _candidate("fp32")
    assert bench.agreement(detector, candidate, bench.graph(detector, candidate)).share is None
