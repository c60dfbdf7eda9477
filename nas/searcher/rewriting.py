"""An Optuna study written again under its name, because what a trial was told is frozen.

It is written into a copy, which is marked when it is complete, and from there back. Whatever the
process dies of in between, one of the two is complete, and `finish_rewriting` goes on from it.
Trials keep their numbers and times.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, create_trial

__all__ = ["finish_rewriting", "name_metrics", "retold", "rewrite_study"]

_COMPLETE = "copy_is_complete"


def rewrite_study(
    storage: RDBStorage, name: str, change: Callable[[FrozenTrial], FrozenTrial]
) -> None:
    """Replace every trial of a study by what `change` makes of it.

    Nobody else may use the study meanwhile; see `nas.searcher.opening.open_study`.
    """
    finish_rewriting(storage, name)
    before = optuna.load_study(study_name=name, storage=storage)
    after = optuna.create_study(
        study_name=_copy_of(name), storage=storage, directions=before.directions
    )
    if before.metric_names is not None:
        name_metrics(after, before.metric_names)
    for key, value in before.user_attrs.items():
        after.set_user_attr(key, value)
    after.add_trials([change(trial) for trial in before.get_trials(deepcopy=False)])
    after.set_user_attr(_COMPLETE, True)
    finish_rewriting(storage, name)


def finish_rewriting(storage: RDBStorage, name: str) -> None:
    """Finish, or undo, what a dead process left of `rewrite_study`; mostly there is nothing."""
    names = optuna.get_all_study_names(storage)
    if _copy_of(name) not in names:
        return
    made = optuna.load_study(study_name=_copy_of(name), storage=storage)
    if made.user_attrs.get(_COMPLETE):
        if name in names:
            optuna.delete_study(study_name=name, storage=storage)
        optuna.copy_study(
            from_study_name=_copy_of(name),
            from_storage=storage,
            to_storage=storage,
            to_study_name=name,
        )
    optuna.delete_study(study_name=_copy_of(name), storage=storage)


def name_metrics(study: optuna.Study, names: Sequence[str]) -> None:
    """Name the objectives of a study; Optuna warns of it as an experiment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(names))


def retold(
    trial: FrozenTrial,
    values: list[float],
    attributes: Mapping[str, Any],
    violations: Mapping[str, float],
) -> FrozenTrial:
    """Return a finished trial as if it had been told something else."""
    bounds = trial.constraints
    made = create_trial(
        state=trial.state,
        values=values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**trial.user_attrs, **attributes},
        # Optuna keeps constraints among these, each under a key that ends in its name.
        system_attrs={
            key: value
            for key, value in trial.system_attrs.items()
            if key.rpartition(":")[2] not in bounds
        },
        intermediate_values=trial.intermediate_values,
        constraints={**bounds, **violations},
    )
    made.datetime_start, made.datetime_complete = trial.datetime_start, trial.datetime_complete
    return made


def _copy_of(name: str) -> str:
    return f"{name[:480]} (being rewritten)"  # names have 512 characters at most
