"""The trials of an Optuna study as arrays: what was tried, what is known, what is running.

Dimension letters: n distinct points in the order of their first trials, C choices.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.searcher.proposing import ABSENT, Encoding

__all__ = [
    "PROPOSAL",
    "Choices",
    "History",
    "Params",
    "choices_of",
    "counted",
    "finite",
    "is_proposed",
    "params_of",
]

Params = Mapping[str, Any]
"""Optuna's name of a parameter -> its value."""

PROPOSAL = "autonac:proposal"
"""The system attribute of a trial that holds what was proposed for it, as JSON."""

_MOST_VALUES = 1000
_Codes = NDArray[np.intp]
_Array = NDArray[np.float64]


class Choices:
    """Parameters with finitely many values, as positions in lists of them.

    Args:
        distributions: as `finite` selects them, in the order in which trials ask for them.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions = dict(distributions)
        self.names = tuple(distributions)
        self.options = tuple(_values(one) for one in distributions.values())
        self.sizes = tuple(len(values) for values in self.options)
        self._positions: list[dict[Any, int]] = [
            {_key(value): position for position, value in enumerate(values)}
            for values in self.options
        ]

    @cached_property
    def encoding(self) -> Encoding:
        """Points as features of a surrogate."""
        return Encoding(self.options)

    def encode(self, params: Params) -> tuple[int, ...]:
        """Return the position of every parameter's value; `ABSENT` if it has none in the list."""
        return tuple(
            positions.get(_key(params[name]), ABSENT) if name in params else ABSENT
            for name, positions in zip(self.names, self._positions, strict=True)
        )

    def decode(self, codes: Sequence[int]) -> dict[str, Any]:
        """Return the parameters of a point, without those that are absent."""
        return {
            name: values[code]
            for name, values, code in zip(self.names, self.options, codes, strict=True)
            if code != ABSENT
        }


def choices_of(trials: Iterable[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Collect every parameter of any trial that has two values or more, and finitely many.

    A parameter that only some trials have is among them: choices may depend on other choices.
    """
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        found.update(trial.distributions)
    return finite(found)


def finite(distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """Select those with two values or more, and finitely many."""
    return {name: one for name, one in distributions.items() if 1 < _count(one) <= _MOST_VALUES}


def counted(number: int, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return the point of a number; as many consecutive numbers as there are points have all.

    The digits of the number to the base of the parameters' counts of values, each moved on by those
    before it, so that neighbours differ in most parameters, and by a start that its name decides.
    Every digit depends on those before it alone: a trial can ask for one parameter after the other.
    """
    point: dict[str, Any] = {}
    moved = 0
    for name, one in distributions.items():
        number, digit = divmod(number, _count(one))
        moved += digit
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        point[name] = _values(one)[(start + moved) % _count(one)]
    return point


@dataclass(frozen=True)
class History:
    """What the trials of a study say about points.

    Attributes:
        numbers: (n,) of the trials.
        codes: (n, C).
        accuracy: (n,) larger is better; NaN if not known.
        latency_ms: (n,) NaN if not known.
        running: (n,) whether it is being scored, or waits for that.
        constraints: name -> (n,) feasible if at most 0; NaN if not known.
    """

    numbers: NDArray[np.intp]
    codes: _Codes
    accuracy: _Array
    latency_ms: _Array
    running: NDArray[np.bool_]
    constraints: dict[str, _Array]

    @classmethod
    def of(
        cls,
        study: Study,
        trials: Iterable[FrozenTrial],
        choices: Choices,
        known: dict[int, tuple[int, ...]] | None = None,
    ) -> History:
        """Read trials; of several with one point, the one that says most counts.

        `known` remembers the points of trials that have finished, by their numbers.
        """
        known = {} if known is None else known
        told: dict[tuple[int, ...], FrozenTrial] = {}
        for trial in trials:
            codes = known.get(trial.number) or _codes(trial, choices)
            if trial.state.is_finished():
                known[trial.number] = codes
            if set(codes) == {ABSENT}:
                continue  # it ended before it was anything
            before = told.get(codes)
            if before is None or _worth(trial) > _worth(before):
                told[codes] = trial
        kept = list(told.values())
        shape = (len(kept), len(choices.names))
        return cls(
            np.array([trial.number for trial in kept], dtype=np.intp),
            np.array(list(told), dtype=np.intp).reshape(shape),
            np.array([_accuracy(study, trial) for trial in kept], dtype=np.float64),
            np.array([_latency(trial) for trial in kept], dtype=np.float64),
            np.array([not trial.state.is_finished() for trial in kept], dtype=bool),
            _constraints(kept),
        )

    @cached_property
    def scored(self) -> NDArray[np.intp]:
        """The points with an accuracy."""
        return np.flatnonzero(np.isfinite(self.accuracy))

    def repeats(self, points: _Codes, sizes: Sequence[int]) -> NDArray[np.bool_]:
        """Say which (N, C) points would repeat a trial: those that agree with all that it had.

        Trials make their choices one after the other, each depending on those before. A point that
        agrees with all parameters of a trial therefore runs as that trial did, whatever else it
        holds.
        """
        made = self.codes != ABSENT
        whole = made.all(axis=1)
        # Whoever made every choice is repeated by an equal point only: no product is needed.
        known = {row.tobytes() for row in self.codes[whole]}
        repeated = np.array([row.tobytes() in known for row in points], dtype=bool)
        if not whole.all():
            partial = self.codes[~whole]
            agreements = _one_hot(points, sizes) @ _one_hot(partial, sizes).T
            repeated |= (agreements >= made[~whole].sum(axis=1)).any(axis=1)
        return repeated


def _codes(trial: FrozenTrial, choices: Choices) -> tuple[int, ...]:
    params = params_of(trial)
    if not params and not trial.state.is_finished():
        params = counted(trial.number, choices.distributions)
    return choices.encode(params)


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters, and those that it will get once it asks for them."""
    if trial.state.is_finished() or not is_proposed(trial):
        return trial.params
    proposed = trial.system_attrs.get(PROPOSAL, "{}")
    return {**json.loads(proposed), **_queued(trial), **trial.params}


def is_proposed(trial: FrozenTrial) -> bool:
    """Whether parameters were decided on before the trial asked for any."""
    return PROPOSAL in trial.system_attrs or bool(_queued(trial))


def _queued(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.system_attrs.get("fixed_params", {}))


def _worth(trial: FrozenTrial) -> int:
    """How much a trial says: scored, told without a score, running, failed."""
    if trial.state == TrialState.COMPLETE:
        return 3 + is_scored(trial)
    return 2 if not trial.state.is_finished() else 1


def is_scored(trial: FrozenTrial) -> bool:
    """Whether a complete trial's accuracy is one, and not a placeholder."""
    feasible = all(value <= 0 for value in trial.constraints.values())
    return bool(trial.user_attrs.get("scored", feasible))


def _accuracy(study: Study, trial: FrozenTrial) -> float:
    if trial.state != TrialState.COMPLETE or not is_scored(trial):
        return math.nan
    value = float(trial.values[0])
    if not math.isfinite(value):
        return math.nan
    return value if study.directions[0] == StudyDirection.MAXIMIZE else -value


def _latency(trial: FrozenTrial) -> float:
    if trial.state != TrialState.COMPLETE or len(trial.values) < 2:
        return math.nan
    latency_ms = float(trial.values[1])
    return latency_ms if math.isfinite(latency_ms) else math.nan


def _constraints(trials: Sequence[FrozenTrial]) -> dict[str, _Array]:
    names = dict.fromkeys(name for trial in trials for name in trial.constraints)
    rows = {name: [trial.constraints.get(name, math.nan) for trial in trials] for name in names}
    found = {name: np.array(values, dtype=np.float64) for name, values in rows.items()}
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}


def _one_hot(codes: _Codes, sizes: Sequence[int]) -> NDArray[np.float32]:
    """Return (N, sum of sizes); what is absent is 0 everywhere."""
    hot = np.zeros((len(codes), int(np.sum(sizes))), dtype=np.float32)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp)
    rows, columns = np.nonzero(codes != ABSENT)
    hot[rows, offsets[columns] + codes[rows, columns]] = 1.0
    return hot


def _key(value: Any) -> tuple[str, Any]:
    """Tell True from 1, and 1 from 1.0 among categories."""
    return (type(value).__name__, value)


def _count(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    return 0


def _values(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return tuple(range(distribution.low, distribution.high + 1, distribution.step))
    raise TypeError(f"finitely many values needed, got {distribution}")
