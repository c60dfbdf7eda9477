"""An Optuna study that can be killed, resumed and trusted.

Two objectives, accuracy up and latency down, and one constraint, latency minus budget.

**One asker.** Several processes that ask on SQLite run the same queued trial twice, and a trial
that is RUNNING when a study is opened can only be taken for dead if nobody else is running it. So a
lock lets one process at a time open a study, on SQLite and PostgreSQL alike. What a killed process
left RUNNING is told FAIL and queued again, at most twice; the copy gets the parameters alone,
because a copied constraint could never be set again.

**What an infeasible trial is told.** A candidate over budget is COMPLETE with its true latency, the
violated constraint and the placeholder accuracy 0; no sampler, front or plot takes it for feasible,
and the attribute `scored` tells the placeholder from a score. PRUNED would teach TPE the same, as
it ranks violated trials by their violation in any state, but NSGA-II and GP learn from COMPLETE
trials only (on a toy problem with 45 trials, GP then proposes three times as many infeasible
points), and the dashboard draws no others. Telling the GP the mean instead of 0 made no difference.

**Another budget.** A study may be resumed under another budget. Latencies and accuracies stay true,
so `Study.front` and `Study.seen` judge every trial by the budget of now; a candidate that was too
slow and no longer is counts as unseen, and `Study.readmit` queues it again. The constraints inside
Optuna are frozen with their trials and keep the budget of then: a sampler learns the new one from
new trials.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from nas.errors import StorageError, StudyError, UnknownNameError
from nas.searcher.connection import LockedError, engine_options, exclusive, set_pragmas, translated
from nas.searcher.database import Database
from nas.searcher.migrations import SCHEMA_LOCK
from nas.searcher.points import Parameters, encode, suggest
from nas.searcher.rewriting import finish_rewriting, name_metrics
from nas.searcher.sampler import make_sampler
from nas.searcher.trials import PLACEHOLDER, Proposal, Told, in_range, plain, told_of
from nas.space.front import front_indices
from nas.space.space import Label, Point
from nas.units import Budget

__all__ = [
    "CONSTRAINTS",
    "OBJECTIVES",
    "Proposal",
    "Study",
    "Told",
    "delete_study",
    "open_storage",
    "open_study",
    "quiet_optuna",
    "study_names",
]

OBJECTIVES = ("mAP50-95", "latency_ms")
_DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)

CONSTRAINTS = ("latency",)
"""What every study constrains; the names of its other bounds follow. All of them are set on every
trial, in one order: the GP tells them apart by their position."""

_MOST_ATTEMPTS = 3  # the first, and two after a process was killed
_MOST_FAILURES = 2
_LONGEST_NAME = 512
_LONGEST_REASON = 500


class Study:
    """A study that this process alone may ask; made by `open_study`."""

    def __init__(
        self,
        study: optuna.Study,
        database: Database,
        parameters: Parameters,
        budget: Budget,
        bounds: Collection[str] = (),
        *,
        storage: RDBStorage,
    ) -> None:
        self.name = study.study_name
        self.budget = budget
        self.parameters = {name: tuple(labels) for name, labels in parameters.items()}
        self.optuna_study = study
        self._bounds = tuple(bounds)
        self._storage = storage
        self._url = database.url
        self._told: dict[str, Told] = {}
        self._failures: Counter[str] = Counter()
        self._rungs: dict[int, dict[str, Told]] = {}
        for trial in study.get_trials(deepcopy=False):
            if (told := told_of(trial)) is not None:
                self._remember(told)

    @property
    def evaluated(self) -> int:
        """How many distinct candidates were scored, in part or whole, in this and earlier runs."""
        return sum(told.is_scored for told in self._told.values())

    def ask(self) -> Proposal:
        """Take the next queued point, or let the sampler propose one."""
        with translated(self._url):
            trial = self.optuna_study.ask()
            choices = suggest(trial, self.parameters)
            attempt = int(trial.user_attrs.get("attempt", 1))
        return Proposal(trial.number, choices, attempt, trial)

    def again(self, told: Told) -> Proposal:
        """Begin another trial of a candidate that was scored in part; no sampler is asked."""
        with translated(self._url):
            known = self.optuna_study.get_trials(deepcopy=False)[told.number]
            template = create_trial(
                state=TrialState.RUNNING, params=known.params, distributions=known.distributions
            )
            study_id = self._storage.get_study_id_from_name(self.name)
            trial = Trial(self.optuna_study, self._storage.create_new_trial(study_id, template))
        return Proposal(trial.number, dict(told.choices), 1, trial)

    def enqueue(self, choices: Point) -> None:
        """Queue a point; one that the study has already, in any state, is not queued again.

        Raises:
            StudyError: a choice is missing or unknown, or has no such label.
        """
        parameters = encode(choices, self.parameters)
        with translated(self._url):
            self.optuna_study.enqueue_trial(parameters, skip_if_exists=True)

    def readmit(self) -> int:
        """Queue what an earlier budget refused and this one admits; return how many wait so."""
        lost = [
            told
            for told in self._told.values()
            if told.latency_ms is not None
            and self.seen(told.digest) is None
            and self._failures[told.digest] < _MOST_FAILURES
        ]
        queued = [trial.system_attrs.get("fixed_params") for trial in self._waiting()]
        for told in lost:
            parameters = encode(told.choices, self.parameters)
            if parameters not in queued:
                with translated(self._url):
                    self.optuna_study.enqueue_trial(parameters)
        return len(lost)

    @property
    def waiting(self) -> int:
        """How many points are queued."""
        return len(self._waiting())

    def _waiting(self) -> list[FrozenTrial]:
        with translated(self._url):
            return self.optuna_study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def known(self, digest: str) -> Told | None:
        """Find what was told about a candidate, if anything."""
        return self._told.get(digest)

    def scored(self) -> list[Told]:
        """Return the distinct candidates that have an accuracy, by trial."""
        found = (told for told in self._told.values() if told.accuracy is not None)
        return sorted(found, key=lambda told: told.number)

    def seen(self, digest: str) -> Told | None:
        """Find what is known about a candidate, if nothing is left to find out.

        That is: it was scored, or it is too slow for the budget, or it failed twice.
        """
        told = self._told.get(digest)
        if told is None:
            return None
        if told.latency_ms is None:
            return told if self._failures[digest] >= _MOST_FAILURES else None
        is_lost = not self.budget.admits(told.latency_ms) or not told.keeps_bounds
        return told if is_lost or told.is_scored else None

    def front(self) -> list[Told]:
        """Return the non-dominated candidates that keep the budget of now, by ascending latency."""
        feasible = [told for told in self._told.values() if told.is_feasible(self.budget)]
        accuracies = np.array([told.accuracy for told in feasible], dtype=np.float64)
        latencies = np.array([told.latency_ms for told in feasible], dtype=np.float64)
        return [feasible[index] for index in front_indices(accuracies, latencies)]

    def at_rung(self, iterations: int) -> dict[str, Told]:
        """Return what was scored after so many steps of training, and keeps the budget of now."""
        return {
            digest: told
            for digest, told in self._rungs.get(iterations, {}).items()
            if told.latency_ms is not None and self.budget.admits(told.latency_ms)
        }

    def rival(self, latency_ms: float) -> Told | None:
        """Return what a candidate of this latency has to beat: the best of the front so far."""
        faster = [one for one in self.front() if (one.latency_ms or 0.0) <= latency_ms]
        return faster[-1] if faster else None

    def advances(self, accuracy: float, latency_ms: float) -> bool:
        """Whether a candidate with these values would be on the front."""
        return self.budget.admits(latency_ms) and not any(
            one.accuracy >= accuracy and one.latency_ms <= latency_ms
            for one in self.front()
            if one.accuracy is not None and one.latency_ms is not None
        )

    def tell_feasible(
        self,
        proposal: Proposal,
        digest: str,
        *,
        accuracy: float,
        latency_ms: float,
        **attributes: Label,
    ) -> None:
        """Finish a trial whose candidate keeps the budget.

        Args:
            proposal: what was asked.
            digest: of the candidate.
            accuracy: mAP50-95.
            latency_ms: at most the budget.
            attributes: what else the dashboard should show about the trial.

        Raises:
            StudyError: a value is not finite or out of range, or the latency is over budget.
        """
        if not self.budget.admits(latency_ms):
            raise StudyError(
                f"A feasible trial must keep the budget of {self.budget}, got {latency_ms:g} ms.",
                "Tell it as infeasible.",
            )
        self._finish(proposal, digest, latency_ms, accuracy, attributes)

    def tell_estimate(
        self,
        proposal: Proposal,
        digest: str,
        *,
        estimate: float,
        latency_ms: float,
        **attributes: Label,
    ) -> None:
        """Finish a trial whose evaluation was stopped, because another on the front is better.

        Samplers take the estimate for an accuracy; no front does.

        Args:
            proposal: what was asked.
            digest: of the candidate.
            estimate: of mAP50-95 on all validation images.
            latency_ms: at most the budget.
            attributes: what else the dashboard should show about the trial.

        Raises:
            StudyError: a value is not finite or out of range.
        """
        self._finish(proposal, digest, latency_ms, estimate, attributes, fidelity="subset")

    def tell_rung(
        self,
        proposal: Proposal,
        digest: str,
        *,
        reached: float,
        iterations: int,
        latency_ms: float,
        **attributes: Label,
    ) -> None:
        """Finish a trial whose candidate was scored after part of its training, and may go on.

        It is PRUNED: what a network reaches early is no accuracy to learn from, nor to compare with
        one of another rung.

        Args:
            proposal: what was asked.
            digest: of the candidate.
            reached: mAP50-95.
            iterations: steps of training.
            latency_ms: at most the budget.
            attributes: what else the dashboard should show about the trial.

        Raises:
            StudyError: a value is not finite or out of range.
        """
        own: dict[str, Label] = {
            "architecture": digest,
            "budget_ms": self.budget.latency_ms,
            "fidelity": "rung",
            "estimate": in_range("mAP", reached, 1),
            "iterations": iterations,
            "latency_ms": in_range("latency", latency_ms, math.inf),
        }
        with translated(self._url), _unless_finished():
            self._describe(proposal, {**attributes, **own})
            self.optuna_study.tell(proposal.trial, state=TrialState.PRUNED, skip_if_finished=True)
        self._remember(
            Told(
                *(proposal.number, digest, proposal.choices, latency_ms, None),
                estimate=reached,
                iterations=iterations,
            )
        )

    def tell_infeasible(
        self,
        proposal: Proposal,
        digest: str,
        *,
        latency_ms: float,
        accuracy: float | None = None,
        violations: Mapping[str, float] | None = None,
        **attributes: Label,
    ) -> None:
        """Finish a trial whose candidate breaks the budget or a bound; usually it is never scored.

        Args:
            proposal: what was asked.
            digest: of the candidate.
            latency_ms: of the candidate.
            accuracy: mAP50-95, if it is known all the same.
            violations: of the bounds beside the latency; more than 0 breaks one.
            attributes: what else the dashboard should show about the trial.

        Raises:
            StudyError: a value is not finite or out of range, or nothing is broken.
        """
        broken = violations or {}
        if self.budget.admits(latency_ms) and all(one <= 0 for one in broken.values()):
            raise StudyError(
                f"An infeasible trial must be over the budget of {self.budget}, "
                f"got {latency_ms:g} ms.",
                "Score the candidate and tell it as feasible.",
            )
        self._finish(proposal, digest, latency_ms, accuracy, attributes, broken)

    def tell_again(self, proposal: Proposal, told: Told) -> None:
        """Finish a trial whose candidate is known already with what is known."""
        if told.latency_ms is None:
            self.tell_failed(proposal, told.error, told.digest)
            return
        if told.iterations is not None and told.estimate is not None:
            self.tell_rung(
                *(proposal, told.digest),
                reached=told.estimate,
                iterations=told.iterations,
                latency_ms=told.latency_ms,
                duplicate_of=told.number,
            )
            return
        attributes = {"duplicate_of": told.number}
        known, fidelity = told.accuracy, "whole"
        if known is None and told.estimate is not None:
            known, fidelity = told.estimate, "subset"
        self._finish(
            *(proposal, told.digest, told.latency_ms, known, attributes, told.violations),
            fidelity=fidelity,
        )

    def tell_failed(self, proposal: Proposal, reason: str, digest: str = "") -> None:
        """Finish a trial that gave no values; samplers do not see it."""
        attributes: dict[str, Label] = {"error": reason[:_LONGEST_REASON] or "unknown"}
        if digest:
            attributes["architecture"] = digest
        with translated(self._url), _unless_finished():
            self._describe(proposal, attributes)
            self.optuna_study.tell(proposal.trial, state=TrialState.FAIL, skip_if_finished=True)
        if digest:
            error = str(attributes["error"])
            self._remember(Told(proposal.number, digest, proposal.choices, None, None, error))

    def _finish(
        self,
        proposal: Proposal,
        digest: str,
        latency_ms: float,
        accuracy: float | None,
        attributes: Mapping[str, Label],
        broken: Mapping[str, float] = MappingProxyType({}),
        *,
        fidelity: str = "whole",
    ) -> None:
        """Tell a trial its values: the only way, so that none lacks a constraint."""
        latency_ms = in_range("latency", latency_ms, math.inf)
        values = [PLACEHOLDER if accuracy is None else in_range("mAP", accuracy, 1), latency_ms]
        own: dict[str, Label] = {
            "architecture": digest,
            "budget_ms": self.budget.latency_ms,
            "scored": accuracy is not None,
        }
        whole = fidelity == "whole"
        if not whole:
            own["fidelity"] = fidelity
        violations = dict.fromkeys(self._bounds, 0.0) | dict(broken)
        constraints = {"latency": latency_ms - self.budget.latency_ms} | violations
        with translated(self._url), _unless_finished():
            self._describe(proposal, {**attributes, **own})
            for name in (*CONSTRAINTS, *self._bounds):
                proposal.trial.set_constraint(name, constraints[name])
            self.optuna_study.tell(proposal.trial, values, skip_if_finished=True)
        told = Told(
            *(proposal.number, digest, proposal.choices, latency_ms),
            accuracy if whole else None,
            violations=violations,
            estimate=None if whole else accuracy,
        )
        self._remember(told)

    def _describe(self, proposal: Proposal, attributes: Mapping[str, Label]) -> None:
        choices = json.dumps(proposal.choices, separators=(",", ":"))
        proposal.trial.set_user_attr("choices", choices)
        for name, value in attributes.items():
            proposal.trial.set_user_attr(name, plain(name, value))

    def _remember(self, told: Told) -> None:
        known = self._told.get(told.digest)
        if told.latency_ms is None:
            self._failures[told.digest] += 1
        if told.iterations is not None:
            self._rungs.setdefault(told.iterations, {}).setdefault(told.digest, told)
        if known is None or told.extent > known.extent:
            self._told[told.digest] = told


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


@contextmanager
def _unless_finished() -> Iterator[None]:
    """A trial that somebody finished meanwhile keeps what it was told then."""
    try:
        yield
    except UpdateFinishedTrialError:
        return
