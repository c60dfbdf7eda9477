from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from nas.searcher.database import Database
from nas.searcher.opening import open_storage
from nas.searcher.rewriting import finish_rewriting, name_metrics, retold, rewrite_study

NAME = "mine"
_ATTRIBUTE = "note"


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[RDBStorage]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with (
        Database(f"sqlite:///{tmp_path}/nas.db") as database,
        open_storage(database) as storage,
    ):
        study = optuna.create_study(
            storage=storage, study_name=NAME, directions=["maximize", "minimize"]
        )
        study.set_user_attr("fingerprint", {"space": "a"})
        name_metrics(study, ["mAP", "ms"])
        for index in range(3):
            trial = study.ask({"width": optuna.distributions.IntDistribution(1, 9)})
            trial.set_user_attr(_ATTRIBUTE, index)
            trial.set_constraint("latency", index - 1.0)
            study.tell(trial, [0.1 * index, 1.0 + index])
        study.tell(study.ask(), state=TrialState.FAIL)
        study.enqueue_trial({"width": 5})
        yield storage


def _load(storage: RDBStorage) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=storage)


def _slower(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.COMPLETE:
        return trial
    accuracy, latency = trial.values
    return retold(trial, [accuracy, 2 * latency], {"new": True}, {"latency": 2 * latency - 2})


def test_rewrite__changes_what_was_told_and_nothing_else(storage: RDBStorage) -> None:
    before = _load(storage).trials
    rewrite_study(storage, NAME, _slower)
    after = _load(storage)
    assert after.user_attrs["fingerprint"] == {"space": "a"}
    assert after.metric_names == ["mAP", "ms"]
    assert optuna.get_all_study_names(storage) == [NAME]
    for old, new in zip(before, after.trials, strict=True):
        assert (new.number, new.state, new.params) == (old.number, old.state, old.params)
        assert new.datetime_complete == old.datetime_complete
        if old.state == TrialState.COMPLETE:
            assert new.values == [old.values[0], 2 * old.values[1]]
            assert new.constraints == {"latency": 2 * old.values[1] - 2}
            assert new.user_attrs == {**old.user_attrs, "new": True}


def test_rewrite__a_queued_point_stays_queued(storage: RDBStorage) -> None:
    rewrite_study(storage, NAME, _slower)
    trial = _load(storage).ask({"width": optuna.distributions.IntDistribution(1, 9)})
    assert trial.params == {"width": 5}


@pytest.mark.parametrize("dies_in", ["add_trials", "copy_study", "delete_study"])
def test_finish__whatever_it_died_of(
    storage: RDBStorage, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    """A process that dies leaves the study as it was, or as it should be: never in between."""
    before = [trial.values for trial in _load(storage).trials]

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        where = optuna.Study if dies_in == "add_trials" else optuna
        patch.setattr(where, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            rewrite_study(storage, NAME, _slower)
    finish_rewriting(storage, NAME)
    assert optuna.get_all_study_names(storage) == [NAME]
    after = [trial.values for trial in _load(storage).trials]
    changed = [None if one is None else [one[0], 2 * one[1]] for one in before]
    assert after == (before if dies_in == "add_trials" else changed)
