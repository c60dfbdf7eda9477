"""What somebody would take without a search: plain rules, in the order in which they choose.

Each rule yields candidates that keep the budget as far as is known, its first choice first; whoever
measures anew takes the first that holds.

* **Most MACs that fits**, and the **slowest that fits**: the largest of the study's candidates.
* **Uniform scaling**: one factor moves all sizes of the space together, from the smallest to the
  largest network, and the largest level that fits is taken. Kinds, such as the block or the
  attention, cannot be scaled: they are those of the largest or of the smallest network, whichever
  of the two has the better search score. So it is a stronger rival than either alone.
* **Random search**: the best search score among as many random candidates as the search evaluated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nas.errors import (
    ArchitectureError,
    EngineError,
    ExportError,
    MeasurementError,
    SpaceError,
    UnknownNameError,
)
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.points import is_ordered
from nas.searcher.progress import Listener
from nas.searcher.result import StudyResult, candidate_of
from nas.searcher.setting import Setting
from nas.space.architecture import Architecture, Candidate
from nas.space.space import Point, SearchSpace
from nas.space.space_file import Label
from nas.space.subject import is_file, read_architecture

__all__ = [
    "Rule",
    "check_named",
    "named_candidate",
    "plain_rules",
    "random_search",
    "scaling_ladder",
]

_LEVELS = 256  # of the factor; a space has far fewer distinct networks on the way
_MOST_DRAWN = 50  # points per candidate that a random search wants, before it gives up
_STREAM = 1  # of random numbers: not the one that the search draws from

_UNUSABLE = (EngineError, ExportError, MeasurementError)


@dataclass(frozen=True)
class Rule:
    """A way to choose without a search.

    Attributes:
        name: for a person.
        choices: candidates, the preferred one first.
    """

    name: str
    choices: Iterator[Candidate]


def plain_rules(setting: Setting, result: StudyResult, judge: AccuracyJudge | None) -> list[Rule]:
    """Return the rules that need no evaluations of their own, apart from two for the scaling.

    Without a judge, which shares the weights of a supernet, the scaling is that of the largest.
    """
    return [
        Rule("most MACs that fits", _largest(setting, result, "macs")),
        Rule("slowest that fits", _largest(setting, result, "latency_ms")),
        Rule("uniform scaling", _uniform(setting, result, judge)),
    ]


def random_search(
    setting: Setting, result: StudyResult, judge: AccuracyJudge, listener: Listener
) -> Rule:
    """Draw as many candidates as the study evaluated, score them all, and order them by score.

    They are drawn until they keep the budget, which costs the search no accuracy evaluation either,
    and scored with the same shared weights; everything is stored, so it is done once.
    """
    wanted = int(result.evaluations["state"].eq("complete").sum())
    listener.stage("Random search", wanted)
    scored: list[tuple[float, Candidate]] = []
    for candidate in _random(setting, _MOST_DRAWN * wanted):
        try:
            if fits(setting, candidate):
                scored.append((_score(setting, result, judge, candidate), candidate))
        except _UNUSABLE as error:
            listener.say(f"A random candidate could not be judged: {error}", warning=True)
        listener.advance(len(scored))
        if len(scored) >= wanted:
            break
    scored.sort(key=lambda one: one[0], reverse=True)
    return Rule("random search", (candidate for _, candidate in scored))


def scaling_ladder(space: SearchSpace, kinds: str) -> list[Point]:
    """Return the distinct points of uniform scaling, the largest first.

    Args:
        space: whose increasing numbers are moved together: choice c of n_c labels takes the label
            round(f (n_c - 1)) at the factor f in 0..1.
        kinds: the anchor that says every other choice: `min` or `max`.
    """
    ladder: list[dict[str, Label]] = []
    for factor in np.linspace(1, 0, _LEVELS):
        point = {
            name: labels[round(factor * (len(labels) - 1))]
            if is_ordered(labels)
            else space.anchors[kinds][name]
            for name, labels in space.choices.items()
        }
        if point not in ladder[-1:]:
            ladder.append(point)
    return list(ladder)


def named_candidate(setting: Setting, subject: str, precision: str) -> Candidate:
    """Find the network that a user names, with as many classes as the data has.

    Args:
        setting: of the search.
        subject: `space:anchor`, an anchor of the search's own space, an `architecture.yaml`, or a
            layer list of YOLO users.
        precision: of its engine.

    Raises:
        NasError: there is no such network.
    """
    if not is_file(subject) and ":" not in subject:
        anchors = setting.space.anchors
        if subject not in anchors:
            raise UnknownNameError.of(
                f"anchor of the space {setting.space.name!r}", subject, anchors
            )
        architecture = setting.candidate(setting.space.anchors[subject]).architecture
    else:
        architecture = read_architecture(subject, setting.classes)
    if architecture.classes != setting.classes:
        data = {**architecture.canonical(), "classes": setting.classes}
        architecture = Architecture.parse(data)
    return Candidate.model_validate({"architecture": architecture, "precision": precision})


def check_named(setting: Setting) -> None:
    """Read every network that the winner shall be compared with, before anything is spent.

    Raises:
        NasError: one does not exist.
    """
    for subject in setting.request.confirmation.against:
        named_candidate(setting, subject, setting.space.precisions[0])


def fits(setting: Setting, candidate: Candidate) -> bool:
    """Whether a candidate keeps every bound, as far as the cheapest answer that decides can say.

    Raises:
        ExportError, EngineError, MeasurementError: its latency cannot be known.
    """
    budget = setting.request.budget
    if not setting.request.bounds.admit(candidate):
        return False
    return budget.admits(setting.latency(candidate, budget).ms)


def _largest(setting: Setting, result: StudyResult, column: str) -> Iterator[Candidate]:
    table = result.scored.sort_values(column, ascending=False, kind="stable")
    return _candidates(setting, table)


def _candidates(setting: Setting, table: pd.DataFrame) -> Iterator[Candidate]:
    for _, row in table.iterrows():
        yield candidate_of(row, setting.database)


def _uniform(
    setting: Setting, result: StudyResult, judge: AccuracyJudge | None
) -> Iterator[Candidate]:
    families = []
    for kinds in ("max", "min") if judge else ("max",):
        ladder = _fitting(setting, scaling_ladder(setting.space, kinds))
        first = next(ladder, None)
        if first is not None:
            score = _score(setting, result, judge, first) if judge else 0.0
            families.append((score, itertools.chain([first], ladder)))
    if families:
        yield from max(families, key=lambda one: one[0])[1]


def _fitting(setting: Setting, points: Iterable[Point]) -> Iterator[Candidate]:
    for point in points:
        try:
            candidate = setting.candidate(point)
            if fits(setting, candidate):
                yield candidate
        except (ArchitectureError, SpaceError, *_UNUSABLE):
            continue  # this level of the space does not exist, or does not run here


def _random(setting: Setting, draws: int) -> Iterator[Candidate]:
    """Yield the distinct candidates of so many random points."""
    generator = np.random.default_rng([setting.request.seed, _STREAM])
    seen: set[str] = set()
    for _ in range(draws):
        candidate = setting.candidate(setting.space.sample(generator))
        if candidate.digest not in seen:
            seen.add(candidate.digest)
            yield candidate


def _score(
    setting: Setting, result: StudyResult, judge: AccuracyJudge, candidate: Candidate
) -> float:
    _, accuracy = judge(candidate)
    return result.score(accuracy.map50_95, setting.latency(candidate, setting.request.budget).ms)
