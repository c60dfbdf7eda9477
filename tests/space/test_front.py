from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.space.front import front_indices, hypervolume, knee_index, multipliers

POINTS = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.floats(0.125, 8, width=32)), min_size=1, max_size=30
)
WORST = (0.0, 10.0)


def _split(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [a for a, _ in points], [b for _, b in points]


def test_front_indices__keeps_the_first_of_equals_and_sorts_by_latency() -> None:
    accuracy = [0.5, 0.2, 0.5, 0.6, 0.1]
    latency = [2.0, 1.0, 2.0, 3.0, 4.0]
    assert front_indices(accuracy, latency).tolist() == [1, 0, 3]


def test_front_indices__never_holds_a_nan() -> None:
    assert front_indices([np.nan, 0.1], [1.0, 2.0]).tolist() == [1]


@given(POINTS)
def test_front_indices__equals_the_definition(points: list[tuple[float, float]]) -> None:
    accuracy, latency = _split(points)
    front = {points[i] for i in front_indices(accuracy, latency)}
    undominated = {
        (a, t)
        for a, t in points
        if not any(b >= a and s <= t and (b > a or s < t) for b, s in points)
    }
    assert front == undominated


@given(POINTS)
def test_front_indices__is_idempotent(points: list[tuple[float, float]]) -> None:
    accuracy, latency = (np.array(values) for values in _split(points))
    front = front_indices(accuracy, latency)
    assert front_indices(accuracy[front], latency[front]).tolist() == list(range(front.size))


@given(POINTS, st.tuples(st.floats(0, 1, width=32), st.floats(0.125, 8, width=32)))
def test_hypervolume__never_shrinks_with_a_point(
    points: list[tuple[float, float]], extra: tuple[float, float]
) -> None:
    before = hypervolume(*_split(points), WORST)
    after = hypervolume(*_split([*points, extra]), WORST)
    assert after >= before - 1e-9


def test_hypervolume__adds_rectangles() -> None:
    assert hypervolume([0.5, 0.8], [1.0, 2.0], (0.0, 4.0)) == pytest.approx(0.5 * 1 + 0.8 * 2)


def test_hypervolume__ignores_points_beyond_the_reference() -> None:
    assert hypervolume([0.5], [5.0], (0.0, 4.0)) == 0.0


def test_knee_index__finds_the_bend() -> None:
    assert knee_index([0.1, 0.8, 0.9], [1.0, 2.0, 9.0]) == 1


def test_knee_index__needs_three_points() -> None:
    assert knee_index([0.1, 0.8], [1.0, 2.0]) is None


def test_pair__refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="equally long"):
        front_indices([0.1], [1.0, 2.0])


@given(POINTS)
def test_multipliers__each_is_the_best_for_its_lambdas(points: list[tuple[float, float]]) -> None:
    accuracy, latency = map(np.array, _split(points))
    found = multipliers(accuracy, latency)
    best = ~np.isnan(found[:, 0])
    assert best.any()
    assert (found[best, 0] <= found[best, 1]).all()
    for low, high in found[best]:
        rate = low + 1 if np.isinf(high) else (low + high) / 2
        scores = accuracy - rate * latency
        (index,) = np.flatnonzero(best & (found[:, 0] == low) & (found[:, 1] == high))[:1]
        assert scores[index] >= scores.max() - 1e-9 * (1 + rate * latency.max())


def test_multipliers__what_lies_below_the_hull_is_never_the_best() -> None:
    accuracy, latency = [0.1, 0.2, 0.5, 0.6], [1.0, 2.0, 3.0, 5.0]
    found = multipliers(accuracy, latency)
    np.testing.assert_allclose(found[[0, 2, 3]], [[0.2, np.inf], [0.05, 0.2], [0, 0.05]])
    assert np.isnan(found[1]).all()


def test_multipliers__of_nothing_and_of_one_point() -> None:
    assert multipliers([], []).shape == (0, 2)
    assert multipliers([0.5], [1.0]).tolist() == [[0.0, np.inf]]
