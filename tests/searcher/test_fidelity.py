"""Part of the validation images first: who is stopped, and what is said of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nas.accuracy.dataset import Dataset
from nas.accuracy.detections import Detections
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.errors import InputError
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.model.supernet import Supernet
from nas.searcher.database import Database
from nas.searcher.estimate import Estimate
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.fidelity import LEAST_CHANCE, Parts, Rival, SubsetScore, compare, subset_size
from nas.searcher.request import Request
from nas.space.architecture import Candidate
from nas.space.space import load_space
from nas.units import Budget

SPACE = load_space("digits")
SCORES = st.floats(0, 1)
RESAMPLES = arrays(np.float64, 20, elements=SCORES)


def candidate(anchor: str) -> Candidate:
    return Candidate(architecture=SPACE.candidate(SPACE.anchors[anchor], 10).architecture)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    recipe = DigitsRecipe(train=20, validation=24, test=1, size=64)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    ("images", "asked", "expected"),
    [
        (300, None, None),
        (499, None, None),
        (500, None, 150),
        (5000, None, 1000),
        (100_000, None, 2000),
        (5000, 0, None),
        (5000, 200, 200),
        (300, 300, None),
        (300, 150, 150),
    ],
)
def test_subset_size__is_a_fifth_of_many(
    images: int, asked: int | None, expected: int | None
) -> None:
    assert subset_size(images, asked) == expected


@pytest.mark.parametrize("subset", [-1, 1, 149])
def test_request__refuses_a_subset_that_decides_nothing(subset: int) -> None:
    with pytest.raises(InputError, match="at least 150 images"):
        Request(budget=Budget(1.0), subset=subset)


@given(size=st.integers(1, 23))
def test_parts__are_the_whole_and_merge_in_its_order(dataset: Dataset, size: int) -> None:
    split = dataset.validation
    parts = Parts.of(split, size)
    assert (len(parts.first), len(parts.rest)) == (size, 24 - size)
    assert sorted(parts.first.contents + parts.rest.contents) == sorted(split.contents)
    numbered = {content: index for index, content in enumerate(split.contents)}

    def found(contents: tuple[str, ...]) -> list[Detections]:
        return [
            Detections(
                np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.array([numbered[c]])
            )
            for c in contents
        ]

    merged = parts.merged(found(parts.first.contents), found(parts.rest.contents))
    assert [int(one.labels[0]) for one in merged] == list(range(24))


@given(SCORES, SCORES, RESAMPLES, RESAMPLES, st.integers(1, 50))
def test_compare__mirrors_and_knows_everything_on_all_images(
    one: float, other: float, draws: np.ndarray, others: np.ndarray, more: int
) -> None:
    first, second = SubsetScore(one, draws, 50), SubsetScore(other, others, 50)
    here, there = compare(first, second, 50 + more), compare(second, first, 50 + more)
    assert here.difference == -there.difference
    assert here.low == pytest.approx(-there.high, abs=1e-12)
    assert here.chance + there.chance <= 1 + 1e-12
    certain = compare(first, second, 50)
    assert certain.low == certain.high == one - other
    assert certain.chance == float(one > other)
    assert here.high - here.low >= certain.high - certain.low


def test_compare__equal_engines_cannot_join_and_no_objects_decide_nothing() -> None:
    draws = np.random.default_rng(0).random(50)
    same = SubsetScore(0.5, draws, 50)
    assert compare(same, same, 300).chance == 0
    empty = SubsetScore(float("nan"), np.zeros(0), 50)
    assert compare(empty, empty, 300).chance == 1


def test_compare__paired_draws_tell_what_single_ones_cannot() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.03, 200)  # which images were drawn moves both alike
    better = SubsetScore(0.50, 0.50 + shared, 150)
    worse = SubsetScore(0.48, 0.48 + shared + rng.normal(0, 0.003, 200), 150)
    assert compare(worse, better, 500).chance < LEAST_CHANCE
    apart = SubsetScore(0.48, 0.48 + rng.normal(0, 0.03, 200), 150)
    assert compare(apart, better, 500).chance > LEAST_CHANCE


@given(SCORES, SCORES, SCORES, RESAMPLES, RESAMPLES)
def test_estimate__is_the_rival_plus_the_difference(
    rival: float, one: float, other: float, draws: np.ndarray, others: np.ndarray
) -> None:
    found = compare(SubsetScore(one, draws, 150), SubsetScore(other, others, 150), 500)
    estimate = found.estimate(rival, 150)
    assert estimate.map50_95 == pytest.approx(min(max(rival + one - other, 0), 1))
    assert 0 <= estimate.low <= estimate.high <= 1
    assert (estimate.fidelity, estimate.images) == ("subset", 150)


def test_accuracy_judge__stops_what_cannot_beat_its_rival(dataset: Dataset, tmp_path: Path) -> None:
    small, large = candidate("min"), candidate("max")
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        for one in (small, large):
            database.add_architecture(one.architecture.digest, space="s", text="t")
        supernet = Supernet(SPACE.covering(10))
        settings = (supernet, "w", dataset, OnnxRuntime(), database)
        judge = AccuracyJudge(*settings, subset=10)
        scored = judge.against(small, None)
        assert not isinstance(scored, Estimate)
        assert scored[1].images == 24
        # Untrained networks find nothing: none beats another.
        stopped = judge.against(large, Rival(small, 0.4))
        assert isinstance(stopped, Estimate)
        assert stopped.map50_95 == pytest.approx(0.4, abs=0.01)
        assert stopped.images == 10
        assert judge.known(large) is None
        # Both are known now: the same answers cost nothing, in another process, too.
        again = AccuracyJudge(*settings, subset=10)
        assert again.against(large, Rival(small, 0.4)) == stopped
        assert again.against(small, None) == scored
        assert AccuracyJudge(*settings).against(large, Rival(small, 0.4)) == judge(large)


def test_accuracy_judge__in_parts_scores_as_at_once(dataset: Dataset, tmp_path: Path) -> None:
    learned = dataclasses.replace(dataset, validation=dataset.train.subset("validation", range(20)))
    whole = []
    for subset in (None, 8):
        with Database(f"sqlite:///{tmp_path}/{subset}.db") as database:
            one = candidate("min")
            database.add_architecture(one.architecture.digest, space="s", text="t")
            supernet = Supernet(SPACE.covering(10))
            judge = AccuracyJudge(supernet, "w", learned, OnnxRuntime(), database, subset=subset)
            found = judge.against(one, None)
            assert not isinstance(found, Estimate)
            whole.append(dataclasses.replace(found[1], agreement=None))
    assert whole[0] == whole[1]
