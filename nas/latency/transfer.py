"""Latencies on a new device, from a few measured there and those of the same networks elsewhere.

**The model** is a Gaussian process (Rasmussen and Williams, "Gaussian Processes for Machine
Learning", 2006) of logarithms. With x the logarithms of the latencies on S known devices, m their
mean, and f what networks are like, standardized,

    log t = m + g(x, f) + noise,
    cov(g, g') = 1 + a^2 m m' + b^2 (x - m) (x' - m')                 another unit, slope, mixture
               + c^2 exp(-r^2 / 2),   r^2 = d_m / l^2 + d_x / l^2 + d_f / k^2     what bends
               + d^2 mean_j f_j f_j'                                  what is linear in features
               + e^2 mean_j exp(-(f_j - f_j')^2 / (2 h^2))            what bends in one of them

where d are squared distances (`_Distances`). So where nothing is measured, the new device is like
the known ones on average, up to a factor. The numbers a to e, k, l and the noise have log-normal
priors, and are set to their maximum a posteriori (section 5.4.1; libraries have no such priors, and
20 measurements decide little without). Whether the last two terms are there at all is averaged
over, by how well each of the four models explains what was measured.

**The interval** has the width that leaving out each measurement asks for (split conformal inference
with local widths: Lei et al., "Distribution-free predictive inference for regression", 2018,
section 5.2; errors of leaving one out as in the jackknife of Barber et al., "Predictive inference
with the jackknife+", 2021). Networks to measure are chosen, not drawn alike: what the interval
covers is measured (`benchmarks/new_device.py`), not proven.

**What to measure** minimises, greedily, the variance of g averaged over all networks (an I-optimal
design; Cohn, Ghahramani and Jordan, "Active learning with statistical models", 1996).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.stats import t as student

from nas.errors import InputError

__all__ = ["COVERAGE", "LEAST_SAMPLES", "TransferPredictor", "Transferred", "choose"]

COVERAGE = 0.95
"""What intervals aim at."""

LEAST_SAMPLES = 5
"""Below this, nothing can be said about the error."""

_Values = NDArray[np.float64]
_Rows = NDArray[np.bool_]

# Median and standard deviation of the logarithm; benchmarks/new_device.py says what chose them.
_PRIORS = {
    "slope": (0.3, 0.7),
    "mixture": (0.5, 0.7),
    "bend": (0.15, 1.0),
    "source_length": (1.5, 0.7),
    "feature_length": (1.0, 0.7),
    "noise": (0.03, 0.7),
    "linear": (0.15, 1.0),
    "single": (0.15, 1.0),
}
_SINGLE_LENGTH = 0.7  # h, in standard deviations of a feature
_REACH = 4.0  # standard deviations: beyond, a covariance cannot be told from a singular one
_STEPS = 60  # of the search for those numbers
_LEAST_SPREAD = 0.05  # of logarithms: sources that agree better are not told apart


class Transferred(NamedTuple):
    """Latencies that were not measured, one a network.

    Attributes:
        ms: (m,).
        low_ms: lower ends of their intervals, (m,).
        high_ms: upper ends, (m,).
    """

    ms: _Values
    low_ms: _Values
    high_ms: _Values


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferPredictor:
    """A fitted model of a new device; build it by `fit`.

    Attributes:
        samples: how many measurements it was fitted to.
    """

    samples: int
    _scale: _Scale
    _inputs: _Inputs
    _mixture: _Mixture
    _quantile: float

    @classmethod
    def fit(cls, features: _Values, sources: _Values, ms: _Values) -> Self:
        """Fit to measurements.

        Args:
            features: what the networks are like, (n, F); F may be 0. Amounts that span decades,
                such as multiplications, belong here as logarithms.
            sources: their latencies on S >= 1 known devices, ms, (n, S); of each device, only
                ratios count.
            ms: what was measured on the new device, (n,).

        Raises:
            InputError: there are fewer than `LEAST_SAMPLES`, shapes differ, or a number is not
                finite, or a latency not positive.
        """
        features, sources = _checked(features, sources)
        ms = np.asarray(ms, np.float64)
        if ms.shape != sources.shape[:1] or len(ms) < LEAST_SAMPLES:
            raise InputError(
                f"As many measurements as networks are needed, and at least {LEAST_SAMPLES}, got "
                f"{ms.size} for {len(sources)}.",
                "Measure more networks.",
            )
        _check_latencies(ms)
        scale = _Scale.of(features, sources)
        inputs = scale.inputs(features, sources)
        beyond = np.log(ms) - inputs.level
        parts = _Distances.between(inputs, inputs)
        mixture = _Mixture.fitted(parts, beyond, _starts())
        quantile = _quantile(_left_out(mixture, parts, inputs, beyond))
        return cls(
            samples=len(ms), _scale=scale, _inputs=inputs, _mixture=mixture, _quantile=quantile
        )

    def predict(self, features: _Values, sources: _Values) -> Transferred:
        """Predict the latencies of networks.

        Args:
            features: as in the fit, (m, F).
            sources: their latencies on the devices of the fit, in its order, ms, (m, S).

        Raises:
            InputError: these are not the columns of the fit, or a number is not what it must be.
        """
        features, sources = _checked(features, sources)
        known = (self._inputs.features.shape[1], self._inputs.contrast.shape[1])
        if (features.shape[1], sources.shape[1]) != known:
            raise InputError(
                f"The fit had {known[0]} features and {known[1]} known devices, got "
                f"{features.shape[1]} and {sources.shape[1]}."
            )
        inputs = self._scale.inputs(features, sources)
        across = _Distances.between(inputs, self._inputs)
        mean, variance = self._mixture.at(across, inputs)
        centre = mean + inputs.level
        half = self._quantile * np.sqrt(variance)
        return Transferred(np.exp(centre), np.exp(centre - half), np.exp(centre + half))


def choose(features: _Values, sources: _Values, count: int) -> list[int]:
    """Choose the networks whose measurements say most about all of them; deterministic.

    Args:
        features: of every network that could be measured, as in `TransferPredictor.fit`, (N, F);
            takes memory that grows with the square of N: offer some thousands at most.
        sources: their latencies on known devices, ms, (N, S).
        count: how many to choose.

    Returns:
        Row numbers, the most telling one first; no row twice.

    Raises:
        InputError: there are fewer than `count` networks, or a number is not what it must be.
    """
    features, sources = _checked(features, sources)
    if not 0 <= count <= len(sources):
        raise InputError(f"Of {len(sources)} networks, 0 to as many can be chosen, got {count}.")
    inputs = _Scale.of(features, sources).inputs(features, sources)
    numbers = _starts()[0]
    covariance = _covariance(_Distances.between(inputs, inputs), numbers)
    noise, found = numbers["noise"] ** 2, list[int]()
    for _ in range(count):
        total = np.diag(covariance) + noise
        gain = (covariance**2).sum(axis=0) / total
        gain[found] = -1.0
        best = int(np.argmax(gain))
        column = covariance[best]
        covariance = covariance - np.outer(column, column) / total[best]
        found.append(best)
    return found


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Networks as the model sees them."""

    level: _Values  # m, (n,)
    contrast: _Values  # x - m, (n, S)
    place: _Values  # both, standardized, (n, 1 + S)
    features: _Values  # f, (n, F)

    def rows(self, kept: _Rows) -> _Inputs:
        """Return those of some networks."""
        return _Inputs(**{name: part[kept] for name, part in vars(self).items()})


@dataclass(frozen=True, eq=False)
class _Scale:
    """What networks are compared with: means and standard deviations."""

    sources: _Values  # (S,)
    place: _Values  # (1 + S,)
    mean: _Values  # (F,)
    spread: _Values  # (F,)

    @classmethod
    def of(cls, features: _Values, sources: _Values) -> Self:
        logs = np.log(sources)
        level, contrast = _split(logs - logs.mean(axis=0))
        place = np.full(1 + logs.shape[1], contrast.std(axis=0).mean())
        place[0] = level.std()
        # Contrasts add up to 0: one of them says what the others do.
        weight = np.sqrt(np.maximum(1, [1, *[logs.shape[1] - 1] * logs.shape[1]]))
        spread = features.std(axis=0)
        return cls(
            sources=logs.mean(axis=0),
            place=np.maximum(place, _LEAST_SPREAD) * weight,
            mean=features.mean(axis=0),
            # A feature that does not vary says nothing, and must not divide by 0.
            spread=np.where(spread > 1e-9 * np.abs(features).max(axis=0), spread, 1.0),
        )

    def inputs(self, features: _Values, sources: _Values) -> _Inputs:
        level, contrast = _split(np.log(sources) - self.sources)
        place = np.column_stack([level, contrast]) / self.place
        return _Inputs(level, contrast, place, (features - self.mean) / self.spread)


def _split(logs: _Values) -> tuple[_Values, _Values]:
    level = logs.mean(axis=1)
    return level, logs - level[:, None]


@dataclass(frozen=True, eq=False)
class _Distances:
    """What the terms of the covariance of two sets of networks are made of, each (m, n)."""

    level: _Values  # products
    contrast: _Values
    linear: _Values
    source: _Values  # squared distances
    feature: _Values
    single: _Values

    @classmethod
    def between(cls, one: _Inputs, other: _Inputs) -> Self:
        width = max(1, one.features.shape[1])
        feature, single = np.zeros((2, len(one.level), len(other.level)))
        for left, right in zip(one.features.T, other.features.T, strict=True):
            apart = (left[:, None] - right) ** 2
            feature += apart / width
            single += np.exp(-apart / (2 * _SINGLE_LENGTH**2)) / width
        return cls(
            level=np.outer(one.level, other.level),
            contrast=one.contrast @ other.contrast.T,
            linear=one.features @ other.features.T / width,
            source=cdist(one.place, other.place, "sqeuclidean"),
            feature=feature,
            single=single,
        )

    @classmethod
    def own(cls, one: _Inputs) -> Self:
        """Return those of each network and itself, (n, 1) each."""
        width = one.features.shape[1]
        none = np.zeros((len(one.level), 1))
        return cls(
            level=one.level[:, None] ** 2,
            contrast=(one.contrast**2).sum(axis=1, keepdims=True),
            linear=(one.features**2).sum(axis=1, keepdims=True) / max(1, width),
            source=none,
            feature=none,
            single=none + min(1, width),
        )

    def rows(self, one: _Rows, other: _Rows) -> _Distances:
        """Return those of some of either set."""
        return _Distances(**{name: part[one][:, other] for name, part in vars(self).items()})


def _terms(parts: _Distances, numbers: dict[str, float]) -> dict[str, _Values]:
    """Return the terms of the covariance of g that have a number, by its name, (m, n) each."""
    apart = parts.source / numbers["source_length"] ** 2
    apart = apart + parts.feature / numbers["feature_length"] ** 2
    shapes = {
        "slope": parts.level,
        "mixture": parts.contrast,
        "bend": np.exp(-apart / 2),
        "linear": parts.linear,
        "single": parts.single,
    }
    return {name: numbers[name] ** 2 * shapes[name] for name in shapes if name in numbers}


def _covariance(parts: _Distances, numbers: dict[str, float]) -> _Values:
    """Return the covariance of g (module docstring), (m, n)."""
    return np.asarray(1.0 + sum(_terms(parts, numbers).values()), np.float64)


@dataclass(frozen=True, eq=False)
class _Posterior:
    """One of the models, after the measurements."""

    numbers: dict[str, float]
    evidence: float  # log of likelihood times prior, at its maximum
    inverse: _Values  # of the covariance with noise, (n, n)
    coefficients: _Values  # (n,)

    @classmethod
    def fitted(cls, parts: _Distances, values: _Values, start: dict[str, float]) -> Self:
        """Maximise likelihood times prior over the numbers that `start` has."""
        medians, spreads = np.array([_PRIORS[name] for name in start]).T

        def named(steps: _Values) -> dict[str, float]:
            return dict(zip(start, medians * np.exp(steps * spreads), strict=True))

        def loss(steps: _Values) -> tuple[float, _Values]:
            value, slopes = _misfit(parts, values, named(steps))
            return value + float(steps @ steps) / 2, slopes * spreads + steps

        first = np.log(np.array(list(start.values())) / medians) / spreads
        found = minimize(
            *(loss, first),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-_REACH, _REACH)] * len(start),
            options={"maxiter": _STEPS},
        )
        numbers = named(found.x)
        inverse = np.asarray(np.linalg.inv(_noisy(parts, numbers)), np.float64)
        return cls(numbers, -float(found.fun), inverse, inverse @ values)

    def at(self, across: _Distances, inputs: _Inputs) -> tuple[_Values, _Values]:
        """Return mean and variance of log t - m, noise included, (m,) each."""
        covariance = _covariance(across, self.numbers)
        explained = np.einsum("ij,jk,ik->i", covariance, self.inverse, covariance)
        noise = self.numbers["noise"] ** 2
        whole = _covariance(_Distances.own(inputs), self.numbers)[:, 0]
        variance = np.maximum(whole - explained, 0.0) + noise
        return covariance @ self.coefficients, variance


def _noisy(parts: _Distances, numbers: dict[str, float]) -> _Values:
    covariance = _covariance(parts, numbers)
    return np.asarray(covariance + numbers["noise"] ** 2 * np.eye(len(covariance)), np.float64)


def _misfit(parts: _Distances, values: _Values, numbers: dict[str, float]) -> tuple[float, _Values]:
    """Return -log likelihood, and its slopes by the logarithms of the numbers (eq. 5.8, 5.9)."""
    factor = cho_factor(_noisy(parts, numbers), lower=True)
    inverse = cho_solve(factor, np.eye(len(values)))
    coefficients = inverse @ values
    terms = _terms(parts, numbers)
    changes = {name: 2 * term for name, term in terms.items()}
    for name, apart in (("source_length", parts.source), ("feature_length", parts.feature)):
        changes[name] = terms["bend"] * apart / numbers[name] ** 2
    changes["noise"] = 2 * numbers["noise"] ** 2 * np.eye(len(values))
    pull = inverse - np.outer(coefficients, coefficients)
    slopes = np.array([(pull * changes[name]).sum() / 2 for name in numbers])
    misfit = float(values @ coefficients / 2 + np.log(np.diag(factor[0])).sum())
    return misfit, np.asarray(slopes, np.float64)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """The four models, averaged by evidence."""

    models: tuple[_Posterior, ...]
    weights: _Values
    centre: float

    @classmethod
    def fitted(cls, parts: _Distances, values: _Values, starts: Sequence[dict[str, float]]) -> Self:
        centre = float(values.mean())
        models = tuple(_Posterior.fitted(parts, values - centre, start) for start in starts)
        evidence = np.array([one.evidence for one in models])
        weights = np.exp(evidence - evidence.max())
        return cls(models, weights / weights.sum(), centre)

    def at(self, across: _Distances, inputs: _Inputs) -> tuple[_Values, _Values]:
        """Return mean and variance of log t - m, noise included, (m,) each."""
        found = [one.at(across, inputs) for one in self.models]
        means = np.array([mean for mean, _ in found])
        variances = np.array([variance for _, variance in found])
        mean = self.weights @ means
        return mean + self.centre, self.weights @ (variances + (means - mean) ** 2)


def _starts() -> list[dict[str, float]]:
    """Return the prior's medians for each model, the one without optional terms first."""
    medians = {name: median for name, (median, _) in _PRIORS.items()}
    without = [(), ("linear",), ("single",), ("linear", "single")]
    return [{name: medians[name] for name in medians if name not in one} for one in without[::-1]]


def _left_out(mixture: _Mixture, parts: _Distances, inputs: _Inputs, values: _Values) -> _Values:
    """Return the error of every measurement in a fit to the others, in standard deviations."""
    starts = [one.numbers for one in mixture.models]
    errors = []
    for row, rest in enumerate(~np.eye(len(values), dtype=bool)):
        other = _Mixture.fitted(parts.rows(rest, rest), values[rest], starts)
        mean, variance = other.at(parts.rows(~rest, rest), inputs.rows(~rest))
        errors.append(abs(values[row] - mean[0]) / math.sqrt(variance[0]))
    return np.array(errors)


def _quantile(errors: _Values) -> float:
    """Return how many standard deviations an interval is wide, on each side.

    With too few errors for a quantile of theirs, they are taken to be normal.
    """
    count = len(errors)
    rank = math.ceil(COVERAGE * (count + 1))
    if rank <= count:
        return float(np.sort(errors)[rank - 1])
    spread = math.sqrt(float(np.mean(errors**2)))
    return float(student.ppf((1 + COVERAGE) / 2, count)) * spread


def _checked(features: _Values, sources: _Values) -> tuple[_Values, _Values]:
    features, sources = np.asarray(features, np.float64), np.asarray(sources, np.float64)
    if features.ndim != 2 or sources.ndim != 2 or len(features) != len(sources):
        raise InputError(
            "Features and known latencies must be tables with a row for each network, got the "
            f"shapes {features.shape} and {sources.shape}."
        )
    if sources.shape[1] == 0:
        raise InputError("Latencies on at least one known device are needed.")
    if not np.all(np.isfinite(features)):
        raise InputError("Features must be finite numbers.")
    _check_latencies(sources)
    return features, sources


def _check_latencies(values: _Values) -> None:
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        raise InputError(f"Latencies must be finite and > 0 ms, got {wrong[0]:g}.")
