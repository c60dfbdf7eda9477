"""What blocks of runs say: which of them count, and the interval of those that do. Reads no clock.

A turn is one block of each callable that is timed, in turns with the others; it counts as a whole
or not at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas.errors import MeasurementError
from nas.latency.throttling import Sight, unfit

__all__ = [
    "Interval",
    "Samples",
    "Turn",
    "counting",
    "interval",
    "percentiles",
    "reasons",
    "throttles",
    "too_few",
]

Samples = npt.NDArray[np.float64]
"""(samples,) ns per run."""

Interval = tuple[float, float, float]
"""An estimate, and the lower and upper end of its 95 % interval."""

_LEAPT = "the clock leapt"
_CROWDED = "another thread was busy in the process"
# No neighbour makes a run so many times slower than the median.
_LEAP = 1000.0
# A device that throttles in a larger share of the blocks is a throttled device.
_THROTTLED_SHARE = 0.3
_RESAMPLES = 400


@dataclass(frozen=True)
class Turn:
    """One block of each callable, and what happened meanwhile.

    Args:
        samples: per callable, ns per run; negative where the clock went backwards.
        cpus: how many CPUs the process used at most.
        crowded: whether that was more than the engine's one thread.
        sight: what was seen of the device.
    """

    samples: list[Samples]
    cpus: float
    crowded: bool
    sight: Sight


def reasons(turns: Sequence[Turn]) -> list[str | None]:
    """Return for each turn why it does not count, or None."""
    found = zip(_faults(turns), unfit([turn.sight for turn in turns]), strict=True)
    return [fault or throttled for fault, throttled in found]


def counting(turns: Sequence[Turn], *, though_throttled: bool = False) -> list[Turn]:
    """Return the turns that count.

    Args:
        turns: all turns.
        though_throttled: whether those of a throttled device count as well.
    """
    found = _faults(turns) if though_throttled else reasons(turns)
    return [turn for turn, reason in zip(turns, found, strict=True) if reason is None]


def throttles(turns: Sequence[Turn]) -> bool:
    """Whether the device was throttled in more than 30 % of the turns."""
    seen = unfit([turn.sight for turn in turns])
    return sum(reason is not None for reason in seen) > _THROTTLED_SHARE * len(turns)


def too_few(turns: Sequence[Turn]) -> MeasurementError:
    """Return the error that says why too few turns count, apart from throttling."""
    faults = Counter(_faults(turns))
    share = f"in {faults.pop(None, 0)} of {len(turns)} blocks"
    if faults.most_common(1)[0][0] == _LEAPT:
        return MeasurementError(
            f"The clock went backwards or leapt: it was sound {share}.",
            "Look at the clock source of this machine (dmesg), and do not suspend it meanwhile.",
        )
    busy = np.median([turn.cpus for turn in turns])
    return MeasurementError(
        f"A one-thread engine must be alone in its process: it was {share}, and the median block "
        f"kept {busy:.1f} CPUs busy.",
        "Stop the other threads of this process, or build the engine with more threads.",
    )


def interval(turns: Sequence[Turn], percentile: float, seed: int) -> Interval:
    """Estimate over all turns, and its 95 % percentile-bootstrap interval over turns.

    The estimate is that percentile of the first callable's samples, divided by that of the second
    one's if there are two.
    """
    blocks = len(turns)
    # How often each turn is drawn; row 0 is what happened.
    drawn = np.random.default_rng(seed).multinomial(blocks, [1 / blocks] * blocks, _RESAMPLES)
    drawn = np.concatenate([np.ones((1, blocks), drawn.dtype), drawn])
    found = [
        _quantiles(np.stack(samples), drawn, percentile)
        for samples in zip(*(turn.samples for turn in turns), strict=True)
    ]
    estimates = found[0] / found[1] if len(found) > 1 else found[0]
    middle = float(estimates[0])
    low, high = np.percentile(estimates[1:], [2.5, 97.5])
    return middle, min(float(low), middle), max(float(high), middle)


def percentiles(samples: Samples, wanted: Sequence[float]) -> list[float]:
    """Return percentiles that are samples, not values between two: as `interval` estimates."""
    return [float(one) for one in np.percentile(samples, wanted, method="inverted_cdf")]


def _quantiles(blocks: Samples, drawn: npt.NDArray[np.int64], percentile: float) -> Samples:
    """Return the percentile of each resample.

    Sorting once and counting, among the lowest samples first, is many times as fast as a percentile
    for each resample.

    Args:
        blocks: (blocks, samples).
        drawn: (resamples, blocks), how often each block is in the resample.
        percentile: which one.
    """
    order = np.argsort(blocks, axis=None)
    rank = max(1, math.ceil(percentile / 100 * blocks.size))
    for lowest in (10 * rank, blocks.size):  # the first is enough unless few blocks have them all
        count = drawn[:, order[:lowest] // blocks.shape[1]].cumsum(axis=1)
        if count[:, -1].min() >= rank:
            break
    found: Samples = blocks.ravel()[order[(count >= rank).argmax(axis=1)]]
    return found


def _faults(turns: Sequence[Turn]) -> list[str | None]:
    """Return for each turn what was wrong with the clock or the process, or None."""
    plans = zip(*(turn.samples for turn in turns), strict=True)
    longest = [_LEAP * float(np.median(np.concatenate(blocks))) for blocks in plans]
    return [
        _LEAPT if _leapt(turn, longest) else _CROWDED if turn.crowded else None for turn in turns
    ]


def _leapt(turn: Turn, longest: list[float]) -> bool:
    """Whether the clock went backwards, or forwards by what no run takes."""
    limits = zip(turn.samples, longest, strict=True)
    return any(samples.min() < 0 or samples.max() > limit for samples, limit in limits)
