"""What an ablation study shows: every difference to the baseline with what is known of its error.

Two sources of error are kept apart. *Seeds*: training the same network again, with other first
weights, data order and augmentation, gives another mAP. With two seeds or more, differences are
paired by seed and have a t interval; the images stay the same. *Images*: with one seed there is
only a paired bootstrap over the images of the split, which says what these very weights are worth
and nothing about a second training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from nas.accuracy.bootstrap import centred_interval
from nas.errors import InputError, StudyError
from nas.searcher.ablation import COMMAND, cost_report
from nas.searcher.database import Database
from nas.searcher.switches import compared_with
from nas.searcher.variants import BASELINE

__all__ = [
    "LEVEL",
    "AblationResult",
    "Covers",
    "Estimate",
    "bootstrap_difference",
    "estimate_of",
    "holm",
    "independent_difference",
    "paired_p",
    "t_interval",
]

Covers = Literal["seeds", "images", "nothing"]
"""The source of error that an interval is about."""

LEVEL = 0.95
_TRAINED = ("architecture", "precision", "recipe")
_COSTS = ("cpu_s_per_step", "peak_bytes")
_NO_DIFFERENCE = "no difference seen"


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; the bounds are nan where nothing is known of its error."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def verdict(self, above: str, below: str) -> str:
        """Say which side of 0 the whole interval lies on, if it does."""
        if self.low > 0:
            return above
        return below if self.high < 0 else _NO_DIFFERENCE


_UNKNOWN = Estimate(math.nan)


def t_interval(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % t interval: mean -+ t(0.975; n - 1) s / sqrt(n).

    Student, The probable error of a mean, Biometrika 6 (1908). Of paired differences, it is the
    interval of the paired t test.

    Raises:
        InputError: fewer than two values, which have no spread.
    """
    if len(values) < 2:
        raise InputError(f"A t interval needs at least 2 values, got {len(values)}.")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p value of the paired t test: how often chance does as much.

    Raises:
        InputError: fewer than two differences.
    """
    if len(differences) < 2:
        raise InputError(f"A paired t test needs at least 2 pairs, got {len(differences)}.")
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def bootstrap_difference(value: float, ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return a difference with its 95 % interval from a paired bootstrap.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; paired, because both
    networks were scored on the same drawn images.

    Args:
        value: the difference on all images.
        ours: what was resampled of one network, draw by draw.
        theirs: the same of the other, on the same draws.

    Returns:
        No bounds if the networks differ and neither varies from draw to draw: those are draws of
        one image, which say nothing about others.

    Raises:
        InputError: the draws are not the same in number.
    """
    if len(ours) != len(theirs) or not ours:
        raise InputError(
            f"A paired bootstrap needs equally many draws, got {len(ours)} and {len(theirs)}."
        )
    if value and not (np.ptp(ours) or np.ptp(theirs)):
        return Estimate(value)
    return Estimate(value, *centred_interval(value, np.subtract(ours, theirs), LEVEL))


def independent_difference(ours: Estimate, theirs: Estimate) -> Estimate:
    """Return the difference of two values whose errors are independent, from their intervals.

    Zou and Donner, Statistics in Medicine 27 (2008), equation 7 (MOVER): the lower bound is
    d - sqrt((a - low_a)^2 + (high_b - b)^2), the upper one its mirror image; the two intervals need
    not be symmetric. Latencies are ratios to one reference, times one scale, each measured in turns
    of its own with the reference: their errors are independent.
    """
    value = ours.value - theirs.value
    down = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    up = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Estimate(value, value - down, value + up)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number, so that any false alarm at all is as rare as one was.

    Holm, Scandinavian Journal of Statistics 6 (1979): the i-th smallest of m is multiplied by
    m - i + 1, and none falls below one before it.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.take(p_values, order) * factors), 1)
    found: list[float] = adjusted.tolist()
    return found


@dataclass(frozen=True)
class AblationResult:
    """An ablation study, as the database has it.

    Attributes:
        study: its name.
        arguments: what it was last asked for.
        trainings: one row per variant and seed, with everything known about it; what it cost is
            nan where an earlier version trained it.
    """

    study: str
    arguments: Mapping[str, Any]
    trainings: pd.DataFrame

    @classmethod
    def load(cls, database: Database, study: str | None = None) -> AblationResult:
        """Read a study back; the latest if none is named.

        Raises:
            StudyError: there is no such study, or nothing of it is trained yet.
        """
        run = database.latest_run(study, COMMAND)
        if run is None:
            what = f"no ablation study {study!r}" if study else "no ablation study"
            raise StudyError(f"There is {what} in {database}.", "Start one with `nas ablate`.")
        trainings = database.ablations(run.study_name)
        if trainings.empty:
            raise StudyError(
                f"The ablation study {run.study_name!r} has no training yet.",
                "Run the same command again to continue it.",
            )
        costs = [
            database.find_report(run.study_name, cost_report(*key)) or {}
            for key in zip(*(trainings[name] for name in _TRAINED), strict=True)
        ]
        for name in _COSTS:
            known = [cost.get(name) for cost in costs]
            trainings[name] = [math.nan if each is None else float(each) for each in known]
        return cls(run.study_name, run.arguments, trainings)

    @property
    def table(self) -> pd.DataFrame:
        """One row per variant: its results, and its differences to the baseline.

        A switch that makes up for what another takes away differs from that one: `reference` says
        from which variant. Time and memory are compared with the baseline's.

        `same_as` names the variant that is the same network with the same recipe, and `map_covers`
        the error that the interval of the difference is about. `map_p_holm` is adjusted for the
        number of variants that were compared.
        """
        names = list(dict.fromkeys(self.trainings["variant"]))
        table = pd.DataFrame([self._row(name) for name in names])
        tested = table["same_as"].eq("") & table["map_p"].notna()
        table["map_p_holm"] = math.nan
        table.loc[tested, "map_p_holm"] = holm(table.loc[tested, "map_p"].tolist())
        return table

    @property
    def compared(self) -> int:
        """How many variants differ from the baseline and from each other."""
        table = self.table
        return int((table["same_as"].eq("") & table["variant"].ne(BASELINE)).sum())

    @property
    def seeds(self) -> tuple[int, ...]:
        """With which seeds anything was trained."""
        return tuple(sorted({int(seed) for seed in self.trainings["seed"]}))

    @property
    def caption(self) -> str:
        """Say what was trained on what, and what the intervals cover."""
        first = self.trainings.iloc[0]
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
        return " ".join(
            (
                f"{self.arguments['subject']}: {seeds}, {self.arguments['iterations']} iterations "
                f"from scratch on {self.arguments['data_name']}; mAP50-95 of the "
                f"{first['artifact']} on {first['images']} {first['split']} images.",
                _meaning_of_intervals(len(self.seeds)),
                f"Latency on {self.arguments['device']}, with the 95 % interval of its "
                "measurement.",
                "CPU time of a training step and the most memory that training held are medians "
                "over seeds, without the training of a teacher; the ratio is to the baseline's.",
                _meaning_of_many(self.compared, len(self.seeds)),
            )
        )

    def _row(self, name: str) -> dict[str, Any]:
        reference = compared_with(name, BASELINE)
        ours, base = self._of(name), self._of(reference)
        first = ours.iloc[0]
        accuracy, covers = _accuracy(ours)
        row: dict[str, Any] = {
            column: first[column] for column in ("variant", "kind", "changed", "before", "after")
        }
        row |= {"reference": reference, "same_as": self._same_as(name), "seeds": len(ours)}
        row |= _columns("map50_95", accuracy) | {"map50": float(ours["map50"].mean())}
        row |= _accuracy_difference(ours, base, is_same=row["same_as"] == reference)
        row |= _latency_columns(first, None if base.empty else base.iloc[0])
        row |= {"interval_covers": covers} | _costs(ours, self._of(BASELINE))
        counts = ("parameters", "macs", "architecture", "precision")
        return row | {column: first[column] for column in counts}

    def _of(self, name: str) -> pd.DataFrame:
        return self.trainings[self.trainings["variant"] == name].set_index("seed").sort_index()

    def _same_as(self, name: str) -> str:
        """Name the first other variant that shares a training; empty if this is the first."""
        keys = list(_TRAINED)
        table = self.trainings
        shared = table.merge(table[table["variant"] == name][keys], on=keys)["variant"]
        return "" if shared.iloc[0] == name else str(shared.iloc[0])


def _accuracy(ours: pd.DataFrame) -> tuple[Estimate, Covers]:
    values = ours["map50_95"].tolist()
    if len(values) > 1:
        found = t_interval(values)
        # No mAP lies outside 0..1; Student's distribution does not know.
        return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0)), "seeds"
    first = ours.iloc[0]
    return estimate_of(first, "map50_95"), "images"


def _accuracy_difference(
    ours: pd.DataFrame, base: pd.DataFrame, *, is_same: bool
) -> dict[str, Any]:
    """Compare by the seeds that both were trained with."""
    name = ours["variant"].iloc[0]
    common = [seed for seed in ours.index if seed in base.index]
    difference, covers, p = _UNKNOWN, "nothing", math.nan
    if is_same:
        difference = Estimate(0.0)
    elif name != BASELINE and common:
        pairs = (ours.loc[common, "map50_95"] - base.loc[common, "map50_95"]).tolist()
        if len(pairs) > 1:
            difference, covers, p = t_interval(pairs), "seeds", paired_p(pairs)
        else:
            draws = (each.loc[common[0], "resampled"] for each in (ours, base))
            difference, covers = bootstrap_difference(pairs[0], *draws), "images"
    verdict = "" if covers == "nothing" else difference.verdict("better", "worse")
    return _columns("map_delta", difference) | {
        "map_pairs": 0 if covers == "nothing" else len(common),
        "map_covers": covers,
        "map_p": p,
        "map_verdict": verdict,
    }


def _latency_columns(first: pd.Series, base: pd.Series | None) -> dict[str, Any]:
    latency = estimate_of(first, "latency", "_ms")
    difference, verdict = _UNKNOWN, ""
    if base is not None and first["variant"] != BASELINE:
        keys = ["architecture", "precision"]
        if (first[keys] == base[keys]).all():
            difference = Estimate(0.0)  # one network is measured once
        else:
            difference = independent_difference(latency, estimate_of(base, "latency", "_ms"))
            verdict = difference.verdict("slower", "faster")
    share = math.nan if base is None else float(difference.value / base["latency_ms"])
    return {
        **_columns("latency", latency, "_ms"),
        "latency_source": first["latency_source"],
        **_columns("latency_delta", difference, "_ms"),
        "latency_delta_share": share,
        "latency_verdict": verdict,
    }


def _costs(ours: pd.DataFrame, base: pd.DataFrame) -> dict[str, float]:
    """Return medians over seeds: others that use the machine make single ones slow."""
    mine, theirs = (each[list(_COSTS)].median() for each in (ours, base))
    step = float(mine["cpu_s_per_step"])
    return {
        "cpu_s_per_step": step,
        "time_ratio": step / float(theirs["cpu_s_per_step"]),
        "peak_bytes": float(mine["peak_bytes"]),
    }


def _columns(name: str, estimate: Estimate, unit: str = "") -> dict[str, float]:
    return {
        f"{name}{unit}": estimate.value,
        f"{name}_low{unit}": estimate.low,
        f"{name}_high{unit}": estimate.high,
    }


def estimate_of(row: pd.Series, name: str, unit: str = "") -> Estimate:
    """Read what `_columns` wrote."""
    return Estimate(*(float(row[f"{name}{end}{unit}"]) for end in ("", "_low", "_high")))


def _meaning_of_intervals(seeds: int) -> str:
    if seeds == 1:
        return (
            "With one seed the intervals cover which images are scored (bootstrap, paired for "
            "differences); how much a second training would differ is not known."
        )
    quantile = stats.t.ppf((1 + LEVEL) / 2, seeds - 1)
    return (
        "95 % t intervals over seeds (first weights, data order, augmentation), differences paired "
        f"by seed: {quantile:.1f} standard errors either way; the images are the same throughout. "
        "A dagger marks an interval over images, of a variant with one seed so far."
    )


def _meaning_of_many(compared: int, seeds: int) -> str:
    many = (
        f"{compared} variants are compared: without any effect, 1 in 20 "
        "intervals would still exclude 0."
    )
    corrected = " A star marks what holds after Holm's correction for their number."
    return many + (corrected if seeds > 1 else "")
