"""Latencies of networks that nobody measured, from a few that somebody did, each with its interval.

**The model.** A latency is a sum of amounts (`nas.latency.features`), each times its cost, which is
never negative:

    minimise  sum_i w_i (sum_k c_k x_ik / y_i - 1)^2 + r^2 sum_k (s_k - 1 / K)^2,   c >= 0,

where y_i is what was measured, s_k the share of amount k in the mean network, and K the number of
amounts. Errors are relative, because a millisecond is much to a small network. A few dozen
measurements cannot tell so many costs apart; that costs are not negative (Lawson and Hanson,
"Solving Least Squares Problems", 1974, chapter 23) and the pull towards equal shares settle the
rest. A sum extrapolates sensibly, and scales with the unit of its data.

**Outliers.** A neighbour on the machine can make a measurement 10 to 20 % too slow. The weights w_i
are those of Huber ("Robust Estimation of a Location Parameter", 1964), so such a one pulls little;
`LeaveOneOut.suspects` names them, to be measured again.

**The interval** is the jackknife+ of Barber et al. ("Predictive inference with the jackknife+",
2021, section 2), on logarithms, with residuals divided by sqrt(1 + leverage): networks unlike all
measured ones get wider intervals. For networks drawn like those measured it holds the truth in
about `COVERAGE` of all cases, and never in less than 2 `COVERAGE` - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from nas.errors import InputError

__all__ = ["COVERAGE", "LEAST_SAMPLES", "LatencyPredictor", "LeaveOneOut", "Prediction"]

COVERAGE = 0.95
"""What intervals promise."""

LEAST_SAMPLES = 19
"""The smallest n for which one of n residuals can be the `COVERAGE` quantile of n + 1."""

_Values = NDArray[np.float64]

_RIDGE = 0.3  # by leaving out networks of the default space; 0.1 and 1 do hardly worse
_HUBER = 2.0  # standard deviations up to which an error counts in full
_ROUNDS = 3  # of reweighting: more change nothing that matters
_MAD = 1.4826  # standard deviation of a normal law / its median absolute deviation
_LEAST_SCALE = 0.005  # the errors of a clock: smaller ones make no outlier
_SUSPECT = 4.0  # standard deviations
_WIDEST = math.log(1e6)  # of an interval, to each side: more says no more
_LEAST_SHARE = 1e-3  # of the mean network's latency: no network is faster


@dataclass(frozen=True)
class Prediction:
    """A latency that was not measured.

    Attributes:
        ms: one image, batch 1.
        low_ms: lower end of its interval, at `COVERAGE`.
        high_ms: upper end.
    """

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class LeaveOneOut:
    """How well each measurement is predicted by the others.

    Attributes:
        mape: mean absolute error, relative to what was measured.
        median: its median.
        spearman: rank correlation of what was predicted and what was measured.
        coverage: share of intervals that hold what was measured, each from the other networks.
        errors: predicted / measured - 1, in the order of the samples, (n,).
        suspects: samples so much slower than predicted that they should be measured again.
    """

    mape: float
    median: float
    spearman: float
    coverage: float
    errors: _Values
    suspects: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyPredictor:
    """A fitted regression of whole-network latencies; build it by `fit`.

    Attributes:
        samples: how many measurements it was fitted to.
    """

    samples: int
    _features: _Values  # (n, F)
    _ms: _Values
    _units: _Values  # (K,): amounts of the mean network
    _costs: _Values  # (K,): ms of an amount of the mean network
    _costs_without: _Values  # (n, K): the same, fitted without each sample in turn
    _without: _Values  # (n,): what those predict for the sample left out, ms
    _scores: _Values  # (n,): their errors, of the logarithm, over sqrt(1 + leverage)
    _spread: _Values  # (K, K): inverse information

    @classmethod
    def fit(cls, features: _Values, ms: _Values) -> Self:
        """Fit to measurements.

        Args:
            features: amounts of each network, (n, F), finite and not negative.
            ms: what was measured, (n,).

        Raises:
            InputError: there are fewer than `LEAST_SAMPLES`, or a number is not what it must be.
        """
        features, ms = np.asarray(features, np.float64), np.asarray(ms, np.float64)
        if ms.ndim != 1 or len(ms) < LEAST_SAMPLES:
            raise InputError(
                f"A predictor needs at least {LEAST_SAMPLES} measurements for an interval of "
                f"{COVERAGE:.0%}, got {ms.size}.",
                "Measure more networks.",
            )
        _check_positive(ms, "Latencies")
        return cls._fit(features, ms)

    @classmethod
    def _fit(cls, features: _Values, ms: _Values) -> Self:
        amounts = _amounts(features, len(ms))
        units = amounts.mean(axis=0)
        table = _in_units(amounts, units)
        expected = np.full(table.shape[1], 1 / table.shape[1])
        left = ~np.eye(len(ms), dtype=bool)
        costs_without = np.array([_costs(table[rest], ms[rest], expected) for rest in left])
        without = _sums(table, costs_without)
        shares = table * (_typical(ms) / ms)[:, None]
        spread = np.linalg.inv(shares.T @ shares + _RIDGE**2 * np.eye(len(expected)))
        leverage = np.einsum("ij,jk,ik->i", shares, spread, shares)
        # 1 + the leverage in the regression without the sample (Sherman and Morrison, 1950).
        alone = 1 / (1 - leverage)
        return cls(
            samples=len(ms),
            _features=features,
            _ms=ms,
            _units=units,
            _costs=_costs(table, ms, expected),
            _costs_without=costs_without,
            _without=without,
            _scores=np.abs(np.log(without / ms)) / np.sqrt(alone),
            _spread=np.asarray(spread, np.float64),
        )

    def predict(self, features: _Values) -> Prediction:
        """Predict the latency of a network.

        Args:
            features: its amounts, (F,).

        Raises:
            InputError: the features are not those of the fit.
        """
        features = np.asarray(features, np.float64)
        if features.shape != self._features.shape[1:]:
            raise InputError(
                f"Features must be {self._features.shape[1]} numbers, as in the fit, got the shape "
                f"{features.shape}."
            )
        amounts = _amounts(features[None], 1)
        row = _in_units(amounts[0], self._units)
        ms = float(_sums(row, self._costs))
        share = row * (_typical(self._ms) / ms)
        unlike = math.sqrt(1 + share @ self._spread @ share)
        width = np.minimum(self._scores * unlike, _WIDEST)
        logs = np.log(_sums(row, self._costs_without))
        # The k-th smallest and k-th largest of n, for the smallest interval that keeps the promise.
        rank = min(self.samples, math.ceil(COVERAGE * (self.samples + 1)))
        low = float(np.exp(np.sort(logs - width)[-rank]))
        high = float(np.exp(np.sort(logs + width)[rank - 1]))
        return Prediction(ms, min(ms, low), max(ms, high))

    def leave_one_out(self) -> LeaveOneOut:
        """Score the predictor on its own samples, each predicted by a fit to the others.

        Coverage needs the intervals of those fits, for which samples are left out of them again:
        this takes n times as long as the fit.
        """
        errors = self._without / self._ms - 1
        inside = 0
        for row, rest in enumerate(~np.eye(self.samples, dtype=bool)):
            other = self._fit(self._features[rest], self._ms[rest])
            found = other.predict(self._features[row])
            inside += int(found.low_ms <= self._ms[row] <= found.high_ms)
        return LeaveOneOut(
            mape=float(np.abs(errors).mean()),
            median=float(np.median(np.abs(errors))),
            spearman=float(spearmanr(self._without, self._ms).statistic),
            coverage=inside / self.samples,
            errors=errors,
            suspects=_much_slower(self._ms, self._without),
        )


def _amounts(features: _Values, count: int) -> _Values:
    """Check the features, and add what every network has one of, (n, K)."""
    if features.ndim != 2 or len(features) != count or features.shape[1] == 0:
        raise InputError(
            f"Features must be a table of {count} rows, got the shape {features.shape}."
        )
    if not np.all(np.isfinite(features)) or np.any(features < 0):
        raise InputError("Features must be finite and >= 0: they are amounts.")
    return np.hstack([features, np.ones((count, 1))])


def _check_positive(values: _Values, what: str) -> None:
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        raise InputError(f"{what} must be finite and > 0 ms, got {wrong[0]:g}.")


def _in_units(amounts: _Values, units: _Values) -> _Values:
    """Divide by the mean network; what that lacks counts as one unit where it occurs."""
    known = units > 0
    return np.where(known, amounts / np.where(known, units, 1.0), amounts > 0)


def _typical(ms: _Values) -> float:
    return float(np.exp(np.log(ms).mean()))


def _sums(table: _Values, costs: _Values) -> _Values:
    """Return latencies, ms; costs may be one row, or one for each row of the table."""
    # Amounts without a cost could be all that a network has; the mean network is the sum of costs.
    least = _LEAST_SHARE * costs.sum(axis=-1)
    return np.asarray(np.maximum((table * costs).sum(axis=-1), least), np.float64)


def _costs(table: _Values, ms: _Values, expected: _Values) -> _Values:
    """Return the cost of each amount, ms: non-negative least squares, reweighted by Huber's law."""
    typical = _typical(ms)
    rows = table * (typical / ms)[:, None]
    pull = _RIDGE * np.eye(len(expected))
    weights = np.ones(len(ms))
    for _ in range(_ROUNDS):
        costs, _ = nnls(
            np.vstack([rows * weights[:, None], pull]),
            np.concatenate([weights, _RIDGE * expected]),
        )
        wrong = np.abs(rows @ costs - 1)
        scale = max(_MAD * float(np.median(wrong)), _LEAST_SCALE)
        weights = np.sqrt(np.minimum(1.0, _HUBER * scale / np.maximum(wrong, _LEAST_SCALE)))
    return np.asarray(costs * typical, np.float64)


def _much_slower(ms: _Values, predicted: _Values) -> tuple[int, ...]:
    slower = np.log(ms / predicted)
    scale = max(_MAD * float(np.median(np.abs(slower))), _LEAST_SCALE)
    return tuple(np.flatnonzero(slower > _SUSPECT * scale).tolist())
