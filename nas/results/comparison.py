"""Two networks beside each other: a difference in mAP with everything that may have made it.

A difference has two sources of error, and its interval holds both: which images happened to be in
the split, by a bootstrap whose draws are the same for every network, and how a training happened to
go. How trainings vary is learnt from all networks that were trained alike, so that few seeds do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nas.accuracy.bootstrap import centred_interval
from nas.errors import InputError
from nas.results.ablation import LEVEL, Estimate, bootstrap_difference, t_interval

__all__ = ["Scores", "TrainingNoise", "paired_difference"]


@dataclass(frozen=True, eq=False)
class Scores:
    """What one network reached with each seed, on one split.

    Args:
        reached: (S,) mAP50-95 on all images.
        resampled: (S, R) the same on each resample of the images; equal draws for every network.

    Raises:
        InputError: the shapes do not go together.
    """

    reached: NDArray[np.float64]
    resampled: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.resampled.ndim != 2 or self.reached.shape != self.resampled.shape[:1]:
            raise InputError(
                "Scores are (S,) and (S, R) for S seeds and R resamples, "
                f"got {self.reached.shape} and {self.resampled.shape}."
            )

    @property
    def over_images(self) -> Estimate:
        """The mean over seeds, with the 95 % interval over images."""
        value = float(self.reached.mean())
        low, high = centred_interval(value, self.resampled.mean(axis=0), LEVEL)
        return Estimate(value, max(low, 0.0), min(high, 1.0))

    @property
    def over_seeds(self) -> Estimate:
        """The mean over seeds, with its 95 % t interval; unknown with a single seed."""
        if len(self.reached) < 2:
            return Estimate(float(self.reached.mean()))
        found = t_interval(self.reached.tolist())
        return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0))


@dataclass(frozen=True)
class TrainingNoise:
    """How a training's mAP varies beyond what its network and its seed explain.

    Attributes:
        variance: of one training.
        freedom: degrees of freedom of that estimate.
    """

    variance: float
    freedom: int

    @classmethod
    def of(cls, networks: Sequence[Scores]) -> Self | None:
        """Estimate it from networks that were trained alike; None of one network or one seed.

        The residual mean square of N networks in S blocks, the seeds, with (N - 1)(S - 1) degrees
        of freedom (Box, Hunter and Hunter, Statistics for Experimenters, 2005, chapter 4). Of two
        networks it is half the variance of their paired differences.
        """
        table = np.array([one.reached for one in networks])
        if len(table) < 2 or table.shape[1] < 2:
            return None
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        residuals = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        return cls(float(np.square(residuals).sum()) / freedom, freedom)


def paired_difference(ours: Scores, theirs: Scores, noise: TrainingNoise | None = None) -> Estimate:
    """Return the mean difference over seeds, with a 95 % interval over images and trainings.

    Two independent errors add up: v_i, the variance over resampled images of the mean difference
    (paired bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8), and
    v_s = 2 s^2 / S of the means of S trainings that vary by s^2, known with g degrees of freedom.
    The interval is the mean -+ t(0.975; f) sqrt(v_i + v_s) with f = g (v_i + v_s)^2 / v_s^2
    (Satterthwaite, Biometrics 2, 1946; v_i counts as known). With one seed it is the bootstrap's
    interval over images.

    Args:
        ours: of one network.
        theirs: of the other, with the same seeds and resamples.
        noise: of trainings like these; None learns it from these two alone.

    Raises:
        InputError: the two differ in seeds or resamples.
    """
    if ours.resampled.shape != theirs.resampled.shape:
        raise InputError(
            "Networks are paired by seed and resample, "
            f"got {ours.resampled.shape} and {theirs.resampled.shape}."
        )
    differences = ours.reached - theirs.reached
    value, seeds = float(differences.mean()), len(differences)
    noise = noise or TrainingNoise.of([ours, theirs])
    if seeds == 1 or noise is None:
        return bootstrap_difference(value, ours.resampled[0].tolist(), theirs.resampled[0].tolist())
    images = float(np.var((ours.resampled - theirs.resampled).mean(axis=0), ddof=1))
    training = 2 * noise.variance / seeds
    freedom = noise.freedom * (images + training) ** 2 / training**2 if training else math.inf
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(images + training)
    return Estimate(value, value - half, value + half)
