"""Whether a candidate keeps a limit: learned from all trials that were measured, scored or not.

Dimension letters: n observations, N candidates, F features.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from nas.searcher.proposing.surrogate import Array, GaussianProcess, Hyperparameters

__all__ = ["Limit"]

# Logarithms of costs are nearly sums over the choices.
_SLOPES = (0.0, 1.0, 10.0)


class Limit:
    """A figure of candidates, and how probably it is at most a bound.

    Args:
        features: (n, F).
        figures: (n,) latency in ms, or any other. Positive figures are learned as logarithms,
            because a choice multiplies a latency rather than adds to it.
        hyperparameters: None finds them.
    """

    def __init__(
        self, features: Array, figures: Array, hyperparameters: Hyperparameters | None = None
    ) -> None:
        self._is_log = bool((figures > 0).all())
        values = np.log(figures) if self._is_log else figures
        self._mean, self._spread = float(values.mean()), float(values.std()) or 1.0
        targets = (values - self._mean) / self._spread
        found = hyperparameters or Hyperparameters.of(features, targets, _SLOPES)
        self._process = GaussianProcess(features, targets, found)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Those given, or found."""
        return self._process.hyperparameters

    def predict(self, features: Array) -> Array:
        """Return the median figure, (N,), in the unit of the observed."""
        values = self._mean + self._spread * self._process.mean(features)
        return np.asarray(np.exp(values) if self._is_log else values, dtype=np.float64)

    def probability(self, features: Array, bound: float) -> Array:
        """Return the probability, (N,), that a figure is at most the bound."""
        if self._is_log and bound <= 0:
            return np.zeros(len(features))
        value = (np.log(bound) if self._is_log else bound) - self._mean
        mean, deviation = self._process.predict(features)
        return np.asarray(ndtr((value / self._spread - mean) / deviation), dtype=np.float64)
