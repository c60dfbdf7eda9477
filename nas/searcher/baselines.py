"""What somebody would take without a search: plain rules, in the order in which they choose.

Each rule yields candidates that keep the budget as far as is known, its first choice first; whoever
measures anew takes the first that holds.

* **Most MACs that fits**: the largest of as many random candidates within the budget as the search
  scored. It costs latencies alone. The largest candidate *of the search* would be no plain choice:
  accuracies led there.
* **Uniform scaling**: one factor moves all sizes of the space together, from the smallest to the
  largest network, and the largest level that fits is taken. Kinds, such as the block or the
  attention, cannot be scaled: they are those of the largest or of the smallest network, whichever
  of the two has the better search score. So it is a stronger rival than either alone.
* **Random search**: the best search score among these random candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nas.errors import (
    ArchitectureError,
    EngineError,
    ExportError,
    MeasurementError,
    SpaceError,
    UnknownNameError,
)
from nas.model.detector import profile
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.points import is_ordered
from nas.searcher.progress import Listener
from nas.searcher.result import StudyResult
from nas.searcher.setting import Setting
from nas.space.architecture import Architecture, Candidate
from nas.space.space import Point, SearchSpace
from nas.space.space_file import Label
from nas.space.subject import is_file, read_architecture

__all__ = [
    "Rule",
    "Rules",
    "check_named",
    "named_candidate",
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


class Rules:
    """The rules of one study; what they share is drawn once.

    Args:
        setting: of the search.
        result: the study.
        judge: shares the weights of a supernet; without it the scaling is that of the largest
            kinds, and there is no random search.
        listener: hears how it goes.
    """

    def __init__(
        self,
        setting: Setting,
        result: StudyResult,
        judge: AccuracyJudge | None,
        listener: Listener,
    ) -> None:
        self._setting = setting
        self._result = result
        self._judge = judge
        self._listener = listener

    def plain(self) -> list[Rule]:
        """Return the rules that need no accuracy, apart from two for the scaling."""
        by_macs = sorted(self._drawn, key=_macs, reverse=True)
        return [
            Rule("most MACs that fits", iter(by_macs)),
            Rule("uniform scaling", _uniform(self._setting, self._result, self._judge)),
        ]

    def random_search(self) -> Rule | None:
        """Score what was drawn with the shared weights, and order it; None if nothing is shared.

        Everything is stored, so it is done once.
        """
        if self._judge is None:
            self._listener.say("Random search needs a supernet, or costs as much as a search.")
            return None
        self._listener.stage("Random search", len(self._drawn))
        scored: list[tuple[float, Candidate]] = []
        for done, candidate in enumerate(self._drawn, 1):
            try:
                found = _score(self._setting, self._result, self._judge, candidate)
                scored.append((found, candidate))
            except _UNUSABLE as error:
                self._listener.say(f"A random candidate has no score: {error}", warning=True)
            self._listener.advance(done)
        scored.sort(key=lambda one: one[0], reverse=True)
        return Rule("random search", (candidate for _, candidate in scored))

    @cached_property
    def _drawn(self) -> list[Candidate]:
        """As many distinct random candidates within every bound as the study scored."""
        wanted = int(self._result.evaluations["state"].eq("complete").sum())
        self._listener.stage("Draw candidates that fit", wanted)
        found: list[Candidate] = []
        for candidate in _random(self._setting, _MOST_DRAWN * wanted):
            with suppress(*_UNUSABLE):  # it does not run here
                if fits(self._setting, candidate):
                    found.append(candidate)
                    self._listener.advance(len(found))
            if len(found) == wanted:
                break
        return found


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


def _macs(candidate: Candidate) -> int:
    return profile(candidate.architecture).macs


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
