"""The switches of a recipe: parts of a training that are off, and what turns each of them on.

Their strengths are those that the papers and the proposals behind them name as usual; none was
tuned on results that are reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas.accuracy.recipe_fields import Value
from nas.errors import UnknownNameError

__all__ = ["ALL", "SWITCHES", "Switch", "compared_with", "find_switch", "find_switches"]

ALL = "all"
"""Stands for every switch, where names are expected."""


@dataclass(frozen=True)
class Switch:
    """What a switch sets.

    Args:
        values: field of the recipe -> value.
        against: the switch that it must be compared with; empty for the baseline. It takes away
            what this one must make up for.
    """

    values: Mapping[str, Value]
    against: str = ""


_HIDDEN = {"pseudo_labels.hidden": 0.75}

SWITCHES: dict[str, Switch] = {
    "single_precision": Switch({"amp": "off"}),
    "half_precision": Switch({"amp": "fp16"}),
    "recomputation": Switch({"recompute": True}),
    "accumulation": Switch({"accumulate": 2}),
    "logit_distillation": Switch({"distillation.logits": 1.0}),
    "feature_distillation": Switch({"distillation.features": 1.0}),
    "lookahead": Switch({"lookahead.steps": 5}),
    "curriculum": Switch(
        {"curriculum.count": 1.0, "curriculum.crowding": 1.0, "curriculum.smallness": 1.0}
    ),
    "adversarial": Switch({"adversarial.epsilon": 0.01}),
    "three_stages": Switch(
        {"stages.gate_warmup": 0.1, "stages.fine_tuning": 0.2, "final_lr": 0.01}
    ),
    "labelled_part": Switch(_HIDDEN),
    "pseudo_labels": Switch({**_HIDDEN, "pseudo_labels.threshold": 0.5}, against="labelled_part"),
}
"""Name -> what it sets."""


def find_switch(name: str) -> Switch:
    """Return a switch.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in SWITCHES:
        raise UnknownNameError.of("switch", name, (*SWITCHES, ALL))
    return SWITCHES[name]


def find_switches(names: Sequence[str]) -> tuple[str, ...]:
    """Return names without repetition, `all` spelled out, each after what it is compared with.

    Raises:
        UnknownNameError: there is no switch of some name.
    """
    found: dict[str, None] = {}
    for name in SWITCHES if ALL in names else names:
        against = find_switch(name).against
        found |= dict.fromkeys([against, name] if against else [name])
    return tuple(found)


def compared_with(variant: str, otherwise: str) -> str:
    """Return the variant that one is compared with, if it is a switch that says so."""
    return SWITCHES[variant].against or otherwise if variant in SWITCHES else otherwise
