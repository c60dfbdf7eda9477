from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from toy_study import FINGERPRINT, POINT, opened, tell, trials

from nas.errors import StudyError, UnknownNameError
from nas.searcher.connection import LockedError
from nas.searcher.database import Database
from nas.searcher.opening import delete_study, open_storage, study_names
from nas.searcher.study import OBJECTIVES


def test_open_study__names_its_objectives_and_what_it_is_for(database):
    with opened(database) as study:
        assert tuple(study.optuna_study.metric_names) == OBJECTIVES
        assert study.optuna_study.user_attrs == {"fingerprint": FINGERPRINT, "budget_ms": 10.0}
        assert [direction.name for direction in study.optuna_study.directions] == [
            "MAXIMIZE",
            "MINIMIZE",
        ]
    assert study_names(database) == ["s"]


@pytest.mark.parametrize("what", FINGERPRINT)
def test_open_study__another_fingerprint_is_refused(database, what):
    with opened(database):
        pass
    again = opened(database, fingerprint=FINGERPRINT | {what: "another"})
    with pytest.raises(StudyError, match=f"{what}.*{FINGERPRINT[what]}.*'another'") as error, again:
        pass
    assert error.value.remedy


def test_open_study__somebody_elses_study_is_refused(database):
    with open_storage(database) as storage:
        theirs = optuna.create_study(study_name="s", storage=storage)
        theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="made by this program"), opened(database):
        pass


@pytest.mark.parametrize("name", ["", "x" * 513])
def test_open_study__a_name_that_not_every_database_takes(database, name):
    with pytest.raises(StudyError, match="1 to 512"), opened(database, name):
        pass


def test_open_study__an_unknown_sampler(database):
    with pytest.raises(UnknownNameError), opened(database, sampler="magic"):
        pass
    with opened(database):  # and the lock is free again
        pass


def test_open_study__a_resumed_one_does_not_repeat_its_points(database):
    found = []
    for _ in range(2):
        with opened(database) as study:
            for _ in range(5):
                proposal = study.ask()
                study.tell_failed(proposal, "no reason")
                found.append(tuple(proposal.choices.values()))
    assert found[:5] != found[5:]


def test_open_study__only_once_in_a_process(database):
    with opened(database):
        with pytest.raises(StudyError, match=str(os.getpid())), opened(database):
            pass
        with opened(database, "another"):
            pass


WORKER = """
import os, sys, time
sys.path.insert(0, {here!r})
from nas.searcher.database import Database
from toy_study import opened
with Database({url!r}) as database, opened(database) as study:
    study.enqueue({point!r})
    proposal = study.ask()
    proposal.trial.set_constraint("latency", -1.0)
    print(proposal.number, flush=True)
    time.sleep(99)
"""


@contextlib.contextmanager
def worker(url, point=POINT):
    """A process in the middle of a trial; killed at the end."""
    here = str(Path(__file__).parents[1])
    code = WORKER.format(here=here, url=url, point=point)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip().isdigit()
    yield process
    process.kill()
    process.communicate()


def test_open_study__a_second_process_is_refused(database, url):
    with worker(url) as process:
        with pytest.raises(StudyError, match=f"process {process.pid} ") as error, opened(database):
            pass
        with pytest.raises(LockedError):
            delete_study(database, "s")
    assert error.value.remedy


def test_open_study__a_killed_process_left_a_trial_that_is_tried_again(database, url):
    with worker(url):
        pass
    with opened(database) as study:
        proposal = study.ask()
        assert (proposal.choices, proposal.attempt) == (POINT, 2)
        study.tell_feasible(proposal, "a", accuracy=0.3, latency_ms=9.0)
        dead, alive = trials(study)
    assert dead.state == TrialState.FAIL
    assert alive.user_attrs["retry_of"] == 0
    assert alive.constraints == {"latency": -1.0}  # its own: the dead trial's was not copied
    assert alive.values == [0.3, 9.0]


def test_open_study__a_trial_that_keeps_killing_is_given_up(database):
    asked = []
    for _ in range(4):
        with opened(database) as study:
            if not asked:
                study.enqueue(POINT)
            asked.append(study.ask())
    assert [proposal.attempt for proposal in asked] == [1, 2, 3, 1]
    with opened(database) as study:
        states = [trial.state for trial in trials(study)]
    assert TrialState.RUNNING not in states


def test_open_study__tells_a_dead_trial_even_if_its_process_was_killed_before_it_had_a_point(
    database,
):
    with opened(database) as study:
        study.optuna_study.ask()
    with opened(database) as study:
        assert [trial.state for trial in trials(study)] == [TrialState.FAIL]


def test_open_study__an_evaluation_that_was_stored_but_never_told_is_the_copys(database):
    database.add_architecture("a", space="s", text="stem: 16", macs=1)
    known = {"architecture": "a", "precision": "fp32", "state": "complete"}
    with opened(database) as study:
        study.enqueue(POINT)
        told, untold = study.ask(), study.ask()
        for proposal in (told, untold):
            database.add_evaluation("s", proposal.number, **known)
        study.tell_feasible(told, "a", accuracy=0.3, latency_ms=9.0)
    with opened(database):
        assert database.evaluations("s")["trial_number"].tolist() == [told.number]


def test_open_study__a_candidate_is_not_blamed_for_a_killed_process(database):
    for _ in range(3):
        with opened(database) as study:
            study.enqueue(POINT)
            study.ask().trial.set_user_attr("architecture", "a")
    with opened(database) as study:
        assert study.seen("a") is None


def test_delete_study__really_deletes(database):
    with opened(database) as study:
        tell(study, "a", 0.3, 5.0)
    with opened(database, "another") as study:
        pass
    database.add_architecture("a", space="s", text="")
    database.add_evaluation("s", 0, architecture="a", precision="fp32", state="complete")
    database.add_front("s", 0, [], hypervolume=0.0, reference_point=(0, 10))
    delete_study(database, "s")
    assert study_names(database) == ["another"]
    assert database.fronts("s") == []
    assert database.evaluations("s").empty
    with opened(database) as study:
        assert trials(study) == []
        assert study.seen("a") is None


def test_delete_study__an_unknown_one(database):
    with opened(database, "mine"), pytest.raises(UnknownNameError, match="'mine'"):
        delete_study(database, "mime")


def test_open_study__optuna_gets_the_pragmas_too(sqlite):
    with (
        Database(sqlite, busy_timeout_s=7) as database,
        open_storage(database) as storage,
        storage.engine.connect() as connection,
    ):
        names = ("journal_mode", "synchronous", "busy_timeout")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert found == ["wal", 1, 7000]
