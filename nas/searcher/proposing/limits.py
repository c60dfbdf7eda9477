"""Whether a candidate keeps a limit: learned from all trials that were measured, scored or not.

Dimension letters: n observations, N candidates, F features.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from nas.searcher.proposing.surrogate import Array, GaussianProcess, Hyperparameters

__all__ = ["Limit"]

# Logarithms of costs are nearly sums over the choices.
_SLOPES = (1.0,)


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
        self._is_log, values, self._mean, self._spread = _scaled(figures)
        found = hyperparameters or Hyperparameters.of(features, values, _SLOPES)
        self._process = GaussianProcess(features, values, found)

    @staticmethod
    def fit(features: Array, figures: Array) -> Hyperparameters:
        """Find hyperparameters, without a process that has seen all that they are found in."""
        return Hyperparameters.of(features, _scaled(figures)[1], _SLOPES)

    def median(self, features: Array) -> Array:
        """Predict figures, (N,), in the unit of the observed: the first of `judge`, for less."""
        values = self._mean + self._spread * self._process.mean(features)
        return np.exp(values) if self._is_log else values

    def judge(self, features: Array, bound: float) -> tuple[Array, Array]:
        """Predict figures, and how probably they keep the bound.

        Args:
            features: (N, F).
            bound: may be infinite.

        Returns:
            The median figures, in the unit of the observed, and the probabilities, (N,) each.
        """
        mean, deviation = self._process.predict(features)
        values = self._mean + self._spread * mean
        if not self._is_log:
            return values, np.asarray(ndtr((bound - values) / (self._spread * deviation)))
        logarithm = np.log(bound) if bound > 0 else -np.inf
        probability = ndtr((logarithm - values) / (self._spread * deviation))
        return np.exp(values), np.asarray(probability, dtype=np.float64)


def _scaled(figures: Array) -> tuple[bool, Array, float, float]:
    """Return whether logarithms are taken, standardised values, their mean and spread before."""
    is_log = bool((figures > 0).all())
    values = np.log(figures) if is_log else figures
    mean, spread = float(values.mean()), float(values.std()) or 1.0
    return is_log, (values - mean) / spread, mean, spread
