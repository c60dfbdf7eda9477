"""Points of a search space as parameters of an Optuna trial.

Options that are increasing numbers are given to Optuna as integers, so that a sampler knows that 32
lies between 16 and 64; to a categorical parameter all options are equally far apart. Evenly spaced
integers keep their values; others are numbered, under the name `<choice> (index)`. A choice with a
single option is no parameter at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from optuna.trial import BaseTrial, FixedTrial

from nas.errors import StudyError
from nas.space.space import Point
from nas.space.space_file import Label

__all__ = ["Parameters", "decode", "encode", "is_ordered", "suggest"]

Parameters = Mapping[str, Sequence[Label]]
"""Choice -> its labels, from small to large."""


def suggest(trial: BaseTrial, parameters: Parameters) -> dict[str, Label]:
    """Let a trial's sampler choose a label of every choice."""
    return {name: _suggest(trial, name, labels) for name, labels in parameters.items()}


def encode(choices: Point, parameters: Parameters) -> dict[str, Label]:
    """Turn a point into the parameters that `suggest` would have stored for it.

    Raises:
        StudyError: a choice is missing or unknown, or has no such label.
    """
    if choices.keys() != parameters.keys():
        raise StudyError(
            f"A point has one label for each of {sorted(parameters)}, got {sorted(choices)}."
        )
    encoded: dict[str, Label] = {}
    for name, labels in parameters.items():
        if choices[name] not in labels:
            raise StudyError(
                f"The choice {name!r} is one of {list(labels)}, got {choices[name]!r}."
            )
        index = labels.index(choices[name])
        if len(labels) == 1:
            continue
        if is_ordered(labels) and not _step(labels):
            encoded[_index_name(name)] = index
        else:
            encoded[name] = labels[index]
    return encoded


def decode(params: Mapping[str, Any], parameters: Parameters) -> dict[str, Label]:
    """Turn the parameters of a trial into the point that they stand for."""
    return suggest(FixedTrial(dict(params)), parameters)


def _suggest(trial: BaseTrial, name: str, labels: Sequence[Label]) -> Label:
    if len(labels) == 1:
        return labels[0]
    if step := _step(labels):
        return trial.suggest_int(name, int(labels[0]), int(labels[-1]), step=step)
    if is_ordered(labels):
        return labels[trial.suggest_int(_index_name(name), 0, len(labels) - 1)]
    return cast("Label", trial.suggest_categorical(name, list(labels)))


def _index_name(name: str) -> str:
    return f"{name} (index)"


def is_ordered(labels: Sequence[Label]) -> bool:
    """Whether labels are increasing numbers: sizes, rather than kinds."""
    numbers = [label for label in labels if isinstance(label, int | float)]
    if len(numbers) < len(labels) or any(isinstance(label, bool) for label in labels):
        return False
    return all(low < high for low, high in itertools.pairwise(numbers))


def _step(labels: Sequence[Label]) -> int:
    """The distance between neighbours if they are evenly spaced integers, or else 0."""
    if not is_ordered(labels) or not all(isinstance(label, int) for label in labels):
        return 0
    steps = {int(high) - int(low) for low, high in itertools.pairwise(labels)}
    return steps.pop() if len(steps) == 1 else 0
