"""Creating, resuming, listing and deleting the studies of a database.

**One asker.** Several processes that ask on SQLite run the same queued trial twice, and a trial
that is RUNNING when a study is opened can only be taken for dead if nobody else is running it. So a
lock lets one process at a time open a study, on SQLite and PostgreSQL alike. What a killed process
left RUNNING is told FAIL and queued again, at most twice; the copy gets the parameters alone,
because a copied constraint could never be set again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from nas.errors import StorageError, StudyError, UnknownNameError
from nas.searcher.connection import LockedError, engine_options, exclusive, set_pragmas, translated
from nas.searcher.database import Database
from nas.searcher.migrations import SCHEMA_LOCK
from nas.searcher.points import Parameters
from nas.searcher.rewriting import finish_rewriting, name_metrics
from nas.searcher.sampler import make_sampler
from nas.searcher.study import OBJECTIVES, Study
from nas.units import Budget

__all__ = ["delete_study", "open_storage", "open_study", "quiet_optuna", "study_names"]

_DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
_MOST_ATTEMPTS = 3  # the first, and two after a process was killed
_LONGEST_NAME = 512


@contextmanager
def open_study(
    database: Database,
    name: str,
    sampler: str | BaseSampler,
    *,
    parameters: Parameters,
    fingerprint: Mapping[str, str],
    budget: Budget,
    bounds: Collection[str] = (),
    seed: int = 0,
) -> Iterator[Study]:
    """Create or resume a study, and keep all other processes from asking it meanwhile.

    Args:
        database: where it lives.
        name: of the study.
        sampler: a name that `make_sampler` knows, or a sampler.
        parameters: choice -> its labels, from small to large (`SearchSpace.choices`).
        fingerprint: what all trials must share to be comparable, such as `{"space": digest,
            "data": digest, "hardware": "l4", "recipe": digest}`.
        budget: the hard bound on latency.
        bounds: names of the bounds beside it; part of the fingerprint if there are any.
        seed: of the sampler.

    Raises:
        StudyError: the study exists and has another fingerprint, another process searches it, or
            the name is empty or too long.
        UnknownNameError: there is no such sampler.
        StorageError: the database cannot be read or written.
    """
    _check_name(name)
    with ExitStack() as stack:
        stack.enter_context(quiet_optuna())
        try:
            stack.enter_context(exclusive(database.engine, f"study {name}", timeout_s=1))
        except LockedError as error:
            raise StudyError(
                f"Only one process may search the study {name!r} at a time, "
                f"and {error.holder} does.",
                "Wait until it ends, end it, or give this search another name.",
            ) from error
        storage = stack.enter_context(open_storage(database))
        with translated(database.url):
            study = _create(storage, name, fingerprint)
            study.set_user_attr("budget_ms", budget.latency_ms)
            n_trials = len(study.get_trials(deepcopy=False))
            study.sampler = (
                make_sampler(sampler, seed, n_trials) if isinstance(sampler, str) else sampler
            )
            _requeue_stale(study, database)
            opened = Study(study, database, parameters, budget, bounds, storage=storage)
        yield opened


@contextmanager
def open_storage(database: Database) -> Iterator[RDBStorage]:
    """Open Optuna's tables in a database, and make them if there are none.

    Raises:
        StorageError: the database cannot be read or written, or another version of Optuna made it.
    """
    url = database.url.render_as_string(hide_password=False)
    options = engine_options(database.url, database.busy_timeout_s)
    with translated(database.url), exclusive(database.engine, SCHEMA_LOCK):
        try:
            storage = RDBStorage(url, engine_kwargs=options)
        except RuntimeError as error:
            raise StorageError(
                f"Optuna must know the schema of its own tables, and not in {database}: {error}",
                "Upgrade them with: optuna storage upgrade --storage <url>.",
            ) from error
    if database.url.get_backend_name() == "sqlite":
        set_pragmas(storage.engine, "synchronous=NORMAL")
        storage.engine.dispose()  # its constructor connected before the pragma was there
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def study_names(database: Database) -> list[str]:
    """List the studies of a database."""
    with open_storage(database) as storage, translated(database.url):
        return sorted(optuna.get_all_study_names(storage))


def delete_study(database: Database, name: str) -> None:
    """Delete a study, its trials, and what our tables know about them; caches stay.

    Raises:
        UnknownNameError: there is no such study.
        LockedError: a process searches it.
    """
    with (
        exclusive(database.engine, f"study {name}", timeout_s=1),
        open_storage(database) as storage,
        translated(database.url),
    ):
        known = optuna.get_all_study_names(storage)
        if name not in known:
            raise UnknownNameError.of("study", name, known)
        database.delete_study(name)
        optuna.delete_study(study_name=name, storage=storage)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna tells every study that it makes and every point that it skips."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _check_name(name: str) -> None:
    if not 0 < len(name) <= _LONGEST_NAME:
        raise StudyError(
            f"A study's name has 1 to {_LONGEST_NAME} characters, got {len(name)}.",
            "Give it a shorter one.",
        )


def _create(storage: RDBStorage, name: str, fingerprint: Mapping[str, str]) -> optuna.Study:
    finish_rewriting(storage, name)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=_DIRECTIONS,
        load_if_exists=True,
        sampler=RandomSampler(seed=0),  # replaced as soon as the number of trials is known
    )
    if "fingerprint" not in study.user_attrs and not study.get_trials(deepcopy=False):
        name_metrics(study, OBJECTIVES)
        study.set_user_attr("fingerprint", dict(fingerprint))
    _check_fingerprint(study, fingerprint)
    return study


_MEANING = {"supernet": "supernet, and so the recipe and seed that train it"}


def _check_fingerprint(study: optuna.Study, fingerprint: Mapping[str, str]) -> None:
    theirs = study.user_attrs.get("fingerprint")
    if theirs is None or tuple(study.directions) != _DIRECTIONS:
        raise StudyError(
            f"The study {study.study_name!r} must have been made by this program, and was not.",
            "Give this search another name.",
        )
    for name in sorted({*theirs, *fingerprint}):
        if theirs.get(name) != fingerprint.get(name):
            raise StudyError(
                f"All trials of a study must share their {_MEANING.get(name, name)}: "
                f"{study.study_name!r} has "
                f"{theirs.get(name)!r}, and this search {fingerprint.get(name)!r}.",
                "Give this search another name, or go back to what the study was made for.",
            )


def _requeue_stale(study: optuna.Study, database: Database) -> None:
    """Fail what a dead process left running, and queue it again unless it keeps killing them.

    An evaluation is stored before its trial is told. If the process died between the two, the copy
    of the trial will have that evaluation: what was measured is still known.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        database.remove_evaluation(study.study_name, trial.number)
        study.tell(trial.number, state=TrialState.FAIL)
        attempt = int(trial.user_attrs.get("attempt", 1))
        parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if parameters and attempt < _MOST_ATTEMPTS:
            attributes = {"attempt": attempt + 1, "retry_of": trial.number}
            study.enqueue_trial(parameters, user_attrs=attributes)
