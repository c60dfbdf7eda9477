"""The latency of a network on a device that is not here, estimated, and how far that may be off.

A law with seven numbers (`nas.latency.roofline`) is fitted to TensorRT measurements that others
published. Its error is what it got wrong on chips that were left out of the fit, one at a time; an
interval of that width holds the truth with probability `coverage` for a chip drawn like those
(hierarchical conformal prediction: Lee, Barber and Willett, "Distribution-free inference with
hierarchical data", 2023). With K chips no such interval can promise more than K / (K + 1), so the
promise is modest, and it is kept by width: measure where you can.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from nas.errors import InputError
from nas.latency.latency import ESTIMATED_LEVEL
from nas.latency.roofline import (
    DevicePeaks,
    Roofline,
    Sample,
    Values,
    fit_roofline,
    weights_of,
)
from nas.latency.workload import Workload
from nas.space.record import Record

__all__ = ["PRECISION", "Correction", "Estimate", "Estimator", "fit_estimator"]

PRECISION = "fp16"
"""The only precision that there are measurements of; int8 and fp32 are refused, not guessed."""

_FILE = "estimator.json"
_LEAST_CHIPS = 4  # ESTIMATED_LEVEL <= K / (K + 1)


@dataclass(frozen=True)
class Estimate:
    """What an estimator says about a network on a device.

    Attributes:
        ms: one image, batch 1, engine only.
        low_ms: lower end of the interval.
        high_ms: upper end of the interval.
        outside: what lies outside of everything that the estimator was fitted to, such as
            `bandwidth_gbs 3350 > 1555`; the interval is wider for it, by rule, not by evidence.
    """

    ms: float
    low_ms: float
    high_ms: float
    outside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What is chosen by leaving chips out, not by least squares.

    Attributes:
        strength: of the pull of the law's numbers towards what is expected of them.
        ridge: penalty of the correction's slopes; without a correction if None.
    """

    strength: float
    ridge: float | None


_STRENGTHS = (0.3, 1.0, 3.0, 10.0)
_RIDGES = (None, 30.0, 10.0, 3.0)


class Correction(Record):
    """What the law gets wrong about networks of a kind: a ridge regression of its residuals.

    It sees what networks are like and nothing of devices, of which there are too few, and it has no
    intercept: an average network is what the law says. Features are standardized, and held within
    what it was fitted to: it does not extrapolate.

    Attributes:
        mean: of each feature.
        spread: its standard deviation.
        low: least standardized value that was seen.
        high: greatest.
        slope: of the logarithm of the latency; none where there is no correction.
    """

    model_config = ConfigDict(strict=False)  # JSON has lists for tuples

    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    slope: tuple[float, ...] = ()

    @classmethod
    def fitted(cls, samples: Sequence[Sample], law: Roofline, ridge: float | None) -> Self:
        """Fit the residuals of a law; ridge regression (Hoerl and Kennard, 1970)."""
        if ridge is None:
            return cls()
        table = np.array([_features(one.workload) for one in samples])
        weights = weights_of(samples)
        mean = np.average(table, axis=0, weights=weights)
        spread = np.sqrt(np.average((table - mean) ** 2, axis=0, weights=weights))
        scaled = (table - mean) / spread
        wrong = -_errors(samples, law, cls())
        penalty = ridge * np.eye(len(mean))
        slope = np.linalg.solve(
            scaled.T @ (scaled * weights[:, None]) + penalty, scaled.T @ (weights * wrong)
        )
        columns = (mean, spread, scaled.min(axis=0), scaled.max(axis=0), slope)
        return cls(
            **{
                name: tuple(column.tolist())
                for name, column in zip(cls.model_fields, columns, strict=True)
            }
        )

    def factor(self, workload: Workload) -> float:
        """Return what the latency of the law is multiplied by."""
        if not self.slope:
            return 1.0
        scaled = (np.array(_features(workload)) - self.mean) / np.array(self.spread)
        return float(np.exp(np.clip(scaled, self.low, self.high) @ np.array(self.slope)))


class Estimator(Record):
    """A fitted law, its error, and the ranges that it knows.

    Attributes:
        roofline: the law.
        correction: of its residuals.
        margin: half-width of the interval, of the natural logarithm of the latency.
        coverage: the share of estimates whose interval holds the truth.
        ranges: least and greatest of each figure of devices and workloads that it was fitted to.
        provenance: data with digest, devices, setting, commit, date.
    """

    model_config = ConfigDict(strict=False)  # JSON has lists for tuples

    roofline: Roofline
    correction: Correction = Correction()
    margin: float = Field(ge=0, allow_inf_nan=False)
    coverage: float = Field(gt=0, lt=1)
    ranges: dict[str, tuple[float, float]]
    provenance: dict[str, Any]

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read an estimator; the one that comes with the package if no path is given.

        Raises:
            InputError: the file is missing, or is no estimator.
        """
        source: Traversable = path or _shipped_folder() / _FILE
        try:
            return cls.model_validate_json(source.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{source} is not an estimator: {str(error).splitlines()[0]}.",
                "Write one with `python benchmarks/estimate.py --write`.",
            ) from error

    def estimate(
        self, workload: Workload, peaks: DevicePeaks, precision: str = PRECISION
    ) -> Estimate:
        """Estimate the latency of one image under TensorRT.

        Raises:
            InputError: a precision that there are no measurements of.
        """
        if precision != PRECISION:
            raise InputError(
                f"Latencies are estimated in {PRECISION}, not in {precision!r}: no measurement of "
                "another precision went into the estimator.",
                f"Ask for {PRECISION}, or measure on the device.",
            )
        ms = self.roofline.milliseconds(workload, peaks) * self.correction.factor(workload)
        excess = self._excess({**_device_figures(peaks), **_workload_figures(workload)})
        # As if the exponent of the law in the figure that is furthest out were wrong by a half.
        width = math.exp(self.margin + 0.5 * max(excess.values(), default=0.0))
        return Estimate(ms, ms / width, ms * width, tuple(excess))

    def _excess(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return what is outside of the ranges, as words -> distance, of the logarithm."""
        found = {}
        for name, value in figures.items():
            low, high = self.ranges[name]
            if value > high:
                found[f"{name} {value:.4g} > {high:.4g}"] = math.log(value / high)
            elif value < low:
                found[f"{name} {value:.4g} < {low:.4g}"] = math.log(low / value)
        return found


def fit_estimator(samples: Sequence[Sample], provenance: Mapping[str, Any]) -> Estimator:
    """Choose the setting, fit the law and measure its error, all by leaving out one chip at a time.

    Raises:
        InputError: there are fewer than 4 chips, too few for the coverage.
    """
    if len({one.chip for one in samples}) < _LEAST_CHIPS:
        raise InputError(f"An estimator needs samples of at least {_LEAST_CHIPS} chips.")
    errors = left_out(samples)
    setting = min(errors, key=lambda one: _mean_error(errors[one]))
    law = fit_roofline(samples, setting.strength)
    return Estimator(
        roofline=law,
        correction=Correction.fitted(samples, law, setting.ridge),
        margin=_margin(list(errors[setting].values())),
        coverage=ESTIMATED_LEVEL,
        ranges=_ranges(samples),
        provenance={
            **provenance,
            "samples": len(samples),
            "setting": asdict(setting),
            "median_error_of_chip_left_out": {
                chip: round(float(np.median(np.abs(np.expm1(found)))), 4)
                for chip, found in errors[setting].items()
            },
        },
    )


def left_out(samples: Sequence[Sample]) -> dict[Setting, dict[str, Values]]:
    """Fit without each chip in turn: setting -> chip -> log(estimate / measured) of its samples."""
    errors: dict[Setting, dict[str, Values]] = {
        Setting(*one): {} for one in itertools.product(_STRENGTHS, _RIDGES)
    }
    for chip, strength in itertools.product({one.chip: None for one in samples}, _STRENGTHS):
        known = [one for one in samples if one.chip != chip]
        asked = [one for one in samples if one.chip == chip]
        law = fit_roofline(known, strength)
        for ridge in _RIDGES:
            correction = Correction.fitted(known, law, ridge)
            errors[Setting(strength, ridge)][chip] = _errors(asked, law, correction)
    return errors


def _errors(samples: Sequence[Sample], law: Roofline, correction: Correction) -> Values:
    """Return log(estimate / measured)."""
    found = [
        law.milliseconds(one.workload, one.peaks) * correction.factor(one.workload) / one.ms
        for one in samples
    ]
    return np.log(found)


def _mean_error(errors: Mapping[str, Values]) -> float:
    return float(np.mean([np.abs(found).mean() for found in errors.values()]))


def _margin(errors: Sequence[Values]) -> float:
    """Return the quantile at `ESTIMATED_LEVEL` of the errors, with a chip of infinite error added.

    Every chip has the weight 1 / (K + 1), shared among its samples (Lee et al., section 3).
    """
    sizes = np.concatenate([np.abs(one) for one in errors])
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in errors])
    order = np.argsort(sizes)
    reached = np.cumsum(weights[order]) / (len(errors) + 1)
    return float(sizes[order][np.searchsorted(reached, ESTIMATED_LEVEL - 1e-9)])


def _ranges(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    rows = [{**_device_figures(one.peaks), **_workload_figures(one.workload)} for one in samples]
    return {name: (min(r[name] for r in rows), max(r[name] for r in rows)) for name in rows[0]}


def _features(workload: Workload) -> list[float]:
    return [
        math.log(max(workload.macs, 1) / workload.launches),
        math.log(workload.traffic / max(workload.macs, 1)),
        math.log(workload.launches),
        math.log(workload.input[0] * workload.input[1]),
    ]


def _device_figures(peaks: DevicePeaks) -> dict[str, float]:
    return {
        "fp16_tflops": peaks.fp16_tflops,
        "bandwidth_gbs": peaks.bandwidth_gbs,
        "multiprocessors": peaks.multiprocessors,
        "clock_ghz": peaks.clock_ghz,
        "tflops_per_w": peaks.fp16_tflops / peaks.power_w,
    }


def _workload_figures(workload: Workload) -> dict[str, float]:
    return {
        "gmacs": workload.macs / 1e9,
        "million_elements_moved": workload.traffic / 1e6,
        "launches": workload.launches,
    }


def _shipped_folder() -> Traversable:
    try:
        return resources.files("nas.measurements")
    except ModuleNotFoundError:  # the checkout is on the path, and not installed
        return Path(__file__).parents[2] / "measurements"
