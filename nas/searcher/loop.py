"""The search, from a request to a front: the picture in the README as code.

    space, data -> does the budget bite? -> supernet -> what is known -> ask -> latency ->
    (over budget: tell) -> accuracy -> tell -> front

Latency comes first because it is cheap and known; a candidate over budget never costs an accuracy
evaluation. A re-targeted study begins with what its parent scored. One process asks and tells.
Everything measured is stored before the next candidate is asked for, so a killed search loses the
evaluation in flight and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from optuna.samplers import BaseSampler

from nas.accuracy.evaluate import Accuracy
from nas.errors import EngineError, ExportError, MeasurementError, StudyError, TrainingError
from nas.latency.clock import Elapsed
from nas.latency.latency import Latency
from nas.searcher.autonac import AutoNACSampler
from nas.searcher.costs import charged
from nas.searcher.database import State
from nas.searcher.estimate import Estimate
from nas.searcher.judges import Judge, open_judge
from nas.searcher.opening import open_study, study_names
from nas.searcher.points import decode
from nas.searcher.progress import Listener, Member, Status
from nas.searcher.result import StudyResult
from nas.searcher.retarget import (
    Inherited,
    fresh_evaluations,
    handed_down_line,
    inherit,
    kept_line,
    rebudgeted_line,
    worth_a_look,
)
from nas.searcher.sampler import AUTONAC
from nas.searcher.screening import check_budget
from nas.searcher.setting import Setting
from nas.searcher.study import Proposal, Study, Told
from nas.searcher.supernets import weights_of
from nas.space.architecture import Candidate
from nas.space.space_file import Label
from nas.units import Budget

__all__ = ["search"]

_MOST_ASKED = 25  # candidates asked per accuracy evaluation wanted, before the search gives up
_MOST_REPEATS = 200  # proposals in a row that were all known: the sampler has nothing new
_MOST_FAILURES = 8  # candidates in a row that could not be built or measured
_ANY = Budget(10_000.0)  # the largest that there is


def search(setting: Setting, listener: Listener, *, sampler_seed: int | None = None) -> StudyResult:
    """Search, or continue a search, and return the study.

    Args:
        setting: what to search, opened.
        listener: hears how it goes.
        sampler_seed: of the sampler alone, to compare searches on one supernet; the seed of the
            request if None.

    Raises:
        NasError: the budget admits nothing, the study does not fit, or the machine fails; what was
            measured until then is stored.
        KeyboardInterrupt: the user stopped; likewise.
    """
    request = setting.request
    weights = weights_of(setting)
    fingerprint = {
        "space": setting.space.digest,
        "data": setting.dataset.digest,
        "hardware": setting.hardware.name,
        "runtime": setting.answers.target,
        "supernet": weights,
    }
    if request.bounds.stated:
        fingerprint["bounds"] = str(request.bounds)
    name = request.study or _new_name(setting)
    inherited = inherit(setting)
    with (
        open_study(
            setting.database,
            name,
            _sampler(setting, sampler_seed),
            parameters=setting.space.choices,
            fingerprint=fingerprint,
            budget=request.budget,
            bounds=tuple(request.bounds.stated),
            seed=_seed(setting, sampler_seed),
        ) as study,
        setting.database.recorded(name, **setting.run_values()),
    ):
        with charged(setting.database, name):
            check_budget(setting, listener, [one.point for one in inherited if one.on_front])
        judge = open_judge(setting, name, listener)
        with charged(setting.database, name):
            _readmit(setting, study, judge, listener)
            if request.parent:
                setting = _look_at_known(setting, study, judge, inherited, listener)
                sampler = _sampler(setting, sampler_seed)  # it is known now how far the search goes
                if not isinstance(sampler, str):
                    study.optuna_study.sampler = sampler
            for point in setting.space.anchors.values():
                study.enqueue(point)
            listener.stage("Search", setting.request.wanted)
            _Loop(setting, study, judge, listener).run()
        judge.end()
    result = StudyResult.load(setting.database, name, request.budget, request.score)
    counts = result.evaluations["latency_source"].value_counts()
    sources = ", ".join(f"{count} {source}" for source, count in counts.items())
    listener.say(f"Latencies of the candidates: {sources or 'none'}.")
    return result


def _seed(setting: Setting, sampler_seed: int | None) -> int:
    return setting.request.seed if sampler_seed is None else sampler_seed


def _sampler(setting: Setting, sampler_seed: int | None) -> str | BaseSampler:
    """Return the sampler's name; ours is told which points are one candidate, and how far to go."""
    request, choices = setting.request, setting.space.choices
    if request.sampler != AUTONAC:
        return request.sampler

    def key(params: Mapping[str, Any]) -> str:
        return setting.candidate(decode(params, choices)).digest

    def usage(params: Mapping[str, Any]) -> dict[str, float]:
        broken = request.bounds.violations(setting.candidate(decode(params, choices)))
        return {name: 1 + violation for name, violation in broken.items()}

    return AutoNACSampler(
        key=key,
        usage=usage if request.bounds.stated else None,
        n_trials=request.wanted,
        seed=_seed(setting, sampler_seed),
    )


def _readmit(setting: Setting, study: Study, judge: Judge, listener: Listener) -> None:
    """Say what another budget than last time means for what is known, and score what it admits."""
    again = study.readmit()
    runs = [run for run in setting.database.runs(study.name) if run.command == "search"]
    before = runs[-2].budget_ms if len(runs) > 1 else None
    if before and before != study.budget.latency_ms:
        listener.say(rebudgeted_line(study.scored(), Budget(before), study.budget, again))
    if again:
        listener.stage("Score what was too slow before", again)
        _until(setting, study.evaluated + again, study, judge, listener)


def _look_at_known(
    setting: Setting,
    study: Study,
    judge: Judge,
    inherited: Sequence[Inherited],
    listener: Listener,
) -> Setting:
    """Try what the parent scored; return the setting with how many evaluations there shall be."""
    request, queue = setting.request, worth_a_look(inherited, judge)
    listener.say(handed_down_line(setting, inherited, queue, judge))
    for one in queue:
        study.enqueue(one.point)
    listener.stage("Look at what is known", len(queue))
    limit = request.evaluations or max(1, study.evaluated + len(queue))
    _until(setting, limit, study, judge, listener)
    listener.say(kept_line(setting, queue, study))
    told = [study.known(one.candidate.digest) for one in queue]
    known = sum(one is not None and one.is_scored for one in told)
    wanted = request.evaluations or known + fresh_evaluations(request)
    return replace(setting, request=replace(request, evaluations=wanted))


def _until(
    setting: Setting, evaluations: int, study: Study, judge: Judge, listener: Listener
) -> None:
    """Try what is queued, up to so many evaluations in the study."""
    bounded = replace(setting, request=replace(setting.request, evaluations=evaluations))
    _Loop(bounded, study, judge, listener).run(queued_only=True)


class _Loop:
    """Ask, screen, evaluate, tell: until the study has the wanted number of accuracies."""

    def __init__(self, setting: Setting, study: Study, judge: Judge, listener: Listener) -> None:
        self._setting = setting
        self._study = study
        self._judge = judge
        self._listener = listener
        self._elapsed = Elapsed()
        self._asked = self._over = self._repeated = 0
        self._repeats_in_a_row = self._failures_in_a_row = 0

    def run(self, *, queued_only: bool = False) -> None:
        """Run to the end, or to the end of what is queued.

        Raises:
            EngineError: candidate after candidate could not be built or measured.
        """
        wanted = self._setting.request.wanted
        self._report()
        closing = False
        while True:
            closing = closing or self._study.evaluated >= wanted or self._gives_up(wanted)
            promoted = None
            if not queued_only:
                promoted = self._judge.promotion(self._study, closing=closing)
            if promoted is None and (closing or (queued_only and not self._study.waiting)):
                return
            if promoted is not None:
                self._try(self._study.again(promoted), None)
            else:
                proposal = self._study.ask()
                self._asked += 1
                digest = self._setting.candidate(proposal.choices).digest
                self._try(proposal, self._study.seen(digest))
            self._report()

    def _try(self, proposal: Proposal, known: Told | None) -> None:
        candidate = self._setting.candidate(proposal.choices)
        if known is not None:
            self._repeated += 1
            self._repeats_in_a_row += 1
            self._study.tell_again(proposal, known)
            self._store(proposal, candidate, "duplicate")
            return
        self._repeats_in_a_row = 0
        try:
            self._evaluate(proposal, candidate)
            self._failures_in_a_row = 0
        except (EngineError, ExportError, MeasurementError, TrainingError) as error:
            # It costs this candidate, not the search; unless everything fails.
            self._failures_in_a_row += 1
            self._study.tell_failed(proposal, str(error), candidate.digest)
            self._store(proposal, candidate, "failed", error=str(error))
            if self._failures_in_a_row >= _MOST_FAILURES:
                raise

    def _evaluate(self, proposal: Proposal, candidate: Candidate) -> None:
        budget, violations = self._study.budget, self._setting.request.bounds.violations(candidate)
        if any(violation > 0 for violation in violations.values()):
            # Its latency decides nothing any more, so any prediction will do.
            latency = self._setting.latency(candidate, _ANY)
            self._tell_over(proposal, candidate, latency, violations=violations)
            return
        latency = self._setting.latency(candidate, budget)
        if not budget.admits(latency.ms):
            self._tell_over(proposal, candidate, latency, violations=violations)
            return
        scored = self._judge.score(candidate, latency, self._study)
        if isinstance(scored, Estimate):
            self._tell_estimate(proposal, candidate, latency, scored)
            return
        row, accuracy = scored
        if latency.source == "predicted" and self._study.advances(accuracy.map50_95, latency.ms):
            # A prediction may leave a candidate out; a front of the attached device is measured.
            latency = self._setting.latency(candidate)
            if not budget.admits(latency.ms):
                self._tell_over(proposal, candidate, latency, (row, accuracy), violations)
                return
        before = [told.number for told in self._study.front()]
        self._store(proposal, candidate, "complete", latency, row, accuracy)
        self._study.tell_feasible(
            proposal,
            candidate.digest,
            accuracy=accuracy.map50_95,
            latency_ms=latency.ms,
            mAP50=accuracy.map50,
            **_described(latency),
        )
        if [told.number for told in self._study.front()] != before:
            self._store_front(proposal.number)

    def _tell_estimate(
        self, proposal: Proposal, candidate: Candidate, latency: Latency, estimate: Estimate
    ) -> None:
        self._store(proposal, candidate, "stopped", latency, estimate=estimate)
        if estimate.iterations is not None:
            self._study.tell_rung(
                proposal,
                candidate.digest,
                reached=estimate.map50_95,
                iterations=estimate.iterations,
                latency_ms=latency.ms,
                **_described(latency),
            )
            return
        self._study.tell_estimate(
            proposal,
            candidate.digest,
            estimate=estimate.map50_95,
            latency_ms=latency.ms,
            images=estimate.images,
            **_described(latency),
        )

    def _tell_over(
        self,
        proposal: Proposal,
        candidate: Candidate,
        latency: Latency,
        scored: tuple[int, Accuracy] | tuple[None, None] = (None, None),
        violations: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._over += 1
        row, accuracy = scored
        self._store(proposal, candidate, "infeasible", latency, row, accuracy)
        self._study.tell_infeasible(
            proposal,
            candidate.digest,
            latency_ms=latency.ms,
            accuracy=accuracy.map50_95 if accuracy else None,
            violations=violations,
            **_described(latency),
        )

    def _store(
        self,
        proposal: Proposal,
        candidate: Candidate,
        state: State,
        latency: Latency | None = None,
        accuracy_id: int | None = None,
        accuracy: Accuracy | None = None,
        *,
        estimate: Estimate | None = None,
        error: str | None = None,
    ) -> None:
        score = self._setting.request.score
        value = score(accuracy.map50_95, latency.ms) if accuracy and latency else None
        self._setting.database.add_evaluation(
            self._study.name,
            proposal.number,
            architecture=candidate.architecture.digest,
            precision=candidate.precision,
            state=state,
            latency=latency,
            accuracy_id=accuracy_id,
            score=value,
            weights=(score.beta, score.alpha, score.beta),
            estimate=estimate,
            error=error,
        )

    def _store_front(self, trial: int) -> None:
        members = [_member(told) for told in self._study.front()]
        result = StudyResult.load(
            self._setting.database,
            self._study.name,
            self._study.budget,
            self._setting.request.score,
        )
        self._setting.database.add_front(
            self._study.name,
            trial,
            [vars(member) for member in members],
            hypervolume=result.hypervolume,
            reference_point=(0.0, self._study.budget.latency_ms),
        )

    def _gives_up(self, wanted: int) -> bool:
        if self._repeats_in_a_row >= _MOST_REPEATS:
            self._listener.say(
                f"The sampler proposed {_MOST_REPEATS} known candidates in a row: the search ends "
                f"with {self._study.evaluated} of {wanted} evaluations.",
                warning=True,
            )
            return True
        if self._knows_all():
            self._listener.say(
                f"All that the space has was tried: the search ends with {self._study.evaluated} "
                f"of {wanted} evaluations.",
                warning=True,
            )
            return True
        if self._asked >= _MOST_ASKED * wanted:
            self._listener.say(
                f"{self._asked} candidates were asked for, {self._over} broke the budget and "
                f"{self._repeated} were known: the search ends with {self._study.evaluated} of "
                f"{wanted} evaluations.",
                warning=True,
            )
            return True
        return False

    def _knows_all(self) -> bool:
        """Whether every point of the space was tried; looked at when one came again."""
        if not self._repeats_in_a_row:
            return False
        trials = self._study.optuna_study.get_trials(deepcopy=False)
        points = {tuple(sorted(trial.params.items())) for trial in trials}
        return len(points) >= self._setting.space.size

    def _report(self) -> None:
        front = [_member(told) for told in self._study.front()]
        score = self._setting.request.score
        best = max(front, key=lambda m: score(m.map50_95, m.latency_ms), default=None)
        self._listener.status(
            Status(
                evaluated=self._study.evaluated,
                wanted=self._setting.request.wanted,
                asked=self._asked,
                over_budget=self._over,
                repeated=self._repeated,
                per_hour=self._asked / max(self._elapsed.wall_s, 1e-9) * 3600,
                best=best,
                front=front,
            )
        )


def _described(latency: Latency) -> dict[str, Label]:
    return {
        "latency_low_ms": latency.low_ms,
        "latency_high_ms": latency.high_ms,
        "latency_source": latency.source,
    }


def _member(told: Told) -> Member:
    if told.accuracy is None or told.latency_ms is None:
        raise StudyError(f"Trial {told.number} is on the front without values.")
    return Member(told.number, told.accuracy, told.latency_ms)


def _new_name(setting: Setting) -> str:
    taken = set(study_names(setting.database))
    base = f"{setting.space.name}-{setting.dataset.name}-{setting.hardware.name}"
    if setting.space.name == setting.dataset.name:
        base = f"{setting.space.name}-{setting.hardware.name}"
    return next(name for n in itertools.count(1) if (name := f"{base}-{n}") not in taken)
