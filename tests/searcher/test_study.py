from __future__ import annotations

import contextlib
import json
import sqlite3

import numpy as np
import pytest
from optuna.trial import TrialState
from toy_study import PARAMETERS, POINT, opened, tell, trials

from nas.errors import StorageError, StudyError
from nas.searcher.connection import sqlite_path
from nas.searcher.database import Database
from nas.searcher.opening import open_storage
from nas.searcher.rewriting import retold, rewrite_study
from nas.searcher.study import CONSTRAINTS, Told


def test_readmit__queues_once_what_a_larger_budget_admits(database):
    with opened(database, budget=1.0) as study:
        study.enqueue(POINT)
        study.tell_infeasible(study.ask(), "late", latency_ms=5.0)
        study.tell_feasible(study.ask(), "good", accuracy=0.5, latency_ms=0.5)
        assert study.readmit() == 0
    for _ in range(2):  # a process may die before it scores them
        with opened(database, budget=10.0) as study:
            assert study.readmit() == 1
            assert study.waiting == 1
    with opened(database, budget=10.0) as study:
        proposal = study.ask()
        assert proposal.choices == POINT
        study.tell_feasible(proposal, "late", accuracy=0.7, latency_ms=5.0)
        assert study.readmit() == study.waiting == 0
        assert [told.digest for told in study.scored()] == ["good", "late"]


# Telling


def test_tell__values_constraints_and_attributes(database):
    with opened(database) as study:
        proposal = tell(study, "a", np.float32(0.25), np.float64(8.0), source="measured")
        (trial,) = trials(study)
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [0.25, 8.0]
    assert trial.constraints == {"latency": -2.0}
    assert json.loads(trial.user_attrs.pop("choices")) == proposal.choices
    expected = {"architecture": "a", "budget_ms": 10.0, "scored": True, "source": "measured"}
    assert trial.user_attrs == expected


@pytest.mark.parametrize("sampler", ["gp", "nsga2", "random", "tpe"])
def test_tell__an_infeasible_trial_is_never_on_the_front(database, sampler):
    with opened(database, sampler=sampler) as study:
        for number in range(14):
            over = number % 3 == 0
            tell(study, f"d{number}", None if over else 0.02 * number, 12.0 if over else 5.0)
        complete = [trial for trial in trials(study) if trial.state == TrialState.COMPLETE]
        assert len(complete) == 14
        assert {trial.number for trial in study.optuna_study.best_trials} == {13}
        assert [told.number for told in study.front()] == [13]
        assert {tuple(trial.constraints) for trial in complete} == {CONSTRAINTS}
        slow = complete[0]
    assert (slow.values, slow.constraints) == ([0.0, 12.0], {"latency": 2.0})
    assert slow.user_attrs["scored"] is False


def test_tell__a_slow_one_that_was_scored_keeps_its_score(database):
    with opened(database) as study:
        tell(study, "a", 0.4, 11.0)
        assert study.seen("a").accuracy == 0.4
        assert study.front() == []
        assert study.optuna_study.best_trials == []


@pytest.mark.parametrize(
    ("accuracy", "latency_ms"),
    [(float("nan"), 5.0), (1.5, 5.0), (-0.1, 5.0), (float("inf"), 5.0), (0.3, -1.0)],
)
def test_tell__values_that_no_front_can_take(database, accuracy, latency_ms):
    with opened(database) as study:
        proposal = study.ask()
        with pytest.raises(StudyError, match="finite"):
            study.tell_feasible(proposal, "a", accuracy=accuracy, latency_ms=latency_ms)
        study.tell_failed(proposal, "not finite", "a")
        assert trials(study)[0].state == TrialState.FAIL


@pytest.mark.parametrize("latency_ms", [float("nan"), float("inf")])
def test_tell__a_latency_that_is_no_number(database, latency_ms):
    with opened(database) as study, pytest.raises(StudyError):
        study.tell_infeasible(study.ask(), "a", latency_ms=latency_ms)


def test_tell__must_agree_with_the_budget(database):
    with opened(database) as study:
        proposal = study.ask()
        with pytest.raises(StudyError, match="keep the budget of 10ms, got 11 ms"):
            study.tell_feasible(proposal, "a", accuracy=0.3, latency_ms=11.0)
        with pytest.raises(StudyError, match="over the budget of 10ms, got 10 ms"):
            study.tell_infeasible(proposal, "a", latency_ms=10.0)


@pytest.mark.parametrize("value", ["x" * 3000, {"a": 1}, [1], None, float("nan")])
def test_tell__attributes_that_every_reader_would_pay_for(database, value):
    with opened(database) as study, pytest.raises(StudyError, match="attribute"):
        study.tell_feasible(study.ask(), "a", accuracy=0.3, latency_ms=5.0, note=value)


def test_tell__twice_keeps_the_first(database):
    with opened(database) as study:
        proposal = tell(study, "a", 0.3, 5.0)
        study.tell_feasible(proposal, "a", accuracy=0.9, latency_ms=1.0)
        study.tell_failed(proposal, "late")
        (trial,) = trials(study)
        assert study.seen("a").accuracy == 0.3
    assert trial.values == [0.3, 5.0]
    assert "error" not in trial.user_attrs


def test_tell_failed__cuts_the_reason(database):
    with opened(database) as study:
        study.tell_failed(study.ask(), "boom " * 1000, "a")
        (trial,) = trials(study)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"].startswith("boom")
    assert len(trial.user_attrs["error"]) <= 500


# What is known


@pytest.mark.parametrize("reopen", [False, True])
def test_seen__a_duplicate_is_told_at_once(database, reopen):
    with contextlib.ExitStack() as stack:
        study = stack.enter_context(opened(database))
        first = tell(study, "a", 0.3, 5.0)
        if reopen:
            stack.close()
            study = stack.enter_context(opened(database))
        told = study.seen("a")
        assert told == Told(0, "a", first.choices, 5.0, 0.3)
        study.tell_again(study.ask(), told)
        again = trials(study)[1]
        assert (again.values, again.user_attrs["duplicate_of"]) == ([0.3, 5.0], 0)
        assert study.seen("a").number == 0
        assert len(study.front()) == study.evaluated == 1
        assert study.seen("b") is None


def test_seen__a_failure_counts_from_the_second_on(database):
    with opened(database) as study:
        study.tell_failed(study.ask(), "no memory", "a")
        assert study.seen("a") is None
        study.tell_failed(study.ask(), "no memory again", "a")
    with opened(database) as study:
        told = study.seen("a")
        assert told.error == "no memory"
        study.tell_again(study.ask(), told)
        assert trials(study)[2].state == TrialState.FAIL


def test_seen__another_budget_judges_anew(database):
    with opened(database, budget=5.0) as study:
        tell(study, "slow", None, 7.0)
        tell(study, "fast", 0.2, 3.0)
        tell(study, "medium", 0.3, 4.0)
        assert study.seen("slow").accuracy is None
    with opened(database, budget=10.0) as study:
        assert study.seen("slow") is None  # it can win now, and was never scored
        tell(study, "slow", 0.4, 7.0)
        assert [told.digest for told in study.front()] == ["fast", "medium", "slow"]
    with opened(database, budget=3.5) as study:
        assert [told.digest for told in study.front()] == ["fast"]
        assert study.seen("slow").accuracy == 0.4
        study.tell_again(study.ask(), study.seen("slow"))
        assert trials(study)[-1].constraints == {"latency": 3.5}


def test_unbeaten__is_what_was_stopped_for_a_network_that_left_the_front(database):
    with opened(database) as study:
        tell(study, "rival", 0.3, 5.0)
        for digest, estimate, latency_ms in (("a", 0.2, 6.0), ("b", 0.25, 7.0), ("c", 0.1, 9.0)):
            study.tell_estimate(study.ask(), digest, estimate=estimate, latency_ms=latency_ms)
        tell(study, "slow", 0.4, 9.5)
        assert study.unbeaten() == []

    def slower(trial):
        if trial.user_attrs["architecture"] != "rival":
            return trial
        return retold(trial, [0.3, 8.0], {}, {"latency": -2.0})

    with open_storage(database) as storage:
        rewrite_study(storage, "s", slower)
    with opened(database) as study:
        assert [told.digest for told in study.unbeaten()] == ["b", "a"]
    with opened(database, budget=6.5) as study:
        assert [told.digest for told in study.unbeaten()] == ["a"]


# Points


def test_enqueue__anchors_come_first_and_only_once(database):
    anchors = [{name: labels[index] for name, labels in PARAMETERS.items()} for index in (0, -1)]
    for _ in range(2):
        with opened(database) as study:
            for anchor in anchors:
                study.enqueue(anchor)
            if not (number := len([t for t in trials(study) if t.state.is_finished()])):
                assert study.ask().choices == anchors[0]
                continue
            # The first one was left running, failed, and waits again behind the second.
            assert [study.ask().choices for _ in range(2)] == [anchors[1], anchors[0]]
            assert number == 1


@pytest.mark.parametrize(
    "change", [{"depth": 3}, {"block": "none"}, {"unknown": 1}, {"attention": "yes"}]
)
def test_enqueue__a_point_outside_the_space(database, change):
    with opened(database) as study:
        with pytest.raises(StudyError):
            study.enqueue(POINT | change)
        assert not trials(study)


# Databases that fail


def test_ask__a_locked_database_says_so(sqlite):
    with Database(sqlite, busy_timeout_s=0.2) as database, opened(database) as study:
        other = sqlite3.connect(sqlite_path(database.url), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            study.tell_failed(study.ask(), "")
        other.execute("ROLLBACK")
        other.close()
        study.tell_failed(study.ask(), "")
