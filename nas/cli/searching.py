"""The command that everything exists for: nas search."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    AUTO,
    WORKSPACE,
    Data,
    DryRun,
    RecipeFile,
    Runtime,
    Storage,
    WorkspaceOption,
    app,
    multiplier,
    out,
    print_pasteable,
    told_how_to_go_on,
)
from nas.cli.retargeting import (
    named_parent,
    print_difference,
    refuse_another_search,
    refuse_another_target,
    stated,
)

if TYPE_CHECKING:
    from nas.api import Found
    from nas.searcher.request import Request


class _Accuracy(StrEnum):
    """Where the weights that are scored come from."""

    supernet = "supernet"
    training = "training"


class _Latency(StrEnum):
    """How sure a latency must be."""

    auto = "auto"
    measured = "measured"


class _Baselines(StrEnum):
    """What a winner is compared with."""

    cheap = "cheap"
    all = "all"
    none = "none"


@app.command()
def search(
    ctx: typer.Context,
    hardware: Annotated[str, typer.Option(help="Device that the budget holds on.")] = "cpu",
    budget: Annotated[
        str | None, typer.Option(help="Hard upper bound on latency, such as 10ms.")
    ] = None,
    data: Data = None,
    space: Annotated[str, typer.Option(help="Name or YAML file of the search space.")] = "digits",
    runtime: Runtime = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of the candidates, such as int8,fp16.", show_default="the space's"),
    ] = None,
    latency: Annotated[
        _Latency,
        typer.Option(help="auto predicts where that decides; measured never does."),
    ] = _Latency.auto,
    max_params: Annotated[
        str | None, typer.Option(help="Most parameters, such as 5M.", show_default="no bound")
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="Most MACs, such as 2G.", show_default="no bound")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(help="Most bytes of weights, such as 10MB.", show_default="no bound"),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Most bytes of weights and tensors.", show_default="no bound"),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Folder that nas profile wrote.", show_default="the workspace's"),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(help="Such a folder of another environment, to predict from at first."),
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="autonac, or Optuna's tpe, nsga2, gp or random.")
    ] = "autonac",
    evaluations: Annotated[
        int | None,
        typer.Option(help="Accuracy evaluations in the study.", show_default="60, quick: 8"),
    ] = None,
    accuracy: Annotated[
        _Accuracy,
        typer.Option(
            help="By shared weights, or by training each candidate, most of them briefly."
        ),
    ] = _Accuracy.supernet,
    subset: Annotated[
        str | None,
        typer.Option(
            help="Validation images that are scored first, or off.",
            show_default="a fifth of 500 or more",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="Name; an existing study is continued, or re-targeted if the device, runtime, "
            "precision or budget is another.",
            show_default="new",
        ),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", help="Name of a re-targeted study.", show_default="STUDY@TARGET"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the latest study, or --study; --budget, --evaluations change.",
        ),
    ] = False,
    lambda_: Annotated[
        str,
        typer.Option("--lambda", help="Score = mAP - lambda x latency in ms; or auto."),
    ] = "0",
    alpha: Annotated[float, typer.Option(help="Score = alpha x mAP - lambda x latency.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small recipe: does everything, finds little.")
    ] = False,
    no_trust: Annotated[
        bool, typer.Option("--no-trust", help="Do not check the ranking at the end.")
    ] = False,
    recipe: RecipeFile = None,
    confirm: Annotated[
        int, typer.Option(help="Candidates of the front to fine-tune, beside the plain rules'.")
    ] = 3,
    confirm_seeds: Annotated[
        int | None, typer.Option(help="Fine-tunings of each network.", show_default="2, quick: 1")
    ] = None,
    baselines: Annotated[
        _Baselines,
        typer.Option(help="What to compare with: plain rules, random search as well, or nothing."),
    ] = _Baselines.cheap,
    against: Annotated[
        list[str] | None,
        typer.Option(help="A network to compare with: anchor, space:anchor or file; repeatable."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Fine-tunings side by side.", show_default="one per core, at most 4"),
    ] = None,
    dry_run: DryRun = False,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Search for the most accurate detector within a latency budget, and deliver it.

    With another device, runtime, precision or budget, a stored --study is re-targeted: nothing is
    trained.
    """
    from nas import api
    from nas.results.console import LiveProgress
    from nas.searcher.bounds import Bounds
    from nas.searcher.commands import command_line
    from nas.searcher.request import Confirmation

    stored = as_ or (study and api.is_stored(study, storage=storage, workspace=workspace))
    if budget is None and not resume and not stored:
        raise typer.BadParameter("give one, such as --budget 0.4ms", param_hint="--budget")
    asked: dict[str, Any] = {
        "hardware": hardware,
        "data": data,
        "space": space,
        "runtime": runtime,
        "precision": precision.split(",") if precision else None,
        "latency": latency.value,
        "bounds": Bounds.parse(
            parameters=max_params, macs=max_macs, size=max_size, memory=max_memory
        ),
        "table": table,
        "prior": prior,
        "sampler": sampler,
        "evaluations": evaluations,
        "accuracy": accuracy.value,
        "subset": _subset(subset),
        "alpha": alpha,
        "beta": multiplier(lambda_),
        "seed": seed,
        "quick": quick,
        "trust": not no_trust,
        "recipe": recipe,
        "confirmation": Confirmation(
            candidates=confirm,
            seeds=confirm_seeds,
            baselines=baselines.value,
            against=tuple(against or ()),
            jobs=jobs,
        ),
    }
    if resume:
        there = api.stored_request(study, storage, workspace)
        refuse_another_target(ctx, there)
        refuse_another_search(ctx, there, asked)
    if dry_run:
        if resume or budget is None:
            request = api.stored_request(study, storage, workspace)
        else:
            request = api.search_request(
                str(budget), study=study, storage=storage, workspace=workspace, **asked
            )
        _print_forecast(request)
        return
    # A study that is derived has a name of its own; without one given, it is the latest.
    begun = study if resume or not stored else as_
    again = command_line("search", "--resume", study=begun, storage=storage, workspace=workspace)
    with LiveProgress(out) as progress, told_how_to_go_on(again):
        if resume:
            found = api.resume(
                study,
                budget=budget,
                evaluations=evaluations,
                trust=False if no_trust else None,
                confirmation=asked["confirmation"] if "confirmation" in stated(ctx) else None,
                storage=storage,
                workspace=workspace,
                listener=progress,
            )
        elif stored:
            found = api.retarget(
                named_parent(study),
                budget=budget,
                name=as_,
                storage=storage,
                workspace=workspace,
                listener=progress,
                **{name: value for name, value in asked.items() if name in stated(ctx)},
            )
        else:
            found = api.search(
                str(budget),
                study=study,
                storage=storage,
                workspace=workspace,
                listener=progress,
                **asked,
            )
    _show(found, lambda_, storage, workspace)


def _show(found: Found, lambda_: str, storage: str | None, workspace: Path) -> None:
    """Print the front, whether its ranking holds, and what was delivered."""
    from nas.results.console import (
        delivered_panel,
        exchange_line,
        front_table,
        next_commands,
        stopped_line,
    )
    from nas.results.trust import full_check_line, trust_line
    from nas.results.worth import worth_table
    from nas.searcher.commands import command_on
    from nas.searcher.connection import masked, parse_url
    from nas.searcher.request import Workspace

    result = found.result
    title = f"Front of {found.study} under {result.budget}, by {result.score}"
    out.print(front_table(found.front, title, found.delivered.trial))
    out.print(trust_line(result.trust))
    there = dataclasses.replace(found.request, study=found.study)
    if line := full_check_line(result.trust, command_on(there, "trust")):
        print_pasteable(line)
    if stopped := stopped_line(result):
        out.print(stopped, highlight=False)
    if lambda_ == AUTO:
        out.print(exchange_line(result), highlight=False)
    out.print(delivered_panel(found.delivered))
    if found.delivered.bundle.worth is not None:
        out.print(worth_table(found.delivered.bundle.worth))
    url = storage or Workspace(workspace).database_url
    if found.request.parent:
        print_difference(found.study, found.request.parent.study, storage, workspace)
    out.print(f"Studies: {masked(parse_url(url))}", highlight=False)
    print_pasteable(next_commands(there, found.folder))


def _subset(text: str | None) -> int | None:
    """Read a number of images; `off` is none."""
    if text is None or text.strip().lower() == "off":
        return None if text is None else 0
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"a number of images or off, got {text!r}", param_hint="--subset"
        ) from error


def _print_forecast(request: Request) -> None:
    from nas import api
    from nas.results.console import LiveProgress
    from nas.results.forecast import forecast_table

    with LiveProgress(out) as progress:
        found = api.forecast(request, progress)
    out.print(forecast_table(found))
