"""What the scores of a study are worth: they are compared with networks trained on their own.

A search ranks candidates by shared weights, and stands or falls with that ranking. Landmarks are
candidates that were trained from scratch by the recipe of the study; here is what their stand-alone
accuracies say about the scores, and about the rankings that cost nothing (counting MACs or
parameters, or the latency itself), which a score must beat to be worth its price.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas.accuracy.bootstrap import centred_interval
from nas.searcher.landmarks import Landmark
from nas.searcher.ranking import (
    WINDOW,
    Gap,
    Statistic,
    gap,
    kendall_tau,
    pairs_within,
    regret,
    seed_tau,
    sparse_tau,
    tau_gain,
    top_tau,
    window_tau,
)
from nas.searcher.tables import TrainingRow
from nas.units import percent

__all__ = [
    "BASELINES",
    "LEAST_LANDMARKS",
    "SCORE",
    "THRESHOLD",
    "Outcome",
    "Ranking",
    "Trust",
    "Verdict",
    "shown",
]

LEAST_LANDMARKS = 4
"""With fewer, there are too few pairs for any interval."""

THRESHOLD = 0.5
"""Least tau that a ranking should reach, overall and among networks of about equal latency."""

SCORE = "search score"
BASELINES = {"MACs": "macs", "parameters": "parameters", "latency": "latency_ms"}
"""Rankings that cost no training: more is taken to be better. Name -> column of the table."""

Outcome = Literal["pass", "fail", "cannot tell"]

_BUDGETS = 6
_LEAST_MAP = 0.05  # of the best landmark: below, networks tell classes apart by luck
# Where the true tau is 0.5, 4 groups of 3 networks are all in order with probability 0.04, and 3
# groups with 0.1, in Mallows' model of rankings (Biometrika 44, 1957).
_LEAST_WINDOW_PAIRS = 12
_LEAST_LEARNT = 0.5  # share of the mean score that the mean reference must reach to convict it


@dataclass(frozen=True)
class Ranking:
    """How well one order of the landmarks agrees with their stand-alone accuracies.

    Attributes:
        overall: Kendall's tau-b over all pairs.
        top: among the best fifth by stand-alone accuracy, at least 3.
        window: over the pairs whose latencies differ by at most 10 %.
    """

    overall: Statistic
    top: Statistic
    window: Statistic


@dataclass(frozen=True)
class Verdict:
    """Whether the ranking holds, in a word and in plain words."""

    outcome: Outcome
    text: str


@dataclass(frozen=True, eq=False)
class Trust:
    """The landmarks of a study, and what they say.

    Attributes:
        study: its name.
        landmarks: that were trained.
        references: (n, s) mAP50-95 of each landmark and seed, on the validation split.
        resampled: (n, r) the same over resampled images, the mean over seeds.
        iterations: steps of each training.
        recipe_iterations: steps of the study's recipe.
        threshold: least tau.
        failed: landmarks that could not be trained, and why.
        cpu_s: CPU seconds of the trainings; neither scoring the engines nor what an interrupted
            training spent before it was continued is in it.
    """

    study: str
    landmarks: Sequence[Landmark]
    references: NDArray[np.float64]
    resampled: NDArray[np.float64]
    iterations: int
    recipe_iterations: int
    threshold: float
    failed: Mapping[str, str]
    cpu_s: float

    @classmethod
    def of_rows(
        cls, study: str, landmarks: Sequence[Landmark], rows: Sequence[TrainingRow], **values: Any
    ) -> Trust:
        """Put stored trainings beside their landmarks; those that lack a seed are left out.

        Args:
            study: its name.
            landmarks: in any order.
            rows: of one recipe.
            values: attributes as they are.
        """
        seeds = sorted({row.seed for row in rows})
        by_key = {(row.architecture, row.precision, row.seed): row for row in rows}
        complete = []
        for one in sorted(landmarks, key=lambda one: one.latency_ms):
            key = (one.candidate.architecture.digest, one.candidate.precision)
            found = [by_key[*key, seed] for seed in seeds if (*key, seed) in by_key]
            if found and len(found) == len(seeds):
                complete.append((one, found))
        used = [row for _, found in complete for row in found]
        return cls(
            study=study,
            landmarks=[one for one, _ in complete],
            references=np.array([[row.map50_95 for row in found] for _, found in complete]),
            resampled=np.array(
                [np.mean([row.resampled for row in found], axis=0) for _, found in complete]
            ),
            cpu_s=sum(row.seconds for row in used),
            **values,
        )

    @property
    def is_short(self) -> bool:
        """Whether the landmarks were trained for fewer steps than the study's recipe has."""
        return self.iterations < self.recipe_iterations

    @property
    def seeds(self) -> int:
        """Trainings of each landmark."""
        return int(self.references.shape[1])

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per landmark, the fastest first, mAP in 0..1.

        `reference` is the mean over seeds; the interval is over images, as that of the score.
        """
        means = self.references.mean(axis=1)
        pairs = zip(means, self.resampled, strict=True)
        bounds = [centred_interval(mean, draws) for mean, draws in pairs]
        low, high = np.array(bounds).reshape(-1, 2).T
        rows = [
            {
                "name": one.name,
                "architecture": one.candidate.architecture.digest,
                **{name: value for name, value in vars(one).items() if name != "candidate"},
                "precision": one.candidate.precision,
            }
            for one in self.landmarks
        ]
        table = pd.DataFrame(rows)
        table["reference"] = self.references.mean(axis=1)
        table["reference_low"], table["reference_high"] = low, high
        for number, column in enumerate(self.references.T):
            table[f"reference_seed_{number}"] = column
        return table

    @cached_property
    def rankings(self) -> dict[str, Ranking]:
        """The search score, and the baselines on the same networks."""
        columns = {SCORE: "score", **BASELINES}
        return {name: self._ranking(self.table[column]) for name, column in columns.items()}

    @cached_property
    def sparse(self) -> Statistic:
        """Tau of the score, where differences below 0.002 mAP are ties."""
        return sparse_tau(self.table["score"], self.table["reference"])

    @cached_property
    def gains(self) -> dict[str, Statistic]:
        """Tau of the score minus that of each baseline, overall, paired by network."""
        table = self.table
        return {
            name: tau_gain(table["score"], table[column], table["reference"])
            for name, column in BASELINES.items()
        }

    @cached_property
    def ceiling(self) -> Statistic:
        """Tau between the stand-alone accuracies of one seed and another; NaN with one seed."""
        return seed_tau(self.references)

    @cached_property
    def gap(self) -> Gap:
        """Score minus reference, and its slope per doubling of the MACs."""
        return gap(self.table["score"], self.table["reference"], self.table["macs"])

    @cached_property
    def regrets(self) -> pd.DataFrame:
        """One row per budget: how many landmarks keep it, and what each pick loses, in mAP points.

        The budgets are latencies of landmarks, from one that a third of them keep to one that all
        do.
        """
        table = self.table
        ordered = np.sort(table["latency_ms"].to_numpy())
        ranks = np.linspace(math.ceil(len(ordered) / 3) - 1, len(ordered) - 1, _BUDGETS)
        budgets = np.unique(ordered[np.round(ranks).astype(int)])
        lost = pd.DataFrame({"budget_ms": budgets})
        lost["landmarks"] = np.searchsorted(ordered, budgets, side="right")
        for name, column in {SCORE: "score", **BASELINES}.items():
            lost[name] = regret(table[column], table["reference"], table["latency_ms"], budgets)
        return lost

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the ranking reaches the threshold, overall and within latency windows."""
        outcome: Outcome = "cannot tell"
        ranking = self.rankings[SCORE]
        sides = (ranking.overall, ranking.window)
        figures = (
            f"tau {shown(ranking.overall)} over all {len(self.landmarks)} landmarks, and "
            f"{shown(ranking.window)} over the {ranking.window.pairs} pairs within "
            f"{percent(WINDOW)} of latency"
        )
        if all(one.low >= self.threshold for one in sides):
            outcome, text = "pass", f"The ranking holds: {figures}; at least {self.threshold:g}"
        elif any(one.high < self.threshold for one in sides):
            outcome, text = (
                "fail",
                f"The ranking does NOT hold: {figures}; below {self.threshold:g}",
            )
        else:
            text = (
                f"Cannot tell whether the ranking holds: {figures}; {self.threshold:g} lies within "
                "an interval that wide. More landmarks or seeds narrow it"
            )
        if doubt := self._doubt(outcome):
            outcome, text = (
                "cannot tell",
                f"Cannot tell whether the ranking holds ({figures}): {doubt}",
            )
        return Verdict(outcome, f"{text}. {self._baseline_words()}{self._short_words()}")

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON: None for what is not defined."""
        columns = ["name", "architecture", "precision", "score", "reference", "latency_ms"]
        report = {
            "form": "short" if self.is_short else "full",
            "verdict": dataclasses.asdict(self.verdict),
            "threshold": self.threshold,
            "landmarks": len(self.landmarks),
            "pairs_within_window": int(pairs_within(self.table["latency_ms"]).sum()) // 2,
            "seeds": self.seeds,
            "iterations": self.iterations,
            "recipe_iterations": self.recipe_iterations,
            "tau": {name: dataclasses.asdict(one) for name, one in self.rankings.items()},
            "sparse_tau": dataclasses.asdict(self.sparse),
            "tau_gain": {name: dataclasses.asdict(one) for name, one in self.gains.items()},
            "tau_between_seeds": dataclasses.asdict(self.ceiling),
            "gap": dataclasses.asdict(self.gap.mean),
            "gap_slope_per_log2_macs": dataclasses.asdict(self.gap.slope),
            "regret_points": self.regrets.to_dict("records"),
            "networks": self.table[columns].to_dict("records"),
            "failed": dict(self.failed),
            "cpu_s": self.cpu_s,
        }
        plain: dict[str, Any] = _plain(report)
        return plain

    def _ranking(self, scores: pd.Series) -> Ranking:
        references = self.table["reference"]
        return Ranking(
            kendall_tau(scores, references),
            top_tau(scores, references),
            window_tau(scores, references, self.table["latency_ms"]),
        )

    def _doubt(self, outcome: Outcome) -> str:
        """Say why the landmarks cannot judge; nothing if they can."""
        best, mean = self.table["reference"].max(), self.table["reference"].mean()
        scored = self.table["score"].mean()
        if best < _LEAST_MAP:
            return f"on its own, no landmark reached more than {best:.3f} mAP"
        pairs = self.rankings[SCORE].window.pairs
        if outcome == "pass" and pairs < _LEAST_WINDOW_PAIRS:
            return (
                f"{pairs} pairs of about equal latency may be in order by luck, and it takes "
                f"{_LEAST_WINDOW_PAIRS}"
            )
        if outcome == "fail" and mean < _LEAST_LEARNT * scored:
            return (
                f"on their own, the landmarks reached {mean:.3f} mAP in the mean, and {scored:.3f} "
                "with inherited weights: they were trained too little to convict it"
            )
        if outcome == "fail" and self.ceiling.value < self.threshold:
            return f"tau between seeds is {shown(self.ceiling)}: the references are noise"
        return ""

    def _baseline_words(self) -> str:
        ranking, gain = self.rankings["MACs"], self.gains["MACs"]
        if math.isnan(ranking.overall.value):
            return "Nor can that of counting MACs be told."
        values = (ranking.overall.value, ranking.window.value)
        taus = " and ".join("undefined" if math.isnan(tau) else f"{tau:.2f}" for tau in values)
        taus = f"({taus})"
        if gain.low > 0:
            return f"It ranks surely better than counting MACs {taus}."
        if gain.high < 0:
            return f"Counting MACs ranks surely better {taus}."
        return f"That it ranks better than counting MACs {taus} is not sure."

    def _short_words(self) -> str:
        if not self.is_short:
            return ""
        return (
            f" Short check: each landmark had {self.iterations} of {self.recipe_iterations} steps; "
            "such references are noisy, and tau against them underestimates."
        )


def shown(one: Statistic) -> str:
    """Write a figure with its interval."""
    if math.isnan(one.value):
        return "undefined"
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into Python's, and what JSON cannot say into None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
