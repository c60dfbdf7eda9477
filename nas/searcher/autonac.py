"""`AutoNACSampler`: an Optuna sampler for expensive accuracies and cheap latencies.

It works in anyone's study: over categorical and integer parameters that may depend on each other,
with one objective (accuracy) or two (accuracy, latency to be minimised), with constraints set by
`trial.set_constraint`, with the trials of other samplers in it, and with several processes. Other
parameters are drawn at random::

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=AutoNACSampler(seed=0))

**What is learned from which trial.** Accuracy from trials that keep all constraints, or whose
attribute `scored` says that they have one: the studies of this project tell a candidate over budget
a placeholder. Latency and constraints from every trial that has them.

**Repeatable.** All random draws depend on the seed and the number of the trial, and what was
learned on the trials alone: a search that was stopped and resumed goes on as if it had not been.

**Several processes.** A proposal is stored with its trial before the trial starts, and proposals
are compared after that: whoever finds its own at a trial that it did not know proposes again. What
the parameters are is not known before a trial has finished, unless it is given as `search_space`;
trials that start until then count through the points by their numbers, so no two are equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from nas.errors import InputError
from nas.searcher.autonac_history import (
    PROPOSAL,
    Choices,
    History,
    Params,
    choices_of,
    counted,
    finite,
    is_proposed,
    params_of,
)
from nas.searcher.autonac_round import Memory, Question, expected_best, next_point

__all__ = ["AutoNACSampler"]

_FRONT_SHARE = 0.5
_MOST_CLAIMS = 8  # proposals that other processes took at the same moment


class AutoNACSampler(BaseSampler):
    """Proposes the point whose accuracy is expected to improve the best, or the front, the most.

    Args:
        search_space: Optuna's distributions by name, if they are known before the first trial; else
            they are read from the trials.
        latency: the latencies in ms of some points, where they can be computed; None learns them
            from the second objective of trials.
        figures: other positive figures of some points, (N, E), that accuracy may depend on, such as
            MACs and parameters.
        key: what two points share if they describe one candidate; it is not proposed twice.
        usage: the figures of a point over their bounds, by the name of the constraint, where that
            is exact and cheap, such as parameters over the most that there may be: what uses more
            than 1 of a bound is not proposed. Other constraints are learned from trials.
        budget_ms: the upper bound of latency. None takes the attribute `budget_ms` of the study, or
            the largest of `budgets`, or none.
        budgets: the latencies in ms at which the front is wanted; none advances the whole of it.
        front_share: of the trials that go to the whole front, 0..1, the others toward the budget.
            None takes all of them if there is no budget or a list of budgets, half of them if the
            study has two objectives, and none of them otherwise.
        anchors: points to begin with.
        n_trials: how many accuracies there will be, if that is known: the last of them are searched
            for around the front alone.
        seed: of every random draw; None takes one from the operating system.

    Raises:
        InputError: a budget is not positive, or the share does not lie in 0..1.
    """

    def __init__(  # noqa: PLR0913 - each of them is something that a user may know
        self,
        *,
        search_space: Mapping[str, BaseDistribution] | None = None,
        latency: Callable[[Sequence[Params]], Sequence[float]] | None = None,
        figures: Callable[[Sequence[Params]], NDArray[np.float64]] | None = None,
        key: Callable[[Params], Hashable] | None = None,
        usage: Callable[[Params], Mapping[str, float]] | None = None,
        budget_ms: float | None = None,
        budgets: Sequence[float] = (),
        front_share: float | None = None,
        anchors: Sequence[Params] = (),
        n_trials: int | None = None,
        seed: int | None = None,
    ) -> None:
        for one in (*budgets, *([] if budget_ms is None else [budget_ms])):
            if not one > 0:
                raise InputError(f"A budget is positive, got {one:g} ms.")
        if front_share is not None and not 0 <= front_share <= 1:
            raise InputError(f"The front's share of trials lies in 0..1, got {front_share:g}.")
        self._space = None if search_space is None else dict(search_space)
        self._front_share = front_share
        self._question = Question(
            latency=latency,
            figures=figures,
            key=key,
            usage=usage,
            budget_ms=budget_ms,
            budgets=tuple(budgets),
            anchors=tuple(anchors),
            n_trials=n_trials,
        )
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._memory: Memory | None = None

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return every parameter that is sampled together: those with finitely many values."""
        if self._space is not None:
            return self._space
        others = _others(study, trial)
        # A running trial may not have asked for all of its parameters yet.
        return choices_of(others) if any(one.state.is_finished() for one in others) else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose the parameters of a trial, and store them with it.

        Raises:
            InputError: the second objective is maximised.
        """
        if (
            not search_space
            or search_space.keys() <= trial.system_attrs.get("fixed_params", {}).keys()
        ):
            return {}
        question, memory = self._of(study), self._remembered(study, search_space)
        for attempt in range(_MOST_CLAIMS):
            others = _others(study, trial)
            known = {one.number: params_of(one) for one in others}
            history = History.of(study, others, memory.choices, memory.codes)
            rng = np.random.default_rng([self._seed, trial.number, attempt])
            params = next_point(question, history, memory, rng)
            text = json.dumps(params)
            # As Optuna's own samplers do: nothing public lets a sampler store anything.
            study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, text)  # noqa: SLF001
            now = ((one.number, params_of(one)) for one in _others(study, trial))
            if not any(one == params != known.get(number) for number, one in now):
                break
        return params

    def recommend(self, study: Study) -> FrozenTrial | None:
        """Pick the trial whose accuracy is expected to be the best, where accuracies have noise.

        Of many noisy accuracies the highest is a lucky one. This is the posterior mean's choice
        among the trials that were scored and keep the budget; None if there is none.
        """
        trials = study.get_trials(deepcopy=False)
        space = choices_of(trials) if self._space is None else self._space
        if not space:
            return None
        memory = self._remembered(study, space)
        history = History.of(study, trials, memory.choices, memory.codes)
        row = expected_best(self._of(study), history, memory)
        return None if row is None else study.trials[int(history.numbers[row])]

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that is not sampled together with others at random.

        A trial that started before there was anything to learn counts through the values instead.
        """
        if not is_proposed(trial):
            together = finite({**trial.distributions, param_name: param_distribution})
            if param_name in together:
                return counted(trial.number, together)[param_name]
        digest = hashlib.sha256(f"{self._seed}:{trial.number}:{param_name}".encode()).digest()
        sampler = RandomSampler(seed=int.from_bytes(digest[:4], "big"))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Do nothing: draws depend on the number of the trial, which no two workers share."""

    def _remembered(self, study: Study, space: Mapping[str, BaseDistribution]) -> Memory:
        """Return the memory of a study and a space; others are forgotten."""
        memory = self._memory
        if (
            memory is None
            or memory.study != study.study_name
            or memory.choices.distributions != space
        ):
            memory = self._memory = Memory(study.study_name, Choices(space))
        return memory

    def _of(self, study: Study) -> Question:
        directions = study.directions
        if len(directions) > 1 and directions[1] != StudyDirection.MINIMIZE:
            raise InputError(
                "AutoNACSampler takes the second objective for a latency, and this study "
                "maximises it.",
                "Put accuracy first and latency second, to be minimised.",
            )
        asked = self._question
        budget_ms = asked.budget_ms or study.user_attrs.get("budget_ms")
        budget_ms = max(asked.budgets, default=None) if budget_ms is None else budget_ms
        share = self._front_share
        if share is None and len(directions) > 1:
            share = 1.0 if asked.budgets or budget_ms is None else _FRONT_SHARE
        share = float(bool(asked.budgets)) if share is None else share
        return replace(asked, budget_ms=budget_ms, front_share=share)


def _others(study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    return [one for one in trials if one.number != trial.number]
