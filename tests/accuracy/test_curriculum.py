from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.accuracy.batches import BatchSampler
from nas.accuracy.curriculum import Curriculum
from nas.accuracy.dataset import Annotations, Dataset, Split
from nas.errors import InputError


@pytest.fixture(scope="session")
def train(few_digits: Dataset) -> Split:
    return few_digits.train


def _with(split: Split, *boxes: list[list[float]]) -> Split:
    """Return the first images with these boxes."""
    one = split.subset("train", range(len(boxes)))
    objects = tuple(Annotations(np.array(each), np.zeros(len(each))) for each in boxes)
    return dataclasses.replace(one, annotations=objects)


FAR, NEAR = [[0, 0, 20, 20], [60, 60, 80, 80]], [[0, 0, 20, 20], [5, 5, 25, 25]]


@pytest.mark.parametrize(
    ("weights", "easy", "hard"),
    [
        ({"count": 1.0}, FAR[:1], FAR),
        ({"crowding": 1.0}, FAR, NEAR),
        ({"smallness": 1.0}, [[0, 0, 40, 40]], [[0, 0, 10, 10]]),
        ({"smallness": 1.0}, [], [[0, 0, 40, 40]]),
    ],
)
def test_difficulty__of_what_is_weighed(train: Split, weights, easy, hard):
    first, second = Curriculum(**weights).difficulty(_with(train, easy, hard))
    assert first < second


def test_difficulty__equal_images_are_equally_difficult(train: Split):
    assert Curriculum(count=1.0).difficulty(_with(train, FAR, NEAR)).tolist() == [0, 0]


@given(st.integers(0, 3), st.integers(1, 9), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_order__easiest_first_then_all(few_digits: Dataset, seed: int, batch: int, full_at: float):
    split, iterations = few_digits.train, 60
    curriculum = Curriculum(count=1.0, smallness=1.0, full_at=full_at)
    order = curriculum.order(split, batch, iterations, seed)
    ranks = np.argsort(np.argsort(curriculum.difficulty(split), kind="stable"))
    for step in range(iterations):
        limit = len(split) if step >= round(full_at * iterations) else len(split) * 2 // 3
        limit = len(split) // 3 if step < round(0.4 * full_at * iterations) else limit
        assert (ranks[order(step)] < limit).all()
        assert len(order(step)) == batch


def test_order__is_a_function_of_seed_and_step(train: Split):
    curriculum = Curriculum(crowding=1.0)
    first, again, other = (curriculum.order(train, 4, 50, seed) for seed in (1, 1, 2))
    ahead = [first(step).tolist() for step in range(50)]
    assert [again(step).tolist() for step in reversed(range(50))] == ahead[::-1]
    assert [other(step).tolist() for step in range(50)] != ahead


def test_order__off_is_the_usual_one(train: Split):
    usual, order = BatchSampler(len(train), 5, 3), Curriculum().order(train, 5, 40, 3)
    assert all((usual(step) == order(step)).all() for step in range(40))


@pytest.mark.parametrize("wrong", [{"count": -1.0}, {"smallness": float("nan")}, {"full_at": 2.0}])
def test_curriculum__what_cannot_be(wrong: dict[str, float]):
    with pytest.raises(InputError, match="curriculum"):
        Curriculum(**wrong)
