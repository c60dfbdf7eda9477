"""What accuracy a candidate may have: a Gaussian process.

The kernel is exp(-(distance / length)^power): with power 1 it is Matern's roughest (one changed
choice may change accuracy at once); with power 2, on one-hot columns, it is the product over the
choices. A slope adds linear terms, for figures to which every choice contributes.

**Targets.** Accuracies of some spaces have a long lower tail (networks that learned nothing) that a
process on raw values would spend its flexibility on; those of others are smooth in all choices, and
any transformation takes that from them. So each kind of targets is fitted: raw values are taken
where their leave-one-out predictions rank the observations well, else the kind that ranks best.

Written here instead of taken from a library: length, power, slope and noise come from a grid, and
one eigendecomposition for each kernel yields the likelihood of every noise, while scikit-learn's
`GaussianProcessRegressor` factorises at every point of the grid. 60 observations of 36 features
cost 5 ms of CPU instead of 59 ms (29 ms by its gradient ascent from three starts).

Dimension letters: n observations, N candidates, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh, solve_triangular
from scipy.special import ndtri
from scipy.stats import rankdata

__all__ = [
    "TARGETS",
    "GaussianProcess",
    "Hyperparameters",
    "Likely",
    "rank_gauss",
    "squared_distances",
    "winsorised",
]

Array = NDArray[np.float64]

_LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_POWERS = (1, 2)
_CLEARLY = 0.8  # of the correlation that the kind of targets before it misses
_SMOOTH = 0.8  # rank correlation of what a process on raw values predicts
_MOST_FITTED = 64  # observations that hyperparameters are fitted to
_AVERAGED, _LEAST_WEIGHT = 4, 0.05  # points of the grid that predictions are averaged over
_NOISES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_JITTER = 1e-9


def rank_gauss(values: Array) -> Array:
    """Replace values by the normal quantiles of their ranks: t = Phi^-1((rank - 1/2) / n).

    Args:
        values: (n,) larger is better; equal values get equal targets.

    Returns:
        (n,) mean about 0, standard deviation about 1.
    """
    return np.asarray(ndtri((rankdata(values) - 0.5) / len(values)), dtype=np.float64)


def winsorised(values: Array) -> Array:
    """Raise values to the median less the distance from the median to the largest.

    Args:
        values: (n,) larger is better.

    Returns:
        (n,) standardised.
    """
    median = np.median(values)
    return _standardised(np.maximum(values, 2 * median - values.max()))


def _standardised(values: Array) -> Array:
    spread = float(values.std())
    return np.asarray((values - values.mean()) / (spread if spread > 0 else 1.0), dtype=np.float64)


TARGETS: Mapping[str, Callable[[Array], Array]] = {
    "rank": rank_gauss,
    "winsorised": winsorised,
    "raw": _standardised,
}
"""Kinds of targets: accuracies (n,), larger is better, to values of mean 0 and variance about 1."""


@dataclass(frozen=True)
class Hyperparameters:
    """Of the kernel s^2 (exp(-(|x - x'| / length)^power) + slope x.x' + noise [x = x'])."""

    length: float
    power: int
    noise: float
    slope: float = 0.0
    targets: str = "raw"

    @classmethod
    def of(
        cls, features: Array, targets: Array, slopes: Sequence[float] = (0.0,)
    ) -> Hyperparameters:
        """Maximise the marginal likelihood over a grid, the scale s profiled out.

        With y = targets - mean: log p = -n/2 log(y' C^-1 y / n) - 1/2 log |C| + constant, where C
        is the kernel without s^2 (Rasmussen and Williams, Gaussian Processes for Machine Learning,
        2006, eq. 5.8 with the scale maximised in closed form). Of many observations some are taken.
        """
        some = _spread(len(targets))
        return _likeliest(_Spectrum.grid(features[some], slopes), targets[some])[0][0][1]

    @classmethod
    def of_accuracy(cls, features: Array, accuracy: Array) -> Likely:
        """Choose the kind of targets too, by how well each observation is predicted without it.

        Of the kind chosen, several points of the grid come back: tens of observations do not decide
        between them, and a proposal that trusts one of them alone may be of its error.

        The measure is Spearman's rank correlation of accuracies with leave-one-out means (Rasmussen
        and Williams, 2006, eq. 5.12). Raw values are taken if they reach `_SMOOTH`. Otherwise a
        kind must be clearly better than those before it: the measure is itself uncertain. Ranks,
        the first, bear noise best.

        Returns:
            Weights, in proportion to the marginal likelihood and 1 in all, and hyperparameters; the
            likeliest first.
        """
        some = _spread(len(accuracy))
        accuracy = accuracy[some]
        spectra, order = _Spectrum.grid(features[some], (0.0,)), rankdata(accuracy)
        least = np.inf
        found: Likely = ((1.0, cls(1.0, 1, 1e-2)),)
        for kind, targets in TARGETS.items():
            fitted, left_out = _likeliest(spectra, targets(accuracy))
            missed = 1 - _correlation(rankdata(left_out), order)
            if missed < _CLEARLY * least or (kind == "raw" and missed <= 1 - _SMOOTH):
                least = missed
                found = tuple((weight, replace(one, targets=kind)) for weight, one in fitted)
        return found


Likely = tuple[tuple[float, Hyperparameters], ...]
"""Weights that sum to 1, and hyperparameters, the likeliest first."""


@dataclass(frozen=True)
class _Spectrum:
    """A kernel of the grid: decomposed once, it serves every noise and all kinds of targets.

    Attributes:
        length, power, slope: of the kernel.
        values: (n,) eigenvalues.
        vectors: (n, n) eigenvectors, in columns.
    """

    length: float
    power: int
    slope: float
    values: Array
    vectors: Array

    @classmethod
    def grid(cls, features: Array, slopes: Sequence[float]) -> list[_Spectrum]:
        squared, products = squared_distances(features, features), features @ features.T
        found = []
        for length, power, slope in itertools.product(_LENGTHS, _POWERS, slopes):
            kernel = _decayed(squared.copy(), length, power)
            kernel += slope * products
            values, vectors = eigh(kernel, check_finite=False, overwrite_a=True)
            found.append(cls(length, power, slope, np.maximum(values, 0), vectors))
        return found

    def hyperparameters(self, noise: float) -> Hyperparameters:
        """Return those of the kernel with so much noise."""
        return Hyperparameters(self.length, self.power, noise, self.slope)

    def likelihoods(self, centred: Array) -> Array:
        """Return the log likelihood of targets less their mean for every noise, (noises,)."""
        projected, n = (self.vectors.T @ centred) ** 2, len(centred)
        eigenvalues = self.values + np.array(_NOISES)[:, None]
        scale = np.maximum((projected / eigenvalues).sum(axis=1) / n, 1e-12)
        return np.asarray(-0.5 * (n * np.log(scale) + np.log(eigenvalues).sum(axis=1)))

    def left_out(self, targets: Array, noise: float) -> Array:
        """Return what is predicted of each target without it, (n,)."""
        weighted = self.vectors / (self.values + noise + _JITTER)
        weights = weighted @ (self.vectors.T @ (targets - targets.mean()))
        return np.asarray(targets - weights / np.einsum("nm,nm->n", weighted, self.vectors))


def _likeliest(spectra: Sequence[_Spectrum], targets: Array) -> tuple[Likely, Array]:
    """Return likely hyperparameters, and what the first predict of each target left out, (n,)."""
    logarithms = np.array([one.likelihoods(targets - targets.mean()) for one in spectra]).ravel()
    order = np.argsort(-logarithms, kind="stable")[:_AVERAGED]
    weights = np.exp(logarithms[order] - logarithms[order[0]])
    weights *= weights >= _LEAST_WEIGHT * weights.sum()
    places = [divmod(int(one), len(_NOISES)) for one in order]
    likely = tuple(
        (float(weight), spectra[place].hyperparameters(_NOISES[noise]))
        for weight, (place, noise) in zip(weights / weights.sum(), places, strict=True)
        if weight
    )
    place, noise = places[0]
    return likely, spectra[place].left_out(targets, _NOISES[noise])


def _spread(n: int) -> NDArray[np.intp]:
    """Choose what hyperparameters are fitted to: all, or some that lie evenly between."""
    return np.unique(np.linspace(0, n - 1, _MOST_FITTED).astype(np.intp))


def _correlation(a: Array, b: Array) -> float:
    spread = float(a.std() * b.std())
    return float(np.mean((a - a.mean()) * (b - b.mean()))) / spread if spread > 0 else 0.0


class GaussianProcess:
    """Posterior of the noise-free target.

    Args:
        features: (n, F), kept as an attribute.
        targets: (n,).
        hyperparameters: None finds them.
        prior: mean and squared scale; None takes the mean of the targets, and the likeliest scale.
    """

    def __init__(
        self,
        features: Array,
        targets: Array,
        hyperparameters: Hyperparameters | None = None,
        prior: tuple[float, float] | None = None,
    ) -> None:
        self.hyperparameters = hyperparameters or Hyperparameters.of(features, targets)
        self.features, self._targets = features, targets
        self._mean = float(targets.mean()) if prior is None else prior[0]
        kernel = self.kernel(features, features)
        kernel[np.diag_indices_from(kernel)] += self.hyperparameters.noise + _JITTER
        self._factor = cho_factor(kernel, lower=True, check_finite=False)
        self._weights = cho_solve(self._factor, targets - self._mean, check_finite=False)
        likeliest = float((targets - self._mean) @ self._weights) / len(targets)
        # Equal targets say nothing about the scale: standardised ones have 1.
        self.scale = prior[1] if prior else likeliest if likeliest > _JITTER else 1.0

    def kernel(self, a: Array, b: Array, squared: Array | None = None) -> Array:
        """Return the prior covariance of the noise-free targets over s^2, (len(a), len(b)).

        `squared`, the squared distances of a to b, saves their computation.
        """
        length, power = self.hyperparameters.length, self.hyperparameters.power
        squared = squared_distances(a, b) if squared is None else squared.copy()
        kernel = _decayed(squared, length, power)
        if self.hyperparameters.slope:
            kernel += self.hyperparameters.slope * (a @ b.T)
        return kernel

    def mean(self, features: Array) -> Array:
        """Return the posterior's mean, (N,)."""
        return np.asarray(self._mean + self.kernel(features, self.features) @ self._weights)

    def predict(self, features: Array, squared: Array | None = None) -> tuple[Array, Array]:
        """Return the posterior's mean and standard deviation, (N,) each.

        `squared` (N, n) are the squared distances to `self.features`, if they are known.
        """
        cross = self.kernel(features, self.features, squared)
        whitened = solve_triangular(self._factor[0], cross.T, lower=True, check_finite=False)
        variance = self._prior(features) - np.einsum("nN,nN->N", whitened, whitened)
        return self._mean + cross @ self._weights, self._deviation(variance)

    def bound(self, features: Array, squared: Array | None = None) -> tuple[Array, Array]:
        """Return the mean and an upper bound of the standard deviation, at a tenth of the cost.

        The bound is the deviation given the most correlated observation alone: further ones only
        lower it. Arguments as of `predict`.
        """
        cross = self.kernel(features, self.features, squared)
        known = self._prior(self.features) + self.hyperparameters.noise
        mean = self._mean + cross @ self._weights
        variance = self._prior(features) - (np.square(cross, out=cross) / known).max(axis=1)
        return mean, self._deviation(variance)

    def left_out(self) -> Array:
        """Return what the process would predict of each observation without it, (n,)."""
        inverse = cho_solve(self._factor, np.eye(len(self._targets)), check_finite=False)
        return np.asarray(self._targets - self._weights / np.diag(inverse), dtype=np.float64)

    def believing(self, features: Array) -> GaussianProcess:
        """Return the process that has seen (p, F) further points come out as it expects."""
        return GaussianProcess(
            np.concatenate([self.features, features]),
            np.concatenate([self._targets, self.mean(features)]),
            self.hyperparameters,
            (self._mean, self.scale),
        )

    def _prior(self, features: Array) -> Array:
        squared = np.einsum("NF,NF->N", features, features)
        return np.asarray(1.0 + self.hyperparameters.slope * squared, dtype=np.float64)

    def _deviation(self, variance: Array) -> Array:
        return np.asarray(np.sqrt(self.scale * np.maximum(variance, 1e-12)), dtype=np.float64)


def squared_distances(a: Array, b: Array) -> Array:
    """Return (len(a), len(b)): one matrix product is faster than scipy's at F = 30."""
    squared: Array = a @ b.T
    squared *= -2.0
    squared += (a**2).sum(1)[:, None]
    squared += (b**2).sum(1)
    # The product rounds: equal points must have distance 0, which a root makes 1e-8 of 1e-16.
    squared[squared < 1e-12] = 0.0
    return squared


def _decayed(squared: Array, length: float, power: int) -> Array:
    """Turn squared distances into exp(-(distance / length)^power), in their place."""
    if power != 2:
        np.sqrt(squared, out=squared)
    squared /= -(length**power)
    return np.exp(squared, out=squared)
