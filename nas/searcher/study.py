"""An Optuna study that can be killed, resumed and trusted.

Two objectives, accuracy up and latency down, and one constraint, latency minus budget.

`opening.py` sees to it that one process at a time asks a study.

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
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from nas.errors import StudyError
from nas.searcher.connection import translated
from nas.searcher.database import Database
from nas.searcher.points import Parameters, encode, suggest
from nas.searcher.trials import PLACEHOLDER, Proposal, Told, in_range, plain, told_of
from nas.space.front import front_indices
from nas.space.space import Point
from nas.space.space_file import Label
from nas.units import Budget

__all__ = ["CONSTRAINTS", "OBJECTIVES", "Proposal", "Study", "Told"]

OBJECTIVES = ("mAP50-95", "latency_ms")

CONSTRAINTS = ("latency",)
"""What every study constrains; the names of its other bounds follow. All of them are set on every
trial, in one order: the GP tells them apart by their position."""

_MOST_FAILURES = 2
_LONGEST_REASON = 500


class Study:
    """A study that this process alone may ask; made by `nas.searcher.opening.open_study`."""

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

    def unbeaten(self) -> list[Told]:
        """Return what was stopped and would be on the front now by its estimate, the best first.

        What stopped it has left the front since: its latency was measured anew, and is higher.
        """
        found = [
            (-told.estimate, told.latency_ms, told)
            for told in self._told.values()
            if told.accuracy is None and told.iterations is None and told.keeps_bounds
            if told.estimate is not None and told.latency_ms is not None
            if self.advances(told.estimate, told.latency_ms)
        ]
        return [told for *_, told in sorted(found, key=lambda one: one[:2])]

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
def _unless_finished() -> Iterator[None]:
    """A trial that somebody finished meanwhile keeps what it was told then."""
    try:
        yield
    except UpdateFinishedTrialError:
        return
