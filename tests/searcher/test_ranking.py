import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.searcher.ranking import (
    gap,
    kendall_tau,
    pairs_within,
    regret,
    seed_tau,
    sparse_tau,
    tau_gain,
    top_tau,
    window_tau,
)

# A busy machine may take its time.
_unhurried = settings(deadline=None, max_examples=40)

# Few distinct values make ties.
_value = st.integers(0, 12).map(lambda one: one / 16)


def _table(columns, least=2, most=14):
    return st.integers(least, most).flatmap(
        lambda n: st.tuples(*[st.lists(_value, min_size=n, max_size=n) for _ in range(columns)])
    )


@_unhurried
@given(_table(2))
def test_kendall_tau__is_that_of_scipy(table):
    ours = kendall_tau(*table, resamples=4).value
    theirs = scipy.stats.kendalltau(*table).statistic
    assert ours == pytest.approx(theirs, nan_ok=True)


@_unhurried
@given(_table(2, least=4), st.integers(0, 99))
def test_kendall_tau__resamples_are_those_of_repeated_networks(table, seed):
    scores, references = np.array(table)
    n = len(scores)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), 40)
    taus = [
        scipy.stats.kendalltau(np.repeat(scores, times), np.repeat(references, times)).statistic
        for times in drawn
    ]
    found = kendall_tau(scores, references, seed=seed, resamples=40)
    defined = [one for one in taus if math.isfinite(one)]
    if len(defined) < 20:
        assert (found.low, found.high) == (-1, 1)
    else:
        expected = np.quantile(defined, [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(tuple(expected))


@_unhurried
@given(_table(2))
def test_kendall_tau__knows_only_orders(table):
    scores, references = np.array(table)
    one = kendall_tau(scores, references, resamples=20)
    same = kendall_tau(np.exp(scores), 3 * references - 1, resamples=20)
    turned = kendall_tau(-scores, references, resamples=20)
    assert (one.value, one.low, one.high) == pytest.approx(
        (same.value, same.low, same.high), nan_ok=True
    )
    assert turned.value == pytest.approx(-one.value, nan_ok=True)


@_unhurried
@given(_table(3))
def test_intervals__lie_within_what_a_tau_can_be(table):
    scores, references, latencies = np.array(table)
    found = [
        kendall_tau(scores, references, resamples=20),
        sparse_tau(scores, references, resamples=20),
        top_tau(scores, references, resamples=20),
        window_tau(scores, references, latencies + 0.1, resamples=20),
    ]
    assert all(-1 <= one.low <= one.high <= 1 for one in found)


def test_kendall_tau__a_constant_has_no_order():
    found = kendall_tau([0.1] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert math.isnan(found.value)
    assert (found.low, found.high) == (-1, 1)


def test_kendall_tau__three_networks_have_no_interval():
    found = kendall_tau([1, 2, 3], [1, 2, 3])
    assert found.value == 1
    assert (found.low, found.high, found.pairs) == (-1, 1, 3)


def test_kendall_tau__intervals_hold_what_they_say():
    generator = np.random.default_rng(0)
    correlation, inside, trials = 0.6, 0, 150
    truth = 2 / math.pi * math.asin(correlation)  # of a bivariate normal (Kendall and Gibbons)
    for seed in range(trials):
        first = generator.normal(size=24)
        second = correlation * first + math.sqrt(1 - correlation**2) * generator.normal(size=24)
        found = kendall_tau(first, second, seed=seed, resamples=400)
        inside += found.low <= truth <= found.high
    assert 0.87 <= inside / trials <= 0.99


@_unhurried
@given(_table(2))
def test_sparse_tau__equals_tau_where_all_values_differ_by_more(table):
    plain, sparse = kendall_tau(*table, resamples=2), sparse_tau(*table, 1 / 32, resamples=2)
    assert sparse.value == pytest.approx(plain.value, nan_ok=True)


@_unhurried
@given(_table(3))
def test_tau_gain__is_the_difference_of_two_taus(table):
    scores, baseline, references = table
    gain = tau_gain(scores, baseline, references, resamples=30)
    ours, theirs = (kendall_tau(one, references, resamples=2) for one in (scores, baseline))
    assert gain.value == pytest.approx(ours.value - theirs.value, nan_ok=True)
    assert -2 <= gain.low <= gain.high <= 2


def test_tau_gain__pairs_its_resamples():
    references = np.random.default_rng(0).permutation(12)
    scores = references + np.random.default_rng(1).normal(0, 3, 12)
    same = tau_gain(scores, scores, references)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_sparse_tau__small_differences_are_ties():
    references = [0.3, 0.4, 0.5, 0.5001]
    assert kendall_tau([1, 2, 4, 3], references).value == pytest.approx(2 / 3)
    assert sparse_tau([0.1, 0.2, 0.4, 0.3], references).value == pytest.approx(5 / math.sqrt(30))


def test_top_tau__sees_the_best_references_alone():
    references = np.arange(20) / 100
    scores = references.copy()
    scores[-4:] = scores[-4:][::-1]
    found = top_tau(scores, references)
    assert (found.value, found.pairs) == (-1, 6)


def test_top_tau__of_few_networks_has_three():
    assert top_tau(np.arange(8), np.arange(8)).pairs == 3


@_unhurried
@given(_table(2))
def test_top_tau__of_everything_is_tau(table):
    whole, plain = top_tau(*table, 1.0, resamples=30), kendall_tau(*table, resamples=30)
    assert (whole.value, whole.low, whole.high) == pytest.approx(
        (plain.value, plain.low, plain.high), nan_ok=True
    )


@_unhurried
@given(_table(3))
def test_window_tau__counts_pairs_of_about_the_same_latency(table):
    scores, references, latencies = np.array(table) + 0.05
    near = [
        (i, j)
        for i in range(len(scores))
        for j in range(i)
        if max(latencies[i], latencies[j]) <= 1.1 * min(latencies[i], latencies[j])
    ]
    agree = [np.sign((scores[i] - scores[j]) * (references[i] - references[j])) for i, j in near]
    ordered = [sum(values[i] != values[j] for i, j in near) for values in (scores, references)]
    found = window_tau(scores, references, latencies, resamples=10)
    assert found.pairs == len(near)
    if min(ordered):
        assert found.value == pytest.approx(sum(agree) / math.sqrt(math.prod(ordered)))
    else:
        assert math.isnan(found.value)


def test_window_tau__of_wide_windows_is_tau():
    generator = np.random.default_rng(1)
    scores, references, latencies = generator.random((3, 10))
    assert window_tau(scores, references, latencies, 1e9) == kendall_tau(scores, references)


def test_pairs_within__both_ends_belong_to_the_window():
    assert pairs_within([1.0, 1.1, 1.2]).tolist() == [
        [False, True, False],
        [True, False, True],
        [False, True, False],
    ]


@_unhurried
@given(_table(3), st.lists(_value, min_size=1, max_size=4))
def test_regret__is_never_negative_and_none_of_the_reference_itself(table, budgets):
    scores, references, latencies = np.array(table)
    lost = regret(scores, references, latencies, budgets)
    assert np.all((lost >= 0) | np.isnan(lost))
    own = regret(references, references, latencies, budgets)
    assert np.all((own == 0) | np.isnan(own))
    assert np.isnan(lost).tolist() == [latencies.min() > budget for budget in budgets]


def test_regret__is_in_points_of_map():
    lost = regret([1, 3, 2], [0.30, 0.35, 0.40], [1, 2, 3], [0.5, 1, 2, 3])
    assert lost == pytest.approx([np.nan, 0, 0, 5], nan_ok=True)


def test_regret__equal_scores_are_picked_by_lot():
    assert regret([1, 1], [0.3, 0.4], [1, 1], [1]) == pytest.approx([5])


@_unhurried
@given(
    st.lists(st.integers(1, 40), min_size=3, max_size=12, unique=True),
    st.floats(-0.1, 0.1),
    st.floats(-0.5, 0.5),
)
def test_gap__finds_a_line(sizes, slope, offset):
    references = np.linspace(0.2, 0.8, len(sizes))
    scores = references + offset + slope * np.log2(sizes)
    found = gap(scores, references, sizes, resamples=200)
    assert found.slope.value == pytest.approx(slope, abs=1e-7)
    assert found.mean.value == pytest.approx(np.mean(scores - references), abs=1e-9)
    assert found.mean.low - 1e-9 <= found.mean.value <= found.mean.high + 1e-9


def test_gap__equal_sizes_have_no_slope():
    found = gap([0.1, 0.2, 0.3], [0.1, 0.1, 0.1], [7, 7, 7])
    assert math.isnan(found.slope.value)
    assert found.mean.value == pytest.approx(0.1)


def test_seed_tau__is_the_mean_over_pairs_of_seeds():
    table = np.array([[1, 1, 4], [2, 2, 3], [3, 3, 2], [4, 4, 1]])
    assert seed_tau(table).value == pytest.approx(-1 / 3)
    assert math.isnan(seed_tau(table[:, :1]).value)


@pytest.mark.parametrize(
    "columns", [([1], [1]), ([1, 2], [1, 2, 3]), ([1, np.nan], [1, 2]), ([[1, 2]], [[1, 2]])]
)
def test_kendall_tau__refuses_what_cannot_be_compared(columns):
    with pytest.raises(InputError):
        kendall_tau(*columns)


def test_statistics__refuse_impossible_options():
    with pytest.raises(InputError, match="resolution"):
        sparse_tau([1, 2], [1, 2], 0)
    with pytest.raises(InputError, match="share"):
        top_tau([1, 2], [1, 2], 1.5)
    with pytest.raises(InputError, match="Sizes"):
        gap([1, 2], [1, 2], [0, 1])
