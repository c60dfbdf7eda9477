from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from nas.searcher.proposing import ABSENT, Encoding, Observed, Settings, propose, recommend
from nas.searcher.proposing.limits import Limit
from nas.searcher.proposing.pool import Conditions, edited, make_pool, saved_up, with_option
from nas.searcher.proposing.surrogate import (
    TARGETS,
    GaussianProcess,
    Hyperparameters,
    rank_gauss,
    winsorised,
)


def grid(*sizes):
    return np.array(list(itertools.product(*map(range, sizes))), dtype=np.intp)


OPTIONS = [("none", "conv", "skip")] * 4 + [(8, 16, 24, 32)]
CODES = grid(3, 3, 3, 3, 4)
LATENCY = 1.0 + (CODES[:, :4] == 1).sum(axis=1) + CODES[:, 4] / 4
ACCURACY = (
    60.0
    + 3 * np.sqrt((CODES[:, :4] == 1).sum(axis=1))
    + 2 * (CODES[:, 0] == 2)
    + CODES[:, 4]
    - 30 * (CODES[:, :4] == 0).all(axis=1)
)
FEATURES = Encoding(OPTIONS)(CODES, LATENCY[:, None])


def observed(rows, accuracy=ACCURACY):
    rows = np.array(rows, dtype=np.intp)
    return Observed(FEATURES[rows], accuracy[rows].astype(float), LATENCY[rows])


def searched(n_queries, seed, budget_ms=None, count=1, noise=0.0):
    generator = np.random.default_rng(seed)
    rows: list[int] = []
    answers: list[float] = []
    while len(rows) < n_queries:
        told = Observed(FEATURES[rows], np.array(answers, dtype=float), LATENCY[rows])
        new = propose(FEATURES, LATENCY, told, count=count, budget_ms=budget_ms, rng=generator)
        rows += new
        answers += [ACCURACY[row] + noise * generator.standard_normal() for row in new]
    return rows, np.array(answers)


labels = st.one_of(
    st.integers(1, 6).map(lambda n: tuple("abcdef"[:n])),
    st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True).map(
        lambda values: tuple(sorted(values))
    ),
)


@given(st.lists(labels, min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_encoding__uniform_points_have_unit_length_on_average(options):
    codes = grid(*map(len, options))
    features = Encoding(options)(codes)
    if len(codes) == 1:
        assert features.shape == (1, 1)
        return
    several = [values for values in options if len(values) > 1]
    numbers = [v for v in several if len(v) > 2 and isinstance(v[0], int)]
    groups = {values for values in several if several.count(values) > 1}
    expected = len(several) + len(groups) + 0.3**2 * len(numbers)
    blocks = len(several) + len(groups) + len(numbers)
    assert (features**2).sum(axis=1).mean() == pytest.approx(expected / blocks)
    assert len(np.unique(features.round(9), axis=0)) == len(codes)


def test_encoding__does_not_depend_on_the_other_points():
    np.testing.assert_array_equal(Encoding(OPTIONS)(CODES[:7]), Encoding(OPTIONS)(CODES)[:7])


def test_encoding__what_is_absent_is_the_mean():
    absent = Encoding(OPTIONS)(np.full((1, 5), ABSENT))
    np.testing.assert_allclose(absent[0], Encoding(OPTIONS)(CODES).mean(axis=0), atol=1e-12)


def test_encoding__neighbouring_numbers_are_nearer():
    first, second, *_, last = Encoding([(1, 2, 3, 4)])(grid(4))
    near, far = np.linalg.norm(second - first), np.linalg.norm(last - first)
    assert near < 0.5 * far


def test_encoding__numbers_without_a_logarithm_are_the_mean():
    figures = np.array([[1.0], [10.0], [100.0], [np.nan], [0.0]])
    column = Encoding([("a",)])(np.zeros((5, 1), dtype=np.intp), figures)[:, 0]
    np.testing.assert_allclose(column, [-np.sqrt(1.5), 0, np.sqrt(1.5), 0, 0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_rank_gauss__keeps_the_order_and_is_symmetric(values):
    values = np.array(values)
    targets = rank_gauss(values)
    np.testing.assert_allclose(rank_gauss(-values), -targets, atol=1e-9)
    order = np.argsort(values, kind="stable")
    assert (np.diff(targets[order]) >= 0).all()
    assert (np.diff(targets[order]) > 0).tolist() == (np.diff(values[order]) > 0).tolist()


def test_winsorised__only_the_long_tail_is_cut():
    values = np.array([10.0, 90.0, 92.0, 94.0, 95.0])
    targets = winsorised(values)
    assert targets[0] == pytest.approx(winsorised(np.array([89.0, *values[1:]]))[0])
    steps = np.diff(targets[1:])
    np.testing.assert_allclose(steps / steps[0], np.diff(values[1:]) / 2)


def test_gaussian_process__agrees_with_scikit_learn():
    rows = np.random.default_rng(0).choice(len(CODES), 30, replace=False)
    features, targets = FEATURES[rows], rank_gauss(ACCURACY[rows])
    ours = GaussianProcess(features, targets, Hyperparameters(2.0, 1, 0.1))
    kernel = ConstantKernel(ours.scale) * Matern(2.0, nu=0.5) + WhiteKernel(0.1 * ours.scale)
    theirs = GaussianProcessRegressor(kernel, optimizer=None).fit(
        features, targets - targets.mean()
    )
    mean, deviation = ours.predict(FEATURES)
    their_mean, their_deviation = theirs.predict(FEATURES, return_std=True)
    noiseless = np.sqrt(their_deviation**2 - 0.1 * ours.scale)
    np.testing.assert_allclose(mean, their_mean + targets.mean(), atol=1e-5)
    np.testing.assert_allclose(deviation, noiseless, atol=1e-4)


@pytest.mark.parametrize("kernel", [(1.0, 1, 0.01), (4.0, 2, 0.1), (2.0, 1, 0.01, 1.0)])
def test_gaussian_process__left_out_is_what_the_others_predict(kernel):
    rows = np.random.default_rng(1).choice(len(CODES), 12, replace=False)
    features, targets = FEATURES[rows], rank_gauss(ACCURACY[rows])
    hyperparameters = Hyperparameters(*kernel)
    predicted = GaussianProcess(features, targets, hyperparameters).left_out()
    for index in range(12):
        others = np.arange(12) != index
        process = GaussianProcess(features[others], targets[others], hyperparameters)
        at = process.kernel(features[[index]], features[others])
        matrix = process.kernel(features[others], features[others])
        matrix += (hyperparameters.noise + 1e-9) * np.eye(11)
        expected = targets.mean() + at @ np.linalg.solve(matrix, targets[others] - targets.mean())
        assert predicted[index] == pytest.approx(expected[0])


@pytest.mark.parametrize("kernel", [(1.0, 1, 0.01), (4.0, 2, 0.1), (2.0, 1, 0.01, 1.0)])
def test_gaussian_process__the_bound_bounds(kernel):
    rows = np.random.default_rng(2).choice(len(CODES), 25, replace=False)
    process = GaussianProcess(FEATURES[rows], rank_gauss(ACCURACY[rows]), Hyperparameters(*kernel))
    mean, deviation = process.predict(FEATURES)
    same_mean, bound = process.bound(FEATURES)
    np.testing.assert_allclose(same_mean, mean)
    assert (bound >= deviation - 1e-9).all()


def test_gaussian_process__what_is_believed_changes_no_mean_and_less_is_uncertain():
    rows = np.arange(0, len(CODES), 20)
    process = GaussianProcess(FEATURES[rows], rank_gauss(ACCURACY[rows]))
    believing = process.believing(FEATURES[[3, 100]])
    (mean, before), (same, after) = process.predict(FEATURES), believing.predict(FEATURES)
    np.testing.assert_allclose(same, mean, atol=1e-6)
    assert (after <= before * (1 + 1e-9)).all()
    assert after[3] < 0.7 * before[3]


def test_hyperparameters__tell_noise_from_structure():
    generator = np.random.default_rng(3)
    rows = generator.choice(len(CODES), 80, replace=False)
    smooth = ACCURACY[rows] + 30 * (CODES[rows, :4] == 0).all(axis=1)
    noisy = smooth + 2 * smooth.std() * generator.standard_normal(80)
    found = [Hyperparameters.of(FEATURES[rows], rank_gauss(v)).noise for v in (smooth, noisy)]
    assert found[0] <= 1e-2
    assert found[1] >= 0.3


def test_hyperparameters__accuracies_that_are_smooth_are_taken_as_they_are():
    rows = np.random.default_rng(4).choice(len(CODES), 40, replace=False)
    smooth = 3.0 * CODES[rows, 4] + 5 * (CODES[rows, 0] == 1) + 2 * (CODES[rows, 1] == 2)
    found = Hyperparameters.of_accuracy(FEATURES[rows], smooth)
    assert {one.targets for _, one in found} == {"raw"}
    # Most networks learned nothing, each as little as chance has it; a few differ by little.
    failed = np.random.default_rng(5).random(40) < 0.4
    tailed = np.where(failed, 10 * np.random.default_rng(6).random(40), 90 + smooth / 10)
    found = Hyperparameters.of_accuracy(FEATURES[rows], tailed)
    assert "raw" not in {one.targets for _, one in found}


def test_hyperparameters__weigh_as_likely_as_they_are():
    rows = np.random.default_rng(7).choice(len(CODES), 10, replace=False)
    found = Hyperparameters.of_accuracy(FEATURES[rows], ACCURACY[rows])
    weights = [weight for weight, _ in found]
    assert len(found) > 1  # ten observations do not decide
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights, reverse=True)
    targets = TARGETS[found[0][1].targets](ACCURACY[rows])
    targets = targets - targets.mean()
    logarithms = []
    for _, one in found:
        process = GaussianProcess(FEATURES[rows], targets, one)
        matrix = process.kernel(FEATURES[rows], FEATURES[rows]) + one.noise * np.eye(10)
        scale = targets @ np.linalg.solve(matrix, targets) / 10
        logarithms.append(-5 * np.log(scale) - 0.5 * np.linalg.slogdet(matrix)[1])
    ratios = np.exp(np.array(logarithms) - logarithms[0])
    np.testing.assert_allclose(np.array(weights) / weights[0], ratios, rtol=1e-4)


budgets = st.one_of(st.none(), st.floats(0.5, 7), st.lists(st.floats(1, 7), min_size=1, max_size=3))


@given(
    rows=st.lists(st.integers(0, len(CODES) - 1), max_size=12, unique=True),
    pending=st.lists(st.integers(0, len(CODES) - 1), max_size=2, unique=True),
    failed=st.sets(st.integers(0, 11)),
    budget_ms=budgets,
    count=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_propose__new_distinct_and_within_the_largest_budget(
    rows, pending, failed, budget_ms, count, seed
):
    told = observed(rows)
    told.accuracy[[index for index in failed if index < len(rows)]] = np.nan
    proposed = [
        propose(
            FEATURES,
            LATENCY,
            told,
            count=count,
            budget_ms=budget_ms,
            rng=np.random.default_rng(seed),
            pending=observed(pending),
        )
        for _ in range(2)
    ]
    assert proposed[0] == proposed[1]
    limit = np.inf if budget_ms is None else np.max(budget_ms)
    free = set(np.flatnonzero(limit >= LATENCY).tolist()) - {*rows, *pending}
    assert set(proposed[0]) <= free
    assert len(set(proposed[0])) == len(proposed[0]) == min(count, len(free))


def test_propose__begins_in_every_stratum_of_latency():
    rows, _ = searched(8, seed=0, count=8)
    strata = np.searchsorted(np.quantile(LATENCY, np.arange(1, 8) / 8), LATENCY[rows])
    assert len(set(strata.tolist())) == 8


@pytest.mark.parametrize("accuracy", [np.full(len(CODES), 5.0), np.full(len(CODES), np.nan)])
def test_propose__learns_nothing_from_constants_and_failures_but_goes_on(accuracy):
    rows = list(range(20))
    told = observed(rows, accuracy)
    new = propose(FEATURES, LATENCY, told, count=5, rng=np.random.default_rng(0))
    assert len(set(new) - set(rows)) == 5


@pytest.mark.parametrize("count", [1, 4])
def test_propose__finds_the_best_within_a_budget(count):
    budget_ms = 3.6
    best = ACCURACY[budget_ms >= LATENCY].max()
    for seed in range(4):
        rows, _ = searched(28, seed, budget_ms, count)
        assert ACCURACY[rows].max() == best


def test_propose__advances_the_whole_front():
    limits = np.quantile(LATENCY, [0.1, 0.3, 0.5, 0.7, 1.0])
    best = [ACCURACY[limit >= LATENCY].max() for limit in limits]
    for seed in range(2):
        rows, _ = searched(60, seed)
        found = [max(ACCURACY[row] for row in rows if LATENCY[row] <= limit) for limit in limits]
        assert found == pytest.approx(best, abs=0.5)


def test_propose__avoids_what_is_hardly_feasible():
    told = observed(range(0, len(CODES), 15))
    feasibility = np.where(CODES[:, 0] == 1, 1.0, 1e-6)
    no_chance = Settings(explore=0.0)
    new = propose(
        FEATURES,
        LATENCY,
        told,
        count=6,
        rng=np.random.default_rng(0),
        feasibility=feasibility,
        settings=no_chance,
    )
    assert (CODES[new, 0] == 1).all()


def test_recommend__prefers_what_is_good_for_a_reason():
    generator = np.random.default_rng(5)
    ours, lucky = [], []
    for seed in range(6):
        rows = generator.choice(len(CODES), 60, replace=False)
        noisy = ACCURACY[rows] + 2 * np.random.default_rng(seed).standard_normal(60)
        told = Observed(FEATURES[rows], noisy, LATENCY[rows])
        ours.append(ACCURACY[rows][recommend(told)])
        lucky.append(ACCURACY[rows][np.argmax(noisy)])
    assert np.mean(ours) >= np.mean(lucky)


def test_recommend__within_the_budget_among_what_was_scored():
    told = observed(range(40))
    told.accuracy[::2] = np.nan
    picked = recommend(told, budget_ms=2.5)
    assert picked is not None
    assert picked % 2 == 1
    assert told.latency_ms[picked] <= 2.5
    assert recommend(told, budget_ms=0.1) is None
    assert recommend(observed([])) is None


def test_make_pool__a_small_space_whole():
    pool = make_pool((3, 2, 4), np.empty((0, 3), dtype=np.intp), np.random.default_rng(0))
    np.testing.assert_array_equal(pool, grid(3, 2, 4))


def test_make_pool__a_large_space_around_the_parents():
    sizes = (5,) * 17 + (1,)
    parents = np.random.default_rng(0).integers(sizes, size=(6, 18))
    pool = make_pool(sizes, parents, np.random.default_rng(1))
    assert len(np.unique(pool, axis=0)) == len(pool)
    assert ((pool >= 0) & (pool < np.array(sizes))).all()
    edits = (pool[:, None] != parents).sum(axis=2).min(axis=1)
    assert {1, 2} <= set(edits.tolist())
    assert (edits == 1).sum() > 300
    assert (edits > 8).sum() > 300
    local = make_pool(sizes, parents[:1], np.random.default_rng(1), local=True)
    assert (local != parents[0]).sum(axis=1).max() <= 2


def test_make_pool__what_is_absent_stays_absent():
    sizes = (4,) * 12
    parent = np.zeros((1, 12), dtype=np.intp)
    parent[0, 5:] = ABSENT
    pool = make_pool(sizes, parent, np.random.default_rng(0), local=True)
    assert (pool[:, 5:] == ABSENT).all()


COSTS = np.array([0.0, 1.0, 2.0, 4.0])


def cost_of(codes):
    """A sum of costs over the choices; what is absent costs nothing."""
    return np.where(codes == ABSENT, 0.0, COSTS[np.maximum(codes, 0)]).sum(axis=1)


@given(st.integers(0, 2**31), st.floats(0, 60))
def test_saved_up__keeps_the_limit_and_what_is_fixed(seed, limit):
    generator = np.random.default_rng(seed)
    sizes = (4,) * 12
    parents = generator.integers(sizes, size=(5, 12))
    parents[:, 11] = ABSENT
    choice, option = generator.integers(11), generator.integers(4)
    points, fixed = with_option(parents, choice, option, generator)
    found = saved_up(sizes, points, fixed, cost_of, np.full(len(points), limit), generator)
    assert (cost_of(found) <= limit).all()
    assert (found[:, choice] == option).all()
    assert (found[:, 11] == ABSENT).all()


def test_saved_up__reaches_what_random_points_do_not():
    """The dearest option of one choice fits if nearly all others are the cheapest."""
    generator = np.random.default_rng(0)
    sizes = (4,) * 14
    parents = np.ones((4, 14), dtype=np.intp)
    limit = 8.0
    drawn = generator.integers(sizes, size=(5_000, 14))
    assert not (cost_of(drawn[drawn[:, 0] == 3]) <= limit).any()
    points, fixed = with_option(parents, 0, 3, generator)
    assert (cost_of(points) > limit).all()
    found = saved_up(sizes, points, fixed, cost_of, np.full(len(points), limit), generator)
    assert len(found) > 15
    assert len(np.unique(found, axis=0)) > 15


def test_edited__one_choice_of_each():
    generator = np.random.default_rng(0)
    parents = generator.integers((3,) * 9, size=(4, 9))
    points, changed = edited((3,) * 9, parents, generator)
    assert (changed.sum(axis=1) == 1).all()
    assert ((points[:, None] != parents).sum(axis=2).min(axis=1) <= 1).all()


def test_conditions__are_learned_from_points():
    generator = np.random.default_rng(0)
    points = generator.integers((2, 3, 3), size=(40, 3))
    points[points[:, 0] == 0, 1] = ABSENT
    points[points[:, 1] != 2, 2] = ABSENT
    made = Conditions(points).apply(
        generator.integers((2, 3, 3), size=(200, 3)), (2, 3, 3), generator
    )
    assert ((made[:, 1] == ABSENT) == (made[:, 0] == 0)).all()
    assert ((made[:, 2] == ABSENT) == (made[:, 1] != 2)).all()
    np.testing.assert_array_equal(Conditions(made).apply(made, (2, 3, 3), generator), made)


def test_limit__learns_a_latency_that_choices_multiply():
    generator = np.random.default_rng(0)
    factors = generator.uniform(0.7, 1.6, size=(12, 4))
    codes = generator.integers(4, size=(400, 12))
    latency_ms = np.prod(factors[np.arange(12), codes], axis=1)
    features = Encoding([(f"{choice}", "b", "c", "d") for choice in range(12)])(codes)
    limit = Limit(features[:80], latency_ms[:80])
    bound = float(np.median(latency_ms))
    predicted, probability = limit.judge(features[80:], bound)
    assert np.median(np.abs(predicted / latency_ms[80:] - 1)) < 0.05
    kept = latency_ms[80:] <= bound
    assert kept[probability > 0.95].mean() > 0.95
    assert kept[probability < 0.05].mean() < 0.05
    assert (limit.judge(features, np.inf)[1] == 1).all()
    assert (limit.judge(features, 0.0)[1] == 0).all()


def test_limit__figures_of_either_sign():
    codes = grid(4, 4, 4)
    figures = codes.sum(axis=1) - 4.0
    features = Encoding([(f"{choice}", "b", "c", "d") for choice in range(3)])(codes)
    some = np.random.default_rng(0).permutation(64) < 40
    predicted, probability = Limit(features[some], figures[some]).judge(features[~some], 0.0)
    np.testing.assert_allclose(predicted, figures[~some], atol=0.3)
    assert ((probability > 0.5) == (figures[~some] <= 0)).mean() > 0.8


def test_propose__doubts_a_surrogate_that_improved_nothing_for_long():
    """In the order of their accuracies the last was the best; reversed, nothing improved on it."""
    uncertain = {True: 0.0, False: 0.0}
    for seed in range(8):
        rows = np.random.default_rng(seed).choice(len(CODES), 60, replace=False)
        rows = rows[np.argsort(ACCURACY[rows])]
        told = observed(rows)
        process = GaussianProcess(told.features, rank_gauss(told.accuracy))
        for improving in uncertain:
            new = propose(
                FEATURES,
                LATENCY,
                observed(rows if improving else rows[::-1]),
                budget_ms=3.5,
                rng=np.random.default_rng(0),
                settings=Settings(explore=0.0),
            )
            uncertain[improving] += float(process.predict(FEATURES[new])[1][0])
    assert uncertain[False] > uncertain[True]
