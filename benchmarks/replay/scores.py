"""What many searches of one kind were worth: queries until a regret, regret after so many queries.

Dimension letters: s searches (seeds), q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from .runs import Group, Sample
from .tables import Values

NEAR = 0.1
"""Points of accuracy below the optimum that count as having found it, nearly."""


def curves(group: Group, samples: Sequence[Sample]) -> Values:
    """Regret of each search after each query.

    Where queries have noise: the true regret of the row reported, and NaN where none was.

    Returns:
        (s, q) in points, mean over the tasks of the group.
    """
    return np.array([_mean_curve(group, sample) for sample in samples])


def volumes(group: Group, samples: Sequence[Sample]) -> Values:
    """Hypervolume of each search after each query, (s, q), as a share of the whole table's."""
    task = group.tasks[0]
    return np.array([_held(task.volume(one.runs[0].rows), one.queries) for one in samples])


def _mean_curve(group: Group, sample: Sample) -> Values:
    found = []
    for task, run in zip(group.tasks, sample.runs, strict=True):
        if task.noise:
            curve = np.full(sample.queries, np.nan)
            for count, row in run.picks.items():
                curve[count - 1] = task.regret([row])[0]
        else:
            curve = _held(task.regret(run.rows), sample.queries)
        found.append(curve)
    mean: Values = np.mean(found, axis=0)
    return mean


def _held(values: Values, length: int) -> Values:
    """Keep the last value: a search that ended knows what it knew."""
    return np.concatenate((values, np.full(length - len(values), values[-1])))


def queries_until(regret: Values, target: float) -> Values:
    """Return after how many queries each search's regret is at most the target, (s,)."""
    reached = regret <= target + 1e-9
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def summary(regret: Values, counts: Sequence[int]) -> dict[str, Any]:
    """Summarise s searches.

    Args:
        regret: (s, q).
        counts: numbers of queries after which the regret is reported.
    """
    result: dict[str, Any] = {"searches": len(regret), "regret_after": {}, "queries_until": {}}
    for count in counts:
        at = regret[:, count - 1]
        result["regret_after"][str(count)] = {
            "mean": _round(at.mean()),
            "median": _round(np.median(at)),
            "p90": _round(np.quantile(at, 0.9, method="higher")),
        }
    for name, target in (("near", NEAR), ("optimum", 0.0)):
        first = queries_until(regret, target)
        result["queries_until"][name] = {
            "median": _count(np.quantile(first, 0.5, method="higher")),
            "p90": _count(np.quantile(first, 0.9, method="higher")),
            "reached": int(np.isfinite(first).sum()),
        }
    return result


def mean_reaches(regret: Values, target: float) -> int | None:
    """First number of queries at which the mean regret of all searches is at most the target."""
    reached = np.flatnonzero(regret.mean(axis=0) <= target)
    return int(reached[0]) + 1 if len(reached) else None


def probability(ours: Values, theirs: Values) -> float:
    """Of samples as far apart, if both came from one distribution: Mann-Whitney, two-sided."""
    # Infinities are the last ranks, all equal; a number far above all says the same.
    finite = [np.where(np.isfinite(values), values, 1e9) for values in (ours, theirs)]
    return float(f"{mannwhitneyu(*finite, alternative='two-sided').pvalue:.3g}")


def _round(value: float) -> float:
    return round(float(value), 4)


def _count(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None
