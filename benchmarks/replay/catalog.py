"""Which strategies search which tables, how often and for how long."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nas.searcher import proposing

from .optuna_search import OptunaSearch, gp, nsga2, tpe
from .ours import Ours
from .runs import Group, Method
from .strategies import Evolution, LocalSearch, RandomSearch, in_turns, most_macs, slowest
from .tables import Table
from .tasks import median_budget, one_budget_each, unconstrained, whole_front

NULL_MODELS = ("slowest_first", "most_macs_first")
OPTUNA = ("optuna_tpe", "optuna_nsga2", "optuna_gp")

_HERE = Path(__file__).parent
_OWN = tuple(_HERE / f"{name}.py" for name in ("strategies", "tasks", "runs", "tables"))
_OPTUNA = (*_OWN, _HERE / "optuna_search.py")
_SEARCHER = Path(proposing.__file__).parents[1]
_SAMPLER = (Path(proposing.__file__).parent, *sorted(_SEARCHER.glob("autonac*.py")))
_OURS = (*_OPTUNA, _HERE / "ours.py", *_SAMPLER)


def nb201_groups(table: Table, queries: int = 200) -> list[Group]:
    """Searches of NAS-Bench-201: those with a goal first, the one that may be tuned on last."""
    devices = {"tx2_tensorrt": False, "gtx_1080ti": False, "i7": False, "pi4": True}
    tasks = [unconstrained(table, queries), unconstrained(table, 60, noise=0.5)]
    tasks += [median_budget(table, name, queries, tuned_on=on) for name, on in devices.items()]
    return [Group(task.name, (task,)) for task in tasks]


def yolobench_groups(voc: Table, coco: Table, queries: int = 40, front: int = 240) -> list[Group]:
    """Searches of YOLOBench; the device with a goal first, the one that may be tuned on last."""
    groups: list[Group] = []
    for table in (voc, coco):
        for device in ("a40_tensorrt", "jetson_nano", "pi4_tflite", "openvino"):
            tuned = (table is voc) and device == "openvino"
            tasks = one_budget_each(table, device, queries, tuned_on=tuned)
            groups.append(Group(f"{table.name}/{device}/budget", tuple(tasks)))
            one = whole_front(table, device, front, tuned_on=tuned)
            groups.append(Group(one.name, (one,)))
    return groups


def baselines(seeds: int) -> list[Method]:
    """All that need no library."""
    return [
        Method("random", RandomSearch, seeds, _OWN),
        Method("evolution", partial(in_turns, Evolution), seeds, _OWN),
        Method("local_search", partial(in_turns, LocalSearch), seeds, _OWN),
    ]


def null_models() -> list[Method]:
    """What learns from no accuracy: the first query of a budget is the model's answer."""
    return [
        Method("slowest_first", partial(in_turns, slowest), 1, _OWN),
        Method("most_macs_first", partial(in_turns, most_macs), 1, _OWN),
    ]


def ours(seeds: int, most: int) -> Method:
    """What this project searches with."""
    return Method("autonac", Ours, seeds, _OURS, most)


def ours_for_budgets(seeds: int, most: int) -> Method:
    """The same, told at which budgets a front is judged, as all searches in turns are."""
    return Method("autonac_budgets", partial(Ours, knows_budgets=True), seeds, _OURS, most)


def optuna_methods(seeds: int) -> list[Method]:
    """Optuna's samplers but for the Gaussian process."""
    return [
        Method("optuna_tpe", partial(OptunaSearch, sampler=tpe), seeds, _OPTUNA),
        Method("optuna_nsga2", partial(OptunaSearch, sampler=nsga2), seeds, _OPTUNA),
    ]


def optuna_gp(seeds: int, most: int) -> Method:
    """Optuna's Gaussian process: a hundred times the cost of the others."""
    return Method("optuna_gp", partial(OptunaSearch, sampler=gp, refusals=10), seeds, _OPTUNA, most)
