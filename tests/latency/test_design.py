from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.latency.design import cover
from nas.latency.predictor import LatencyPredictor


def _candidates(seed: int, count: int = 60, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0, 1, (count, width))


@given(seed=st.integers(0, 1000), count=st.integers(0, 20), known=st.integers(0, 40))
def test_cover__chooses_so_many_others_once(seed: int, count: int, known: int) -> None:
    chosen = np.random.default_rng(seed).permutation(60)[:known].tolist()
    found = cover(_candidates(seed), count, chosen=chosen)
    assert len(found) == len(set(found)) == count
    assert not set(found) & set(chosen)


@given(seed=st.integers(0, 100), scale=st.floats(1e-6, 1e6))
def test_cover__does_not_depend_on_units(seed: int, scale: float) -> None:
    features = _candidates(seed)
    scaled = features * np.array([scale, 1, 1, 1, 1, 1 / scale])
    assert cover(features, 10) == cover(scaled, 10)


def test_cover__goes_on_as_if_it_had_never_stopped() -> None:
    features = _candidates(0)
    first = cover(features, 7)
    assert first + cover(features, 5, chosen=first) == cover(features, 12)


def test_cover__picks_extremes_of_what_there_is() -> None:
    # The shares of two kinds of work vary: most is known of the middle from the two ends.
    share = np.linspace(0, 1, 21)
    found = cover(np.column_stack([share, 1 - share]), 2)
    assert set(found) == {0, 20}


def test_cover__finds_the_only_network_with_a_kind_of_layer() -> None:
    features = _candidates(3)
    features[:, -1] = 0
    features[17, -1] = 5
    assert 17 in cover(features, 3)


def test_cover__predicts_better_than_random_choices() -> None:
    better = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        features = _candidates(seed, 200, 12)
        ms = features @ rng.lognormal(0, 1, 12) * rng.lognormal(0, 0.02, 200)
        errors = []
        for rows in (cover(features, 22), rng.permutation(200)[:22].tolist()):
            predictor = LatencyPredictor.fit(features[rows], ms[rows])
            found = np.array([predictor.predict(row).ms for row in features])
            errors.append(np.abs(found / ms - 1).mean())
        better.append(errors[1] / errors[0])
    assert np.exp(np.log(better).mean()) > 1.05


@pytest.mark.parametrize(
    ("features", "count", "chosen", "message"),
    [
        (np.ones((5, 2)), 4, [0, 1], "Of 3 candidates"),
        (np.ones((5, 2)), -1, [], "0 to as many"),
        (np.ones((5, 2)), 1, [5], "different rows of 5"),
        (np.ones((5, 2)), 1, [2, 2], "different rows of 5"),
        (np.full((5, 2), np.nan), 1, [], "finite"),
        (-np.ones((5, 2)), 1, [], "finite"),
        (np.ones(5), 1, [], r"\(N, F\)"),
    ],
)
def test_cover__impossible_request_is_an_error(
    features: np.ndarray, count: int, chosen: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cover(features, count, chosen=chosen)
