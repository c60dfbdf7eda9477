"""What is asked of a trial and told to it, in plain values.

Optuna keeps attributes as JSON, loads all of them whenever it lists trials, and takes infinities
for values: whatever goes into a trial passes `in_range` or `plain`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, Trial, TrialState

from nas.errors import StudyError
from nas.space.space_file import Label
from nas.units import Budget

__all__ = ["PLACEHOLDER", "Proposal", "Told", "in_range", "plain", "told_of"]

PLACEHOLDER = 0.0
"""The accuracy that a trial is told whose candidate was never scored."""

_LARGEST_ATTRIBUTE = 2000  # bytes


@dataclass(frozen=True)
class Proposal:
    """A point to try.

    Attributes:
        number: of the trial in its study.
        choices: choice -> label, as the search space has them.
        attempt: 1, or more if earlier processes were killed while they tried this point.
        trial: Optuna's.
    """

    number: int
    choices: dict[str, Label]
    attempt: int
    trial: Trial = field(repr=False, compare=False)


@dataclass(frozen=True)
class Told:
    """What a finished trial was told.

    Attributes:
        number: of the trial in its study.
        digest: of the candidate.
        choices: choice -> label.
        latency_ms: None if the trial failed.
        accuracy: mAP50-95; None if the candidate was never scored.
        error: why it failed, or nothing.
        violations: of the bounds beside the latency; more than 0 breaks one.
        estimate: of the accuracy, where its evaluation was stopped.
        iterations: of the training that the estimate was reached after; None if it is of shared
            weights.
    """

    number: int
    digest: str
    choices: dict[str, Label]
    latency_ms: float | None
    accuracy: float | None
    error: str = ""
    violations: Mapping[str, float] = field(default_factory=dict)
    estimate: float | None = None
    iterations: int | None = None

    @property
    def is_scored(self) -> bool:
        """Whether it has an accuracy, or an estimate that was found to be enough."""
        return self.accuracy is not None or self.estimate is not None

    @property
    def keeps_bounds(self) -> bool:
        """Whether it keeps all bounds beside the latency."""
        return all(violation <= 0 for violation in self.violations.values())

    def is_feasible(self, budget: Budget) -> bool:
        """Whether it was scored and keeps the budget."""
        return (
            self.latency_ms is not None
            and self.accuracy is not None
            and budget.admits(self.latency_ms)
            and self.keeps_bounds
        )

    @property
    def extent(self) -> tuple[int, int]:
        """How much is known: an accuracy, less an estimate, a latency, a failure."""
        known = (self.latency_ms is not None) + self.is_scored + (self.accuracy is not None)
        return known, self.iterations or 0


def told_of(trial: FrozenTrial) -> Told | None:
    """Read back what a trial was told; None if it says nothing about a candidate."""
    digest = trial.user_attrs.get("architecture")
    error = trial.user_attrs.get("error")
    # Without an error, a failed trial is one whose process was killed: that is not the candidate's.
    is_rung = trial.state == TrialState.PRUNED and trial.user_attrs.get("fidelity") == "rung"
    if digest is None or not (trial.state == TrialState.COMPLETE or error or is_rung):
        return None
    choices = json.loads(trial.user_attrs["choices"])
    if is_rung:
        said = (trial.user_attrs[name] for name in ("latency_ms", "estimate", "iterations"))
        latency_ms, estimate, iterations = said
        return Told(
            *(trial.number, digest, choices, latency_ms, None),
            estimate=estimate,
            iterations=iterations,
        )
    if trial.state != TrialState.COMPLETE:
        return Told(trial.number, digest, choices, None, None, str(error))
    accuracy, latency_ms = trial.values
    scored = trial.user_attrs["scored"]
    violations = {name: one for name, one in trial.constraints.items() if name != "latency"}
    whole = trial.user_attrs.get("fidelity", "whole") == "whole"
    return Told(
        trial.number,
        digest,
        choices,
        latency_ms,
        accuracy if scored and whole else None,
        violations=violations,
        estimate=accuracy if scored and not whole else None,
    )


def in_range(what: str, value: float, largest: float) -> float:
    """Return a value as a plain float.

    Raises:
        StudyError: it is not finite, or not between 0 and `largest`.
    """
    if not math.isfinite(value) or not 0 <= value <= largest:
        raise StudyError(
            f"A trial's {what} must be finite and at least 0"
            f"{f' and at most {largest:g}' if math.isfinite(largest) else ''}, got {value!r}.",
            "Tell the trial as failed.",
        )
    return float(value)


def plain(name: str, value: Any) -> Label:
    """Return an attribute as Python's own type.

    Raises:
        StudyError: it is no scalar, not finite, or too large.
    """
    scalar = value.item() if isinstance(value, np.generic) else value
    if not isinstance(scalar, bool | int | float | str) or (
        isinstance(scalar, float) and not math.isfinite(scalar)
    ):
        raise StudyError(
            f"An attribute is a finite number, a bool or a string, got {name}={value!r}."
        )
    if len(json.dumps(scalar)) > _LARGEST_ATTRIBUTE:
        raise StudyError(
            f"An attribute has at most {_LARGEST_ATTRIBUTE} bytes, and {name!r} has more.",
            "Store it in a table of the database.",
        )
    return scalar
