from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from nas.errors import InputError
from nas.searcher.autonac import AutoNACSampler
from nas.searcher.autonac_history import Choices, History, choices_of, counted

BUDGET_MS = 4.5
SPACE = {f"op{stage}": CategoricalDistribution(("skip", "conv", "attention")) for stage in range(5)}
SPACE |= {f"width{stage}": IntDistribution(8, 32, step=8) for stage in range(3)}


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def latency_of(params):
    operations = [params[f"op{stage}"] for stage in range(5)]
    widths = sum(params[f"width{stage}"] for stage in range(3))
    return 1 + widths / 48 * (1 + 0.5 * operations.count("conv") + operations.count("attention"))


def accuracy_of(params):
    operations = [params[f"op{stage}"] for stage in range(5)]
    gain = 0.05 * operations.count("conv") + 0.1 * (operations[4] == "attention")
    widths = sum(params[f"width{stage}"] for stage in range(3))
    return 0.3 + gain + 0.05 * math.log2(widths / 24) - 0.2 * (operations[0] == "skip")


def study_of(sampler, directions=("maximize", "minimize")):
    return optuna.create_study(directions=list(directions), sampler=sampler)


def run(study, n_trials, *, placeholder=0.0):
    """Search as `nas search` does: a candidate over budget is told a placeholder."""
    for _ in range(n_trials):
        trial = study.ask(SPACE)
        latency_ms = latency_of(trial.params)
        feasible = latency_ms <= BUDGET_MS
        trial.set_user_attr("scored", feasible)
        trial.set_constraint("latency", latency_ms - BUDGET_MS)
        study.tell(trial, [accuracy_of(trial.params) if feasible else placeholder, latency_ms])
    return [trial.params for trial in study.trials]


def autonac(seed=0, **arguments):
    return AutoNACSampler(**{"budget_ms": BUDGET_MS, "seed": seed, **arguments})


def drawn(generator):
    values = {name: Choices({name: one}).options[0] for name, one in SPACE.items()}
    return {
        name: options[int(generator.integers(len(options)))] for name, options in values.items()
    }


def best(points):
    return max(accuracy_of(point) for point in points if latency_of(point) <= BUDGET_MS)


def distinct(points):
    return len({tuple(sorted(point.items())) for point in points})


def test_search__finds_more_than_others_and_repeats_nothing():
    ours, theirs = [], []
    for seed in range(2):
        points = run(study_of(autonac(seed)), 35)
        assert distinct(points) == 35
        ours.append(best(points))
        theirs.append(best(run(study_of(TPESampler(seed=seed, multivariate=True)), 35)))
    assert np.mean(ours) > np.mean(theirs)


def test_search__learns_what_is_feasible():
    points = run(study_of(autonac()), 40)
    feasible = [latency_of(point) <= BUDGET_MS for point in points]
    generator = np.random.default_rng(0)
    by_chance = [latency_of(drawn(generator)) <= BUDGET_MS for _ in range(400)]
    assert np.mean(feasible[10:]) > 0.8 > 2 * np.mean(by_chance)


def test_search__a_known_latency_is_never_exceeded():
    sampler = autonac(search_space=SPACE, latency=lambda points: [latency_of(p) for p in points])
    points = run(study_of(sampler), 15)
    assert all(latency_of(point) <= BUDGET_MS for point in points)


def test_search__the_budget_of_the_study_counts():
    study = study_of(AutoNACSampler(seed=0))
    study.set_user_attr("budget_ms", BUDGET_MS)
    assert run(study, 20) == run(study_of(autonac()), 20)


def test_search__one_objective_and_a_constraint_that_is_learned():
    study = study_of(AutoNACSampler(seed=0), ["minimize"])
    for _ in range(35):
        trial = study.ask(SPACE)
        trial.set_constraint("parameters", sum(trial.params[f"width{i}"] for i in range(3)) - 56)
        study.tell(trial, -accuracy_of(trial.params))
    kept = [trial.constraints["parameters"] <= 0 for trial in study.trials]
    assert np.mean(kept[10:]) > 0.7  # 0.47 by chance
    assert -study.best_value == pytest.approx(0.3 + 0.3 + 0.05 * math.log2(56 / 24), abs=0.03)


def test_search__placeholders_are_not_learned():
    runs = [run(study_of(autonac()), 25, placeholder=value) for value in (0.0, 0.9)]
    assert runs[0] == runs[1]
    assert any(latency_of(point) > BUDGET_MS for point in runs[0])


def test_search__a_seed_repeats_itself_also_after_a_pause():
    whole = run(study_of(autonac(seed=4)), 24)
    paused = study_of(autonac(seed=4))
    for _ in range(4):
        run(paused, 6)
        paused.sampler = autonac(seed=4)
    assert [trial.params for trial in paused.trials] == whole
    assert run(study_of(autonac(seed=5)), 24) != whole


def test_search__a_sampler_remembers_nothing_of_another_study():
    sampler, other = autonac(seed=4), study_of(RandomSampler(seed=0))
    run(other, 12)
    other.sampler = sampler
    run(other, 4)
    assert run(study_of(sampler), 14) == run(study_of(autonac(seed=4)), 14)


def test_search__anchors_come_first():
    anchors = [
        {name: Choices({name: one}).options[0][end] for name, one in SPACE.items()}
        for end in (0, -1)
    ]
    points = run(study_of(autonac(search_space=SPACE, anchors=anchors)), 4)
    assert points[:2] == anchors
    assert points[2] not in anchors


def test_search__points_that_describe_one_candidate_are_tried_once():
    key = lambda params: (latency_of(params), accuracy_of(params))  # noqa: E731
    points = run(study_of(autonac(search_space=SPACE, key=key)), 25)
    assert len({key(point) for point in points}) == 25


def test_search__the_end_stays_near_the_front():
    points = run(study_of(autonac(n_trials=30, front_share=0.0)), 40)
    feasible = [point for point in points[:25] if latency_of(point) <= BUDGET_MS]
    top = sorted(feasible, key=accuracy_of)[-8:]
    edits = [min(sum(a[name] != b[name] for name in SPACE) for b in top) for a in points[-5:]]
    assert max(edits) <= 5


def test_search__goes_on_with_the_trials_of_another_sampler():
    study = study_of(RandomSampler(seed=1))
    run(study, 30)
    study.sampler = autonac()
    points = run(study, 12)
    assert distinct(points) == 42
    assert best(points[30:]) > best(points[:30])


def test_search__figures_are_features():
    def figures(points):
        return np.array([[1.0 + sum(p[f"width{i}"] for i in range(3))] for p in points])

    points = run(study_of(autonac(search_space=SPACE, figures=figures)), 15)
    assert distinct(points) == 15


@pytest.mark.parametrize("n_values", [1, 2])
def test_search__a_tiny_space_is_searched_and_searched_again(n_values):
    study = study_of(AutoNACSampler(seed=0))
    space = {"only": CategoricalDistribution(tuple(range(n_values)))}
    for _ in range(4):
        trial = study.ask(space)
        study.tell(trial, [0.5, 1.0])
    values = [trial.params["only"] for trial in study.trials]
    assert set(values) == set(range(n_values))
    assert len(set(values[:2])) == n_values


def test_search__nothing_is_feasible():
    study = study_of(autonac(budget_ms=0.5))
    for _ in range(20):
        trial = study.ask(SPACE)
        latency_ms = latency_of(trial.params)
        trial.set_user_attr("scored", False)
        trial.set_constraint("latency", latency_ms - 0.5)
        study.tell(trial, [0.0, latency_ms])
    latencies = [trial.values[1] for trial in study.trials]
    assert distinct([trial.params for trial in study.trials]) == 20
    assert np.mean(latencies[10:]) < np.mean(latencies[:10])  # it goes where feasible ones may be


@pytest.mark.filterwarnings("ignore:The value nan is not acceptable")
@pytest.mark.parametrize("accuracy", [0.0, math.nan, math.inf])
def test_search__accuracies_that_say_nothing(accuracy):
    study = study_of(AutoNACSampler(seed=0))
    for _ in range(14):
        trial = study.ask(SPACE)
        study.tell(trial, [accuracy, 1.0])
    assert distinct([trial.params for trial in study.trials]) == 14


def test_search__some_accuracies_fail():
    study = study_of(autonac())
    for number in range(24):
        trial = study.ask(SPACE)
        if number % 3:
            study.tell(trial, [accuracy_of(trial.params), latency_of(trial.params)])
        else:
            study.tell(trial, state=TrialState.FAIL)
    assert distinct([trial.params for trial in study.trials]) == 24


def test_search__thirty_choices_that_depend_on_others():
    def objective(trial):
        total = 0.0
        for stage in range(30):
            if trial.suggest_categorical(f"has{stage}", [False, True]):
                total += trial.suggest_int(f"depth{stage}", 1, 3) * (stage % 3)
        return total, 1.0 + total

    study = study_of(AutoNACSampler(seed=0))
    study.optimize(objective, n_trials=24)
    points = [trial.params for trial in study.trials]
    assert distinct(points) == 24
    totals = [trial.values[0] for trial in study.trials]
    assert max(totals[10:]) > max(totals[:10])


def test_search__scores_an_option_that_fits_beside_the_cheapest_others_only():
    """The middle input size is worth more than all else, and one random point in 10^4 has it."""
    space = {"input": IntDistribution(0, 2)}
    space |= {f"width{stage}": IntDistribution(0, 3) for stage in range(9)}

    def latency(params):
        widths = sum(value for name, value in params.items() if name != "input")
        return (1 + 0.2 * widths) * 2 ** params["input"]

    def accuracy(params):
        return 0.5 + 0.1 * params["input"] + 0.001 * sum(params.values())

    def searched(sampler):
        study = study_of(sampler)
        for _ in range(40):
            trial = study.ask(space)
            latency_ms = latency(trial.params)
            trial.set_user_attr("scored", latency_ms <= 2.8)
            trial.set_constraint("latency", latency_ms - 2.8)
            study.tell(trial, [accuracy(trial.params) * (latency_ms <= 2.8), latency_ms])
        return [trial.params["input"] for trial in study.trials if trial.user_attrs["scored"]]

    for seed in range(2):
        assert 1 in searched(AutoNACSampler(budget_ms=2.8, seed=seed, n_trials=60))
    assert 1 not in searched(RandomSampler(seed=0))


def test_search__other_parameters_are_drawn_at_random():
    def objective(trial):
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        return rate * (trial.suggest_categorical("kind", ["a", "b"]) == "a")

    values = []
    for _ in range(2):
        study = study_of(AutoNACSampler(seed=3), ["maximize"])
        study.optimize(objective, n_trials=12)
        values.append([trial.params["rate"] for trial in study.trials])
    assert values[0] == values[1]
    assert len(set(values[0])) == 12


def test_search__an_enqueued_point_is_taken_as_it_is_and_not_repeated():
    study = study_of(autonac())
    run(study, 10)
    point = {name: Choices({name: one}).options[0][0] for name, one in SPACE.items()}
    study.enqueue_trial(point)
    points = run(study, 10)
    assert points[10] == point
    assert distinct(points) == 20


def test_search__running_trials_are_not_proposed_again():
    study = study_of(AutoNACSampler(seed=0, search_space=SPACE))
    trials = [study.ask() for _ in range(12)]  # their parameters are not asked for yet
    for trial in trials:
        for name, distribution in SPACE.items():
            trial._suggest(name, distribution)
    assert distinct([trial.params for trial in trials]) == 12


PROCESS = """
import sys, optuna
from optuna.storages.journal import JournalFileBackend
optuna.logging.set_verbosity(optuna.logging.ERROR)
from nas.searcher.autonac import AutoNACSampler
storage = optuna.storages.JournalStorage(JournalFileBackend(sys.argv[1]))
study = optuna.load_study(study_name="s", storage=storage, sampler=AutoNACSampler(seed=0))
def objective(trial):
    x = [trial.suggest_int(f"x{i}", 0, 3) for i in range(4)]
    return sum(x) / 12, 1.0 + x[0]
study.optimize(objective, n_trials=20)
"""


def test_search__two_processes_share_a_study(tmp_path):
    file = str(tmp_path / "journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(file))
    study = optuna.create_study(
        study_name="s", storage=storage, directions=["maximize", "minimize"]
    )
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, file]) for _ in range(2)]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    points = [trial.params for trial in study.trials]
    assert len(points) == 40
    assert distinct(points) == 40


def test_search__trials_that_start_before_any_has_finished_differ():
    study = study_of(AutoNACSampler(seed=0), ["maximize"])
    space = {"a": CategoricalDistribution((False, True)), "b": IntDistribution(0, 2)}
    first = [study.ask() for _ in range(3)]
    for name, distribution in space.items():  # side by side, as processes would ask
        for trial in first:
            trial._suggest(name, distribution)
    study.tell(first[1], 0.5)
    for trial in (study.ask(), study.ask(), study.ask()):
        for name, distribution in space.items():
            trial._suggest(name, distribution)
    assert distinct([trial.params for trial in study.trials]) == 6


def test_search__a_trial_that_is_about_to_count_is_not_repeated():
    study = study_of(AutoNACSampler(seed=0), ["maximize"])
    space = {"a": CategoricalDistribution((False, True)), "b": IntDistribution(0, 3)}
    done, late = study.ask(), study.ask()  # both have no parameters yet
    for name, distribution in space.items():
        done._suggest(name, distribution)
    study.tell(done, 0.5)
    others = [study.ask(space) for _ in range(6)]
    for name, distribution in space.items():
        late._suggest(name, distribution)
    assert distinct([trial.params for trial in (done, late, *others)]) == 8


def test_search__a_trial_that_ended_before_it_was_anything_says_nothing():
    study = study_of(autonac(search_space=SPACE))
    study.tell(study.ask(), state=TrialState.FAIL)
    run(study, 6)
    failed = create_trial(state=TrialState.FAIL)
    study.add_trial(failed)
    assert distinct(run(study, 20)[1:7]) == 6
    points = [trial.params for trial in study.trials if trial.params]
    assert distinct(points) == len(points)


@given(st.lists(st.integers(2, 5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=25)
def test_counted__goes_through_all_points_once(sizes):
    space = {f"x{i}": IntDistribution(1, size) for i, size in enumerate(sizes)}
    n_points = math.prod(sizes)
    points = [counted(number, space) for number in range(7, 7 + n_points)]
    assert distinct(points) == n_points
    first = dict(list(space.items())[:1])
    assert all(counted(n, first)["x0"] == counted(n, space)["x0"] for n in range(20))


def widths_of(params):
    return sum(params[f"width{i}"] for i in range(3))


@pytest.mark.parametrize("most", [32, 56])
def test_search__exact_bounds_are_never_broken(most):
    """One in 16 points keeps the tighter bound."""

    def usage(params):
        return {"widths": widths_of(params) / most}

    points = run(study_of(autonac(search_space=SPACE, usage=usage)), 25)
    assert all(widths_of(point) <= most for point in points)
    assert distinct(points) == 25


def test_search__exact_bounds_that_nothing_keeps():
    points = run(study_of(autonac(search_space=SPACE, usage=lambda _: {"widths": 2.0})), 4)
    assert distinct(points) == 4


def test_search__a_list_of_budgets_is_what_the_front_is_wanted_at():
    budgets = (2.0, 3.0, BUDGET_MS)
    sampler = AutoNACSampler(
        seed=0,
        search_space=SPACE,
        budgets=budgets,
        latency=lambda points: [latency_of(point) for point in points],
    )
    points = run(study_of(sampler), 30)
    assert max(map(latency_of, points)) <= BUDGET_MS
    late = np.array([latency_of(point) for point in points[12:]])
    under = [((late <= one) & (late > one - 0.4)).sum() for one in budgets]
    assert sum(under) > 0.6 * len(late)  # 0.3 by chance


@pytest.mark.parametrize(("share", "fewest", "most"), [(0.0, 0.0, 3.0), (1.0, 4.0, 99.0)])
def test_search__the_front_gets_its_share(share, fewest, most):
    """Under one budget the best is sought near it; the whole front is sought everywhere."""
    sampler = autonac(
        search_space=SPACE,
        front_share=share,
        latency=lambda points: [latency_of(point) for point in points],
    )
    late = [latency_of(point) for point in run(study_of(sampler), 34)[10:]]
    assert fewest <= sum(one < 0.6 * BUDGET_MS for one in late) <= most


def test_recommend__is_not_taken_in_by_luck():
    """Told with noise as large as the differences, the pick is better than the luckiest trial."""
    ours, luckiest = [], []
    for seed in range(4):
        study, noise = study_of(autonac(seed)), np.random.default_rng(seed)
        run(study, 8)
        generator = np.random.default_rng(seed + 50)
        while len(study.trials) < 60:
            params = drawn(generator)
            values = [accuracy_of(params) + 0.1 * noise.standard_normal(), latency_of(params)]
            attributes = {"scored": latency_of(params) <= BUDGET_MS}
            study.add_trial(
                create_trial(
                    params=params, distributions=SPACE, values=values, user_attrs=attributes
                )
            )
        scored = [trial for trial in study.trials if trial.user_attrs["scored"]]
        picked = study.sampler.recommend(study)
        assert picked.number in {trial.number for trial in scored}
        ours.append(accuracy_of(picked.params))
        luckiest.append(accuracy_of(max(scored, key=lambda trial: trial.values[0]).params))
    assert np.mean(ours) >= np.mean(luckiest)


def test_recommend__nothing_was_scored():
    study = study_of(autonac())
    assert study.sampler.recommend(study) is None
    run(study, 3)
    assert autonac(budget_ms=0.1).recommend(study) is None


def test_sampler__says_what_it_cannot_do():
    with pytest.raises(InputError, match=r"positive.*-1"):
        AutoNACSampler(budget_ms=-1)
    with pytest.raises(InputError, match=r"positive.*0 ms"):
        AutoNACSampler(budgets=[2.0, 0.0])
    with pytest.raises(InputError, match=r"0\.\.1.*1\.5"):
        AutoNACSampler(front_share=1.5)
    study = study_of(AutoNACSampler(seed=0, search_space=SPACE), ["maximize", "maximize"])
    with pytest.raises(InputError, match="latency second"):
        study.ask(SPACE)


def numbered(trials):
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def trial_of(state=TrialState.COMPLETE, values=None, params=None, **arguments):
    params = params or {"a": 1, "b": "x"}
    distributions = {"a": IntDistribution(1, 3), "b": CategoricalDistribution(("x", "y"))}
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: distributions[name] for name in params},
        **arguments,
    )


def test_history__what_is_learned_from_which_trial():
    study = study_of(RandomSampler())
    trials = [
        trial_of(values=[0.5, 2.0]),
        trial_of(values=[0.0, 9.0], params={"a": 2}, constraints={"latency": 4.0}),
        trial_of(
            values=[0.4, 9.0],
            params={"a": 3},
            constraints={"latency": 4.0},
            user_attrs={"scored": True},
        ),
        trial_of(state=TrialState.FAIL, params={"b": "y"}),
        trial_of(values=[0.6, 2.0], params={"a": 1, "b": "y"}, user_attrs={"scored": False}),
    ]
    choices = Choices(choices_of(trials))
    history = History.of(study, numbered(trials), choices)
    np.testing.assert_array_equal(history.codes, [[0, 0], [1, -1], [2, -1], [-1, 1], [0, 1]])
    np.testing.assert_array_equal(history.accuracy, [0.5, np.nan, 0.4, np.nan, np.nan])
    np.testing.assert_array_equal(history.latency_ms, [2.0, 9.0, 9.0, np.nan, 2.0])
    np.testing.assert_array_equal(history.constraints["latency"], [np.nan, 4, 4, np.nan, np.nan])
    assert history.scored.tolist() == [0, 2]
    assert not history.running.any()


def test_history__agreeing_with_all_that_a_trial_had_is_a_repetition():
    study = study_of(RandomSampler())
    trials = [trial_of(values=[0.5, 2.0]), trial_of(values=[0.5, 2.0], params={"a": 3})]
    choices = Choices(choices_of(trials))
    history = History.of(study, numbered(trials), choices)
    points = np.array([[0, 0], [0, 1], [2, 0], [2, 1], [2, -1], [1, 0]])
    repeats = history.repeats(points, choices.sizes)
    assert repeats.tolist() == [True, False, True, True, True, False]
