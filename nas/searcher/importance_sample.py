"""The distinct candidates of a stored study, as arrays: what they chose, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from numpy.typing import NDArray

from nas.errors import InputError, NasError, StudyError
from nas.searcher.connection import translated
from nas.searcher.database import Database
from nas.searcher.opening import open_storage
from nas.searcher.request import Request
from nas.space.references import Reference
from nas.space.space import Point, SearchSpace, load_space
from nas.space.space_file import Label

__all__ = ["NOT_READ", "Sample"]

NOT_READ = -1
"""The code of a choice that has no part in a candidate."""

_Array = NDArray[np.float64]
_Codes = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Sample:
    """The distinct candidates of a study. Dimension letters: n candidates, C choices.

    Attributes:
        choices: choice -> its labels, from small to large.
        codes: (n, C) positions of the labels, or `NOT_READ`.
        accuracy: (n,) mAP50-95; NaN if never scored, or in part only: effects of choices are
            differences of a few points, and an estimate is not that sure.
        latency_ms: (n,) NaN if not known.
        sources: where latencies come from -> how many.
    """

    choices: Mapping[str, Sequence[Label]]
    codes: _Codes
    accuracy: _Array
    latency_ms: _Array
    sources: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, database: Database, request: Request) -> Sample:
        """Read the candidates of a stored study.

        Which choices a candidate reads is asked of the space that the request names; without it,
        or if it has changed since, all are taken as read.

        Raises:
            StudyError: no trial has a latency.
        """
        points = _points(database, str(request.study))
        table = database.evaluations(str(request.study))
        table = table[table["trial_number"].isin(points.keys()) & table["latency_ms"].notna()]
        # A candidate that was over budget once may have been scored under a larger one.
        table = table.sort_values("map50_95", kind="stable", na_position="last")
        table = table.drop_duplicates(["architecture", "precision"]).sort_values("trial_number")
        if table.empty:
            raise StudyError(
                f"The study {request.study!r} in {database} has no candidate with a latency.",
                "Look at its name, or search first.",
            )
        tried = [points[number] for number in table["trial_number"]]
        choices, space = _choices(request, tried)
        return cls(
            choices,
            _codes(choices, tried, None if space is None else _Reading(space)),
            table["map50_95"].to_numpy(np.float64),
            table["latency_ms"].to_numpy(np.float64),
            {str(one): int(n) for one, n in table["latency_source"].value_counts().items()},
        )


def _points(database: Database, study: str) -> dict[int, dict[str, Label]]:
    """Return the choices of every trial that says them."""
    with open_storage(database) as storage, translated(database.url):
        trials = optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    return {
        trial.number: json.loads(trial.user_attrs["choices"])
        for trial in trials
        if "choices" in trial.user_attrs
    }


def _choices(
    request: Request, points: Sequence[Point]
) -> tuple[dict[str, tuple[Label, ...]], SearchSpace | None]:
    """Return the labels of every choice, and the space that they belong to if it still stands."""
    seen = {name: {point[name] for point in points} for name in points[0]}
    try:
        space = load_space(request.space)
        if request.precisions:
            space = space.in_precisions(request.precisions)
    except NasError:
        space = None
    stated = space.choices if space else {}
    if any(name in stated and not labels <= set(stated[name]) for name, labels in seen.items()):
        space, stated = None, {}
    # The device may have ruled out a precision, and with it the choice of one.
    choices = {name: stated.get(name) or tuple(_sorted(labels)) for name, labels in seen.items()}
    return choices, space


def _sorted(labels: set[Label]) -> list[Label]:
    if all(isinstance(label, int | float) for label in labels):
        return sorted(labels, key=float)
    return sorted(labels, key=str)


def _codes(
    choices: Mapping[str, Sequence[Label]], points: Sequence[Point], reading: _Reading | None
) -> _Codes:
    codes = [
        [
            labels.index(point[name]) if reading is None or reading.reads(name, point) else NOT_READ
            for name, labels in choices.items()
        ]
        for point in points
    ]
    return np.array(codes, dtype=np.intp).reshape(len(points), len(choices))


class _Reading:
    """Which choices have a part in what a point describes.

    A choice may be referred to by options of others only. Whether it is read then depends on those
    others alone, and shows in the candidate: beside them, its options make a difference.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._parents = {
            name: {
                parent
                for parent, options in space.options.items()
                for one in Reference.within(list(options.values())).values()
                if one.choice == name
            }
            for name in space.options
        }
        self._known: dict[tuple[object, ...], bool] = {}

    def reads(self, name: str, point: Point) -> bool:
        """Whether a choice has a part in what a point describes."""
        above = {one: point[one] for one in sorted(self._above(name)) if one in point}
        if not above:
            return True
        key = (name, *above.items())
        if key not in self._known:
            beside = {**self._space.anchors["max"], **above}
            made = {self._made({**beside, name: label}) for label in self._space.options[name]}
            self._known[key] = len(made) > 1
        return self._known[key]

    def _above(self, name: str) -> set[str]:
        parents = self._parents.get(name, set())
        return parents.union(*(self._above(parent) for parent in parents))

    def _made(self, point: Point) -> str:
        try:
            return self._space.candidate(point, 1).digest
        except InputError:
            return repr(sorted(point.items()))  # no network is like another one
