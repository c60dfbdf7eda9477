"""A stored study for another device, runtime, precision or budget: nothing is trained.

    what was stored + what the user states -> a derived study, with its parent's supernet
    the parent's scored candidates -> points of the derived space -> looked at before all others

What the weights depend on (data, space, seed, recipe) is the parent's. A candidate that the parent
scored costs a latency on the new target; its accuracy is known already where the engine that is
scored is the same, and is scored anew where runtime or precision are others. So of a parent that
was scored otherwise, only the front and what lies next to it are looked at again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.accuracy.formats import DIGITS
from nas.errors import InputError, StudyError, UnknownNameError
from nas.latency.hardware import Hardware
from nas.searcher.commands import command_on
from nas.searcher.connection import translated
from nas.searcher.database import Database
from nas.searcher.judges import Judge
from nas.searcher.opening import open_storage, quiet_optuna, study_names
from nas.searcher.request import Parent, Request
from nas.searcher.setting import Setting
from nas.searcher.study import Study
from nas.searcher.supernets import require_inherited
from nas.searcher.tables import RunRow
from nas.searcher.trials import Told, told_of
from nas.space.architecture import Candidate
from nas.space.front import front_indices
from nas.space.space import Point, load_space
from nas.space.space_file import Label
from nas.units import Budget

__all__ = [
    "Inherited",
    "find_search",
    "fresh_evaluations",
    "handed_down_line",
    "inherit",
    "kept_line",
    "rebudgeted_line",
    "retargeted",
    "worth_a_look",
]

_DECIDES_WEIGHTS = ("data", "space", "seed", "quick", "recipe_values")

# A quarter of what a search from nothing takes.
_FRESH, _QUICK_FRESH = 15, 2

_Target = tuple[object, ...]


@dataclass(frozen=True)
class Inherited:
    """A candidate that a parent scored.

    Attributes:
        trial: of the parent.
        point: that describes it in the space of now.
        candidate: what it is now; its precision may be another.
        on_front: whether it was on the parent's front.
        near: whether it was, or differs from a member in one choice.
    """

    trial: int
    point: Point
    candidate: Candidate
    on_front: bool
    near: bool


def find_search(database: Database, study: str) -> RunRow:
    """Return the latest run of a search.

    Raises:
        UnknownNameError: there is no such study.
        StudyError: it is no search.
    """
    run = database.latest_run(study)
    if run is not None:
        return run
    commands = sorted({run.command for run in database.runs(study)})
    if commands:
        raise StudyError(
            f"Only a search can be continued or re-targeted, and {study!r} is a study of "
            f"{', '.join(f'nas {command}' for command in commands)}.",
            "Give this search another name.",
        )
    raise UnknownNameError.of("study", study, study_names(database))


def retargeted(
    database: Database, stored: Request, stated: Mapping[str, Any], name: str | None = None
) -> Request:
    """Return the request that continues a study, or that derives one from it.

    Args:
        database: where the study lives.
        stored: its request.
        stated: fields of `Request` that the user gave; everything else is as stored, but what
            belongs to a device goes with it.
        name: of the derived study; None continues `stored` if the target is the same, and makes a
            name of the target if not.

    Raises:
        StudyError: what is stated would need another training, the supernet is missing, the parent
            has no scored candidate, or the name is taken by another study.
        UnknownNameError: no such hardware or space.
    """
    _refuse_training(stored, stated)
    request = _merged(stored, stated)
    if name in {None, stored.study} and _target(request) == _target(stored):
        evaluations = stated.get("evaluations", stored.evaluations)
        return dataclasses.replace(request, evaluations=evaluations)
    parent = Parent(str(stored.study), _supernet_digest(database, str(stored.study)))
    request = dataclasses.replace(request, study=name or _name(request, stored), parent=parent)
    require_inherited(request)
    _require_scored(database, stored)
    return _continued(database, request)


def fresh_evaluations(request: Request) -> int:
    """How many candidates a re-targeted study scores beside those that it inherited."""
    return _QUICK_FRESH if request.quick else _FRESH


def inherit(setting: Setting) -> list[Inherited]:
    """Return what the parent scored as candidates of the space of now: front first, best first.

    Nothing where the study has no parent, or the parent was deleted.

    Raises:
        StudyError: the data or the space are no longer what the parent searched.
    """
    parent = setting.request.parent
    run = setting.database.latest_run(parent.study) if parent else None
    if run is None:
        return []
    if run.data != setting.dataset.digest:
        raise StudyError(
            f"A re-targeted study must have the data of its parent: {run.study_name!r} has the "
            f"digest {run.data}, and now it is {setting.dataset.digest}.",
            "Other data need another training: search under another name.",
        )
    told = _scored(setting.database, run.study_name)
    front = _front(told, Budget(run.budget_ms)) if run.budget_ms else set()
    table = setting.database.evaluations(run.study_name)
    architectures = dict(zip(table["trial_number"], table["architecture"], strict=True))
    members = [one.choices for one in told if one.number in front]
    found: dict[str, Inherited] = {}
    for one in told:
        on_front = one.number in front
        near = on_front or any(_differing(one.choices, member) == 1 for member in members)
        for point in _translated(one.choices, setting.space.choices):
            candidate = _candidate(setting, point)
            if candidate is None or candidate.architecture.digest != architectures[one.number]:
                raise StudyError(
                    f"The space {setting.request.space!r} must be what {run.study_name!r} "
                    f"searched, and the choices of its trial {one.number} describe another "
                    "network now.",
                    "Put the space back as it was; another space needs another training.",
                )
            here = Inherited(one.number, point, candidate, on_front, near)
            found.setdefault(candidate.digest, here)
    # Stable: the most accurate first within each.
    return sorted(found.values(), key=lambda one: (not one.on_front, not one.near))


def worth_a_look(inherited: Sequence[Inherited], judge: Judge) -> list[Inherited]:
    """Return what is free because its accuracy is known, and what lies on the front or next to it.

    Without a known accuracy, so many are scored anew as the parent's front and neighbours are.
    """
    return [one for one in inherited if one.near or judge.known(one.candidate)]


def handed_down_line(
    setting: Setting,
    inherited: Sequence[Inherited],
    queue: Sequence[Inherited],
    judge: Judge,
) -> str:
    """Say what a re-targeted study takes from its parent, and what it scores anew, and why."""
    parent = setting.request.parent.study if setting.request.parent else ""
    if not inherited:
        return f"Nothing is known of {parent!r} any more but its supernet."
    known = sum(judge.known(one.candidate) is not None for one in queue)
    line = (
        f"No supernet is trained: that of {parent!r} is used. Of its {len(inherited)} scored "
        f"candidates, {known} have an accuracy on this target already."
    )
    if known < len(queue):
        precisions = ", ".join(setting.space.precisions)
        line += (
            f" {len(queue) - known} on its front or next to it are scored anew, if they keep the "
            f"budget: nothing was scored in {precisions} by {setting.runtime.name} yet."
        )
    return line


def kept_line(setting: Setting, queue: Sequence[Inherited], study: Study) -> str:
    """Say which of the parent's candidates keep the budget on the new target."""
    budget = setting.request.budget
    kept = [
        one
        for one in queue
        if (told := study.known(one.candidate.digest)) is not None and told.is_feasible(budget)
    ]
    members = {one.trial for one in queue if one.on_front}
    stay = sorted({one.trial for one in kept} & members)
    return (
        f"{len(kept)} of {len(queue)} known candidates keep {budget} on {setting.hardware.name}; "
        f"of the {len(members)} members of the parent's front, {_trials(stay)}."
    )


def rebudgeted_line(scored: Sequence[Told], before: Budget, now: Budget, again: int) -> str:
    """Say which known candidates of a study keep another budget than its last one."""
    kept = [one for one in scored if one.is_feasible(now)]
    members = _front(scored, before)
    stay = sorted(members & {one.number for one in kept})
    line = (
        f"{len(kept)} of {len(scored)} scored candidates keep {now}, instead of {before}; of the "
        f"{len(members)} members of the front, {_trials(stay)}."
    )
    return line + (f" {again} that were too slow before keep it now." if again else "")


def _trials(numbers: Sequence[int]) -> str:
    if not numbers:
        return "none does"
    return f"{len(numbers)}: trials {', '.join(map(str, numbers))}"


def _refuse_training(stored: Request, stated: Mapping[str, Any]) -> None:
    """Refuse to take for re-targeting what would need other weights."""
    for name in _DECIDES_WEIGHTS:
        theirs, ours = getattr(stored, name), stated.get(name, getattr(stored, name))
        if name == "data":
            theirs, ours = theirs or DIGITS, ours or DIGITS
        if ours != theirs:
            word = name.removesuffix("_values")
            raise StudyError(
                f"The study {stored.study!r} has the {word} {theirs!r}, and its supernet was "
                f"trained so; {ours!r} would need another training.",
                f"Leave out --{word}, or search under another name.",
            )


def _merged(stored: Request, stated: Mapping[str, Any]) -> Request:
    """Put what is stated in the place of what is stored; what belongs to a device goes with it."""
    request = dataclasses.replace(stored, **stated)
    if _device(request) != _device(stored):
        request = dataclasses.replace(request, runtime=stated.get("runtime"))
    if (_device(request), _runtime(request)) != (_device(stored), _runtime(stored)):
        request = dataclasses.replace(request, table=stated.get("table"), prior=stated.get("prior"))
    if _target(request) != _target(stored):
        return dataclasses.replace(request, evaluations=stated.get("evaluations"))
    return request


def _device(request: Request) -> Hardware:
    return Hardware.named(request.hardware, request.workspace.hardware)


def _runtime(request: Request) -> str:
    return request.runtime or _device(request).runtime


def _target(request: Request) -> _Target:
    """Return what candidates must be measured and scored anew for, and what bounds them."""
    precisions = request.precisions or load_space(request.space).precisions
    return (_device(request), _runtime(request), precisions, request.budget, request.bounds)


def _name(request: Request, stored: Request) -> str:
    """Name a derived study by its target, such as `digits-cpu-1@l4-2ms`."""
    base = str(stored.study).rpartition("@")[0] if stored.parent else None
    device = _device(request)
    parts = [device.name]
    if _runtime(request) != device.runtime:
        parts.append(_runtime(request))
    if request.precisions:
        parts.append("+".join(request.precisions))
    return f"{base or stored.study}@{'-'.join([*parts, str(request.budget)])}"


def _continued(database: Database, request: Request) -> Request:
    """Return the request, as that of the study of its name if there is one.

    Raises:
        StudyError: that study has another target, or other weights.
    """
    name = str(request.study)
    if not database.runs(name):
        return request
    run = find_search(database, name)
    there = Request.restored(
        run.arguments, study=name, storage=request.storage, workspace=request.workspace
    )
    same_weights = (
        there.parent and request.parent and there.parent.supernet == (request.parent.supernet)
    )
    if not same_weights or _target(there) != _target(request):
        raise StudyError(
            f"There is another study called {name!r}: {there.hardware}, {there.budget}"
            + (f", re-targeted from {there.parent.study!r}." if there.parent else "."),
            "Name the new one with --as, or continue that one: "
            + command_on(request, "search", "--resume"),
        )
    return dataclasses.replace(
        request, parent=there.parent, evaluations=request.evaluations or there.evaluations
    )


def _supernet_digest(database: Database, study: str) -> str:
    with quiet_optuna(), open_storage(database) as storage, translated(database.url):
        number = storage.get_study_id_from_name(study)
        fingerprint = storage.get_study_user_attrs(number).get("fingerprint", {})
    if "supernet" not in fingerprint:
        raise StudyError(
            f"The study {study!r} does not say which supernet it has.", "Search afresh."
        )
    return str(fingerprint["supernet"])


def _require_scored(database: Database, stored: Request) -> None:
    if not _scored(database, str(stored.study)):
        raise StudyError(
            f"A study is re-targeted from its scored candidates, and {stored.study!r} has none.",
            "Continue it first, with a larger --budget if it admits nothing: "
            + command_on(stored, "search", "--resume"),
        )


def _scored(database: Database, study: str) -> list[Told]:
    """Return the distinct candidates with an accuracy, the most accurate first."""
    with quiet_optuna(), open_storage(database) as storage, translated(database.url):
        trials = storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False)
        told = [one for trial in trials if (one := told_of(trial)) is not None]
    found: dict[str, Told] = {}
    for one in told:
        if one.accuracy is not None:
            found.setdefault(one.digest, one)
    return sorted(found.values(), key=lambda one: -(one.accuracy or 0.0))


def _front(told: Iterable[Told], budget: Budget) -> set[int]:
    feasible = [one for one in told if one.is_feasible(budget)]
    accuracies = np.array([one.accuracy for one in feasible], dtype=np.float64)
    latencies = np.array([one.latency_ms for one in feasible], dtype=np.float64)
    return {feasible[index].number for index in front_indices(accuracies, latencies)}


def _differing(one: Point, other: Point) -> int:
    return sum(one[name] != other.get(name) for name in one)


def _translated(choices: Point, space: Mapping[str, Sequence[Label]]) -> Iterator[dict[str, Label]]:
    """Yield the points of a space in other precisions that describe the same network.

    A choice that is new there, such as the precision, is made in every way; of a label that is not
    there any more, the most exact that stays takes the place.
    """
    ways = [
        ([choices[name]] if choices[name] in labels else labels[-1:]) if name in choices else labels
        for name, labels in space.items()
    ]
    for labels in itertools.product(*ways):
        yield dict(zip(space, labels, strict=True))


def _candidate(setting: Setting, point: Point) -> Candidate | None:
    try:
        return setting.candidate(point)
    except InputError:
        return None
