"""Rungs of training: who goes on, and that going on is training as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.accuracy.dataset import Dataset
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_detector
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.model.detector import Detector
from nas.searcher.database import Database
from nas.searcher.progress import Silent
from nas.searcher.rungs import OwnTraining, best_first, rungs_of
from nas.space.front import front_indices
from nas.space.space import load_space

SPACE = load_space("digits")
SMALLEST = SPACE.candidate(SPACE.anchors["min"], 10).architecture
RECIPE = Recipe(iterations=9, batch_size=4)
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    recipe = DigitsRecipe(train=12, validation=6, test=1, size=64)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    ("iterations", "expected"), [(1200, (133, 400, 1200)), (9, (1, 3, 9)), (4, (1, 4)), (1, (1,))]
)
def test_rungs_of__a_ninth_a_third_and_all(iterations: int, expected: tuple[int, ...]) -> None:
    assert rungs_of(iterations) == expected


@given(POINTS)
def test_best_first__fronts_come_one_after_the_other(points: list[tuple[int, int]]) -> None:
    up, down = np.array(points, float).reshape(-1, 2).T
    order = best_first(up, down)
    assert sorted(order.tolist()) == list(range(len(points)))
    while len(order):
        front = front_indices(up[order], down[order])
        assert set(order[: len(front)]) == set(order[front])
        order = order[len(front) :]


def test_best_first__ends_of_a_front_and_lonely_points_come_first() -> None:
    accuracy = [0.1, 0.30, 0.32, 0.6, 0.9]
    latency = [1.0, 2.00, 2.05, 3.0, 4.0]
    order = best_first(accuracy, latency).tolist()
    assert set(order[:2]) == {0, 4}
    assert order[2] == 3


def test_own_training__rung_by_rung_gives_the_network_of_one_training(
    dataset: Dataset, tmp_path: Path
) -> None:
    plain = Detector(SMALLEST, seed=RECIPE.seed)
    train_detector(plain, dataset.train, RECIPE)
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        training = OwnTraining(
            dataset, OnnxRuntime(), database, RECIPE, "w", tmp_path / "rungs", Silent()
        )
        first = training._trained(SMALLEST, 1)
        training._trained(SMALLEST, 3)
        whole = training._trained(SMALLEST, 9)
    weights = zip(plain.parameters(), whole.parameters(), first.parameters(), strict=True)
    same = [(torch.equal(one, two), torch.equal(one, early)) for one, two, early in weights]
    assert all(whole for whole, _ in same)
    assert not all(early for _, early in same)
    kept = [path.name for path in (tmp_path / "rungs").rglob("*.checkpoint")]
    assert kept == ["9.checkpoint"]
    training.end()
    assert not (tmp_path / "rungs").exists()
