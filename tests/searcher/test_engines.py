"""Engines of detectors that detect, compared with their networks on real images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from heard import Heard
from hypothesis import given
from hypothesis import strategies as st
from processor import needs_bf16

from nas.accuracy.dataset import Dataset
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.evaluate import Accuracy, Agreement
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_detector
from nas.errors import EngineError
from nas.latency.quantization import quantize
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.searcher.database import Database
from nas.searcher.engines import (
    COMPARED_IMAGES,
    LEAST_AGREEMENT,
    TrainedGraph,
    doubt_about,
    score_engine,
    trained_graph,
)
from nas.searcher.evaluation import AccuracyJudge
from nas.space.architecture import Candidate
from nas.space.space import load_space

SPACE = load_space("digits")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Scored on the images that it is trained on, so that a few steps find something."""
    recipe = DigitsRecipe(train=20, validation=1, test=1, size=64)
    made = digits_dataset(recipe, tmp_path_factory.mktemp("digits"))
    return dataclasses.replace(made, validation=made.train.subset("validation", range(20)))


def candidate_in(precision: str) -> Candidate:
    architecture = SPACE.candidate(SPACE.anchors["min"], 10).architecture
    return Candidate.model_validate({"architecture": architecture, "precision": precision})


def trained(dataset: Dataset, seed: int) -> Detector:
    detector = Detector(candidate_in("fp32").architecture, seed=seed)
    train_detector(detector, dataset.train, Recipe(iterations=60, batch_size=8, seed=seed))
    return detector


@pytest.fixture(scope="module")
def detector(dataset: Dataset) -> Detector:
    return trained(dataset, 0)


@pytest.fixture(scope="module")
def another(dataset: Dataset) -> Detector:
    return trained(dataset, 1)


def score(graph: TrainedGraph, precision: str, dataset: Dataset) -> Accuracy:
    accuracy, _ = score_engine(
        graph,
        candidate_in(precision),
        OpenVinoRuntime(),
        dataset.validation,
        weights="trained",
    )
    return accuracy


@pytest.mark.parametrize(
    ("precision", "least"),
    [("fp32", 1.0), pytest.param("bf16", 0.9, marks=needs_bf16), ("int8", 0.8)],
)
def test_score_engine__agrees_with_its_own_network(
    dataset: Dataset, detector: Detector, precision: str, least: float
) -> None:
    graph = trained_graph(detector, candidate_in(precision), dataset.train)
    accuracy = score(graph, precision, dataset)
    assert accuracy.agreement is not None
    assert accuracy.agreement.share is not None
    assert accuracy.agreement.share >= least
    assert accuracy.agreement.reference == "torch fp32"
    assert accuracy.agreement.images == 10  # every second one of 20, as 16 are the most
    assert doubt_about(accuracy, precision) == ""


def test_score_engine__in_fp32_of_another_network_fails_with_its_figures(
    dataset: Dataset, detector: Detector, another: Detector
) -> None:
    right, wrong = (
        trained_graph(one, candidate_in("fp32"), dataset.train) for one in (detector, another)
    )
    with pytest.raises(EngineError, match=r"must find 95%.*: \d+\.\d% of.* torch fp32"):
        score(dataclasses.replace(right, engine=wrong.engine), "fp32", dataset)


def test_score_engine__in_int8_with_wrong_scales_is_doubted(
    dataset: Dataset, detector: Detector
) -> None:
    graph = trained_graph(detector, candidate_in("int8"), dataset.train)
    dark = dataset.train.resized(64, 64).images[:1].astype("float32") / 255 / 50
    accuracy = score(dataclasses.replace(graph, engine=quantize(graph.fp32, dark)), "int8", dataset)
    assert accuracy.agreement is not None
    assert str(accuracy.agreement) in doubt_about(accuracy, "int8")


def test_score_engine__nothing_found_is_no_agreement(dataset: Dataset) -> None:
    untrained = Detector(candidate_in("fp32").architecture)
    graph = trained_graph(untrained, candidate_in("fp32"), dataset.train)
    agreement = score(graph, "fp32", dataset).agreement
    assert agreement == Agreement(None, 10, "torch fp32")
    assert "nothing found to compare" in str(agreement)


def test_score_engine__finds_an_export_that_went_wrong(
    dataset: Dataset, detector: Detector, another: Detector
) -> None:
    right, wrong = (
        trained_graph(one, candidate_in("fp32"), dataset.train) for one in (detector, another)
    )
    with pytest.raises(EngineError, match="torch fp32"):
        score(dataclasses.replace(wrong, module=right.module), "fp32", dataset)


@given(st.sampled_from([*LEAST_AGREEMENT, "fp8"]), st.floats(0, 1))
def test_doubt_about__bounds_hold_for_every_precision(precision: str, share: float) -> None:
    accuracy = Accuracy(0.5, 0.7, None, None, None, 8, "validation", "trained", "engine")
    assert doubt_about(accuracy, precision) == ""
    compared = dataclasses.replace(
        accuracy, agreement=Agreement(share, COMPARED_IMAGES, "torch fp32")
    )
    least = LEAST_AGREEMENT.get(precision, 0.8)
    assert bool(doubt_about(compared, precision)) == (share < least)


def test_accuracy_judge__scores_again_what_was_never_compared(
    dataset: Dataset, tmp_path: Path
) -> None:
    candidate, heard = candidate_in("fp32"), Heard()
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        digest = candidate.architecture.digest
        database.add_architecture(digest, space="s", text="t")
        supernet = Supernet(SPACE.covering(10))
        judge = AccuracyJudge(supernet, "w", dataset, OpenVinoRuntime(), database, heard)
        first, accuracy = judge(candidate)
        old = dataclasses.replace(accuracy, map50_95=0.9, agreement=None)
        for stored, expected in ((old, accuracy), (accuracy, accuracy)):
            row = database.add_accuracy(
                digest, "fp32", stored, data=dataset.digest, weights_digest=judge.weights
            )
            assert judge(candidate) == (row, expected)
            assert row == first
    assert heard.warnings == []
