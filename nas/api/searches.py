"""Searching: a request to a front and a winner that is handed over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nas.accuracy.recipe_fields import read_recipe
from nas.api.studies import stored_request
from nas.results.delivery import Delivered, deliver
from nas.results.trust import checked
from nas.searcher.baselines import check_named
from nas.searcher.bounds import Bounds
from nas.searcher.commands import reading
from nas.searcher.database import Database
from nas.searcher.forecast import Forecast
from nas.searcher.forecast import forecast as run_forecast
from nas.searcher.loop import search as run_search
from nas.searcher.progress import Listener, Silent
from nas.searcher.request import (
    AccuracyMode,
    Confirmation,
    LatencyMode,
    Request,
    Workspace,
)
from nas.searcher.result import StudyResult
from nas.searcher.retarget import find_search, retargeted
from nas.searcher.score import Score
from nas.searcher.setting import open_setting
from nas.units import Budget

__all__ = [
    "Found",
    "forecast",
    "resume",
    "retarget",
    "search",
    "search_request",
]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        result: the study, with every evaluation.
        delivered: the winner's bundle.
        request: what was searched for; it says the parent of a re-targeted study.
    """

    result: StudyResult
    delivered: Delivered
    request: Request

    @property
    def study(self) -> str:
        """Name under which it is stored; give it to `search` again to continue."""
        return self.result.study

    @property
    def front(self) -> pd.DataFrame:
        """The non-dominated candidates under the budget, best score first."""
        return self.result.front

    @property
    def folder(self) -> Path:
        """Where the winner lies: architecture.yaml, model.onnx, card.md."""
        return self.delivered.folder


def search(
    budget: str | Budget,
    *,
    hardware: str = "cpu",
    data: str | None = None,
    space: str = "digits",
    runtime: str | None = None,
    precision: Sequence[str] | None = None,
    latency: LatencyMode = "auto",
    bounds: Bounds | None = None,
    table: str | Path | None = None,
    prior: str | Path | None = None,
    sampler: str = "autonac",
    evaluations: int | None = None,
    accuracy: AccuracyMode = "supernet",
    subset: int | None = None,
    study: str | None = None,
    storage: str | None = None,
    workspace: str | Path = "studies",
    alpha: float = 1.0,
    beta: float = 0.0,
    seed: int = 0,
    quick: bool = False,
    trust: bool = True,
    recipe: str | Path | None = None,
    confirmation: Confirmation | None = None,
    listener: Listener | None = None,
) -> Found:
    """Search for the most accurate detector within a latency budget, and deliver it.

    Args:
        budget: such as `"0.4ms"`.
        hardware: device that the budget holds on.
        data: COCO JSON or YOLO folder; the embedded digits if None.
        space: name of a shipped search space, or path of a YAML file.
        runtime: runtime of the engines; the hardware's own if None.
        precision: of the candidates, from the fastest to the most exact; the space's if None.
        latency: `auto` predicts where that decides, and estimates for a device that is not
            attached; `measured` does neither.
        bounds: hard upper bounds on parameters, MACs, size or memory.
        table: folder that `profile` wrote for this device; the workspace's own if None.
        prior: folder that `profile` wrote in another environment, to predict from at first.
        sampler: `autonac`, or Optuna's `tpe`, `nsga2`, `gp` or `random`.
        evaluations: accuracy evaluations; 60, or 8 if `quick`, if None.
        accuracy: of candidates: by the shared weights of a `supernet`, or by a `training` of each,
            of which only the best are trained to the end.
        subset: validation images that are scored first, 0 for all at once; a fifth of them, if
            there are 500 or more, if None.
        study: name; an existing one is continued, and nothing stored is repeated. For another
            target there is `retarget`.
        storage: SQLAlchemy URL; SQLite in the workspace if None.
        workspace: folder for studies, caches and winners.
        alpha: weight of mAP in the score.
        beta: weight of the latency in ms in the score (lambda).
        seed: of every random draw.
        quick: a small recipe, to try things out.
        trust: check the ranking at the end, by a few networks that are trained on their own.
        recipe: YAML file of the fields in which the training differs from the usual one.
        confirmation: how many candidates are fine-tuned, how often, and beside what.
        listener: hears how it goes.

    Returns:
        The front and the delivered winner.

    Raises:
        NasError: the input is wrong, nothing meets the budget, or the machine fails.
    """
    request = search_request(
        budget,
        hardware=hardware,
        data=data,
        space=space,
        runtime=runtime,
        precision=precision,
        latency=latency,
        bounds=bounds,
        table=table,
        prior=prior,
        sampler=sampler,
        evaluations=evaluations,
        accuracy=accuracy,
        subset=subset,
        study=study,
        storage=storage,
        workspace=workspace,
        alpha=alpha,
        beta=beta,
        seed=seed,
        quick=quick,
        trust=trust,
        recipe=recipe,
        confirmation=confirmation or Confirmation(),
    )
    return _run(request, listener)


def search_request(
    budget: str | Budget,
    *,
    precision: Sequence[str] | None = None,
    bounds: Bounds | None = None,
    table: str | Path | None = None,
    prior: str | Path | None = None,
    workspace: str | Path = "studies",
    alpha: float = 1.0,
    beta: float = 0.0,
    recipe: str | Path | None = None,
    **same: Any,
) -> Request:
    """Turn the arguments of `search` into a value.

    Raises:
        InputError: a value that cannot be.
    """
    return Request(
        budget=_budget(budget),
        precisions=tuple(precision) if precision else None,
        bounds=bounds or Bounds(),
        table=Path(table) if table else None,
        prior=Path(prior) if prior else None,
        workspace=Workspace(Path(workspace)),
        score=Score(alpha, beta),
        recipe_values=read_recipe(Path(recipe)) if recipe else {},
        **same,
    )


def forecast(request: Request, listener: Listener | None = None) -> Forecast:
    """Say what a search would do and take, from a few steps of each part; nothing is stored.

    Args:
        request: from `search_request` or `stored_request`.
        listener: hears how it goes.

    Raises:
        As `nas.searcher.forecast.forecast`.
    """
    listener = listener or Silent()
    with open_setting(request, listener) as setting:
        return run_forecast(setting, listener)


def resume(
    study: str | None = None,
    *,
    budget: str | Budget | None = None,
    evaluations: int | None = None,
    trust: bool | None = None,
    confirmation: Confirmation | None = None,
    storage: str | None = None,
    workspace: str | Path = "studies",
    listener: Listener | None = None,
) -> Found:
    """Continue a stored search as it was asked for, and deliver its winner.

    Args:
        study: name; the latest if None.
        budget: another bound than then.
        evaluations: another number than then.
        trust: check the ranking, or do not; as then if None.
        confirmation: other candidates, seeds or rivals than then.
        storage: as in `search`.
        workspace: as in `search`.
        listener: hears how it goes.

    Raises:
        StudyError: there is no such study.
        NasError: as in `search`.
    """
    request = stored_request(study, storage, Path(workspace))
    # What a study is about stays; how far it goes and what it must keep may change.
    if budget is not None:
        request = dataclasses.replace(request, budget=_budget(budget))
    if evaluations is not None:
        request = dataclasses.replace(request, evaluations=evaluations)
    if trust is not None:
        request = dataclasses.replace(request, trust=trust)
    if confirmation is not None:
        request = dataclasses.replace(request, confirmation=confirmation)
    return _run(request, listener)


def retarget(
    study: str,
    *,
    budget: str | Budget | None = None,
    hardware: str | None = None,
    runtime: str | None = None,
    precision: Sequence[str] | None = None,
    name: str | None = None,
    storage: str | None = None,
    workspace: str | Path = "studies",
    listener: Listener | None = None,
    **stated: Any,
) -> Found:
    """Search for another target with the supernet and the candidates of a stored study.

    Nothing is trained. What is not given is as in the study; if nothing differs, it is continued.

    Args:
        study: a stored search.
        budget: on the new target.
        hardware: device that the budget holds on.
        runtime: of the engines.
        precision: of the candidates.
        name: of the study that is made; None makes one from the target, such as `study@l4-2ms`.
        storage: as in `search`.
        workspace: as in `search`.
        listener: hears how it goes.
        stated: other arguments of `search`; `data`, `space`, `seed`, `quick` and `recipe` must
            agree with the study. `evaluations` counts what the parent scored; without it, a quarter
            of what a search takes comes on top of that.

    Raises:
        StudyError: another training would be needed, or there is nothing to begin with.
        UnknownNameError: there is no such study, hardware or runtime.
        NasError: as in `search`.
    """
    target = {
        "budget": None if budget is None else _budget(budget),
        "hardware": hardware,
        "runtime": runtime,
        "precisions": tuple(precision) if precision else None,
    }
    stated |= {field: value for field, value in target.items() if value is not None}
    place = Workspace(Path(workspace))
    with (
        reading(study, storage, place.root),
        Database(storage or place.database_url, make=False) as database,
    ):
        run = find_search(database, study)
        stored = Request.restored(run.arguments, study=study, storage=storage, workspace=place)
        request = retargeted(database, stored, _fields(stored, stated), name)
    return _run(request, listener)


def _run(request: Request, listener: Listener | None) -> Found:
    listener = listener or Silent()
    with open_setting(request, listener) as setting:
        check_named(setting)
        result = checked(setting, run_search(setting, listener), listener)
        return Found(result, deliver(setting, result, listener), request)


def _fields(stored: Request, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Turn arguments of `search` into fields of a request."""
    fields = dict(stated)
    score = stored.score
    if fields.keys() & {"alpha", "beta"}:
        fields["score"] = Score(fields.pop("alpha", score.alpha), fields.pop("beta", score.beta))
    if "recipe" in fields:
        path = fields.pop("recipe")
        fields["recipe_values"] = read_recipe(Path(path)) if path else {}
    for name in fields.keys() & {"table", "prior"}:
        fields[name] = Path(fields[name])
    return fields


def _budget(budget: str | Budget) -> Budget:
    return budget if isinstance(budget, Budget) else Budget.parse(budget)
