"""Which choices moved accuracy and latency in a study.

Accuracy is told by the candidates that were scored, latency by all that have one, over budget or
not. Costs multiply, so that the effects on latency are fitted to its logarithm, and are shares of
the geometric mean. A budget selects candidates by what they chose, which biases no effect, as far
as effects add up (`nas.searcher.additive`).

What the intervals cover is which candidates this study happened to try. Another supernet, or other
validation images, would be another study.

Optuna's own importances were compared and are not used. They know no intervals and no sign, take
every trial as it was told (the placeholder accuracy of what is over budget too), and leave out
parameters that some trials lack. fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) averages over
the whole space, most of which a search never visits; in 12 simulated studies each of 18 choices
without interactions, its shares were wrong by 0.027 on average at 60 candidates and by 0.018 at
200, in 0.8 and 1.9 s; those of the additive model by 0.011 and 0.004, in 0.05 s. PED-ANOVA answers
another question: in what the best tenth of the trials differ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.searcher.additive import Explained, OptionEffect, explain_values
from nas.searcher.importance_sample import Sample

__all__ = ["Importance", "explain"]


@dataclass(frozen=True)
class Importance:
    """Which choices moved what in a study.

    Attributes:
        study: its name.
        accuracy: of mAP50-95 (0..1), by the candidates that were scored.
        latency: as shares of the geometric mean (0.1 is 10 % slower), by all candidates.
        sources: where latencies come from -> how many.
    """

    study: str
    accuracy: Explained
    latency: Explained
    sources: Mapping[str, int]


def explain(study: str, sample: Sample) -> Importance:
    """Estimate what every option did to accuracy and latency."""
    latency = _explain_known(sample, np.log(sample.latency_ms), "a latency")
    return Importance(
        study,
        _explain_known(sample, sample.accuracy, "an accuracy"),
        _as_shares(latency),
        sample.sources,
    )


def _explain_known(sample: Sample, values: NDArray[np.float64], what: str) -> Explained:
    known = np.isfinite(values)
    open_choices = {name: labels for name, labels in sample.choices.items() if len(labels) > 1}
    columns = [name in open_choices for name in sample.choices]
    return explain_values(open_choices, sample.codes[known][:, columns], values[known], what)


def _as_shares(explained: Explained) -> Explained:
    """Turn effects on a logarithm into shares of the geometric mean."""
    return dataclasses.replace(
        explained,
        choices=tuple(
            dataclasses.replace(
                choice, options=tuple(_mapped(option, math.expm1) for option in choice.options)
            )
            for choice in explained.choices
        ),
        interactions=tuple(
            dataclasses.replace(one, effect=math.expm1(one.effect))
            for one in explained.interactions
        ),
    )


def _mapped(option: OptionEffect, function: Callable[[float], float]) -> OptionEffect:
    effect, low, high = map(function, (option.effect, option.low, option.high))
    return dataclasses.replace(option, effect=effect, low=low, high=high)
