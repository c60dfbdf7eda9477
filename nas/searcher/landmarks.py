"""Which networks are trained on their own, to see what the scores of a study are worth.

They come from what the study scored. Ranks matter most among networks of about the same latency, so
landmarks stand in groups: the groups are spread evenly over the logarithm of the latency, from the
fastest to the slowest, and the networks of a group lie as close together as the study has them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from nas.accuracy.evaluate import Accuracy
from nas.errors import EngineError, ExportError, MeasurementError
from nas.latency.latency import Latency
from nas.model.detector import profile
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.judges import inheriting
from nas.searcher.progress import Listener
from nas.searcher.result import StudyResult, candidate_of
from nas.searcher.setting import Setting
from nas.space.architecture import Candidate

__all__ = ["Landmark", "choose_landmarks", "spread"]

_GROUP = 3  # networks, which have 3 pairs; twice as many pairs as three groups of two
_MOST_SAMPLED = 20  # points drawn per network that is missing
_STREAM = 1  # of random numbers, apart from what else the seed of a search draws


@dataclass(frozen=True)
class Landmark:
    """A network with what a search knows about it.

    Attributes:
        name: for a person, such as `trial 12`.
        candidate: network and precision.
        score: mAP50-95 with inherited weights on the validation split, with its interval.
        score_low: lower end.
        score_high: upper end.
        latency_ms: of the search.
        latency_source: of that latency.
        macs: of the fused network.
        parameters: of the fused network.
    """

    name: str
    candidate: Candidate
    score: float
    score_low: float
    score_high: float
    latency_ms: float
    latency_source: str
    macs: int
    parameters: int


def choose_landmarks(
    setting: Setting, result: StudyResult, count: int, kept: Collection[str], listener: Listener
) -> list[Landmark]:
    """Choose networks that the study scored under its budget, and sample what it has too few of.

    The winner is among them.

    Args:
        setting: of the search.
        result: the study.
        count: how many; there are fewer if the space has no more under the budget, and more if more
            are kept.
        kept: digests of architectures that are landmarks in any case.
        listener: hears how it goes.

    Raises:
        NasError: the supernet, which scores what is sampled, cannot be read or trained.
    """
    pool = result.scored.sort_values("score", ascending=False, kind="stable")
    pool = pool.drop_duplicates("architecture").reset_index(drop=True)
    first = {0} if len(pool) else set()
    keep = sorted(first | set(pool.index[pool["architecture"].isin(kept)]))
    chosen = pool.loc[spread(pool["latency_ms"], count, keep)]
    known = [_of_row(row, candidate_of(row, setting.database)) for _, row in chosen.iterrows()]
    return known + _sampled(setting, count - len(known), set(pool["architecture"]), listener)


def spread(latencies_ms: ArrayLike, count: int, keep: Sequence[int] = ()) -> list[int]:
    """Choose groups of about equal latency, evenly over its logarithm, both ends included.

    Args:
        latencies_ms: (n,) above 0.
        count: how many to choose; all if there are no more.
        keep: indices that are chosen in any case.

    Returns:
        Indices, by ascending latency.
    """
    latencies = np.asarray(latencies_ms, np.float64)
    logs = np.log(latencies)
    chosen = list(keep)
    wanted = min(count, len(logs))
    centres = (
        np.linspace(logs.min(), logs.max(), max(math.ceil(count / _GROUP), 2)) if wanted else ()
    )
    while len(chosen) < wanted:
        for centre in centres:
            distances = np.abs(logs - centre)
            distances[chosen] = np.inf
            if len(chosen) < wanted:
                chosen.append(int(distances.argmin()))
    return sorted(chosen, key=lambda index: (latencies[index], index))


def _sampled(setting: Setting, count: int, known: set[str], listener: Listener) -> list[Landmark]:
    """Draw networks that keep budget and bounds, and score them with the supernet."""
    if count <= 0:
        return []
    judge = inheriting(setting, listener)
    listener.stage("Score landmarks", count)
    generator = np.random.default_rng([setting.request.seed, _STREAM])
    found: list[Landmark] = []
    for _ in range(_MOST_SAMPLED * count):
        candidate = setting.candidate(setting.space.sample(generator))
        if candidate.architecture.digest in known:
            continue
        known.add(candidate.architecture.digest)
        try:
            landmark = _scored(setting, judge, candidate, f"sampled {len(found) + 1}")
        except (EngineError, ExportError, MeasurementError) as error:
            listener.say(f"A landmark could not be scored: {error}", warning=True)
            continue
        if landmark is not None:
            found.append(landmark)
            listener.advance(len(found))
        if len(found) == count:
            break
    return found


def _scored(
    setting: Setting, judge: AccuracyJudge, candidate: Candidate, name: str
) -> Landmark | None:
    """Score a candidate as the search would; None if it may not be in its front."""
    if not setting.request.bounds.admit(candidate):
        return None
    latency = setting.latency(candidate)
    if not setting.request.budget.admits(latency.ms):
        return None
    _, accuracy = judge(candidate)
    return _of_values(name, candidate, accuracy, latency)


def _of_values(name: str, candidate: Candidate, accuracy: Accuracy, latency: Latency) -> Landmark:
    counts = profile(candidate.architecture)
    value = accuracy.map50_95
    return Landmark(
        name=name,
        candidate=candidate,
        score=value,
        score_low=value if accuracy.low is None else accuracy.low,
        score_high=value if accuracy.high is None else accuracy.high,
        latency_ms=latency.ms,
        latency_source=latency.source,
        macs=counts.macs,
        parameters=counts.parameters,
    )


def _of_row(row: pd.Series, candidate: Candidate) -> Landmark:
    value = float(row["map50_95"])
    low, high = row["map50_95_low"], row["map50_95_high"]
    return Landmark(
        name=f"trial {row['trial']}",
        candidate=candidate,
        score=value,
        score_low=value if pd.isna(low) else float(low),
        score_high=value if pd.isna(high) else float(high),
        latency_ms=float(row["latency_ms"]),
        latency_source=str(row["latency_source"]),
        macs=int(row["macs"]),
        parameters=int(row["parameters"]),
    )
