"""Commands about studies: search, look at what was found, hand it over, ablate, browse."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    WORKSPACE,
    ClassesOption,
    Data,
    HardwareOption,
    RecipeFile,
    Runtime,
    Storage,
    StudyName,
    WorkspaceOption,
    app,
    err,
    out,
    repeated,
)
from nas.cli.retargeting import named_parent, print_difference, refuse_another_target, stated
from nas.units import COCO_CLASSES, Budget

if TYPE_CHECKING:
    from nas.searcher.request import Request

_AUTO = "auto"
_INTERRUPTED = 130  # what a shell expects after Ctrl-C


class _Format(StrEnum):
    """What `nas export` writes."""

    bundle = "bundle"
    ultralytics = "ultralytics"


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
        int, typer.Option(help="Candidates of the front to fine-tune; 1 is the winner alone.")
    ] = 3,
    confirm_seeds: Annotated[
        int | None, typer.Option(help="Fine-tunings of each network.", show_default="3, quick: 1")
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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, and time, memory and disk of it."),
    ] = False,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Search for the most accurate detector within a latency budget, and deliver it.

    With another device, runtime, precision or budget, a stored --study is re-targeted: nothing is
    trained.
    """
    from nas import api
    from nas.results.console import (
        LiveProgress,
        delivered_panel,
        exchange_line,
        front_table,
        next_commands,
        stopped_line,
    )
    from nas.results.trust import trust_line
    from nas.results.worth import worth_table
    from nas.searcher.bounds import Bounds
    from nas.searcher.connection import masked, parse_url
    from nas.searcher.request import Confirmation, Workspace

    stored = as_ or (study and api.is_stored(study, storage=storage, workspace=workspace))
    if resume:
        refuse_another_target(ctx, api.stored_request(study, storage, workspace))
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
        "beta": _multiplier(lambda_),
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
    if dry_run:
        if resume or budget is None:
            request = api.stored_request(study, storage, workspace)
        else:
            request = api.search_request(
                str(budget), study=study, storage=storage, workspace=workspace, **asked
            )
        _print_forecast(request)
        return
    options = repeated(storage, workspace)
    again = f"nas search --resume{f' --study {study}' if study else ''}{options}"
    with LiveProgress(out) as progress, _told_how_to_go_on(again):
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
    result = found.result
    title = f"Front of {found.study} under {result.budget}, by {result.score}"
    out.print(front_table(found.front, title, found.delivered.trial))
    out.print(trust_line(result.trust))
    if stopped := stopped_line(result):
        out.print(stopped, highlight=False)
    if lambda_ == _AUTO:
        out.print(exchange_line(result), highlight=False)
    out.print(delivered_panel(found.delivered))
    if found.delivered.bundle.worth is not None:
        out.print(worth_table(found.delivered.bundle.worth))
    url = storage or Workspace(workspace).database_url
    if found.request.parent:
        print_difference(found.study, found.request.parent.study, storage, workspace)
    out.print(f"Studies: {masked(parse_url(url))}", highlight=False)
    out.print(next_commands(found.study, found.folder, options), highlight=False)


@app.command()
def front(
    study: StudyName = None,
    lambda_: Annotated[
        str | None,
        typer.Option("--lambda", help="Order by mAP - lambda x latency in ms; or auto."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Show what keeps this budget.", show_default="the study's")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another study: show how the two fronts differ.")
    ] = None,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Print the front of a stored study, and draw it as HTML."""
    from nas import api
    from nas.results.console import exchange_line, front_table, stopped_line
    from nas.results.figures import front_figure, write_figure
    from nas.results.trust import trust_line
    from nas.searcher.score import Score

    request = api.stored_request(study, storage, workspace)
    if budget is not None:
        request = dataclasses.replace(request, budget=Budget.parse(budget))
    if lambda_ is not None:
        score = Score(request.score.alpha, _multiplier(lambda_))
        request = dataclasses.replace(request, score=score)
    result = api.front(request)
    best = None if result.front.empty else int(result.row()["trial"])
    title = f"Front of {result.study} under {request.budget}, by {request.score}"
    out.print(front_table(result.front, title, best))
    out.print(trust_line(result.trust))
    if stopped := stopped_line(result):
        out.print(stopped, highlight=False)
    if lambda_ == _AUTO:
        out.print(exchange_line(result), highlight=False)
    path = request.workspace.bundle(result.study) / "front.html"
    write_figure(front_figure(result, best), path)
    out.print(f"Figure: {path}")
    if against is not None:
        print_difference(result.study, against, storage, workspace)


@app.command()
def explain(
    study: StudyName = None,
    output: Annotated[
        Path | None,
        typer.Option(help="HTML file; a CSV stands beside it.", show_default="in workspace"),
    ] = None,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Say which choices of a stored study moved mAP and latency, and how surely."""
    from nas import api
    from nas.results.explanation import explanation_table, write_explanation
    from nas.searcher.request import Workspace

    explanation = api.explain(study, storage=storage, workspace=workspace)
    out.print(explanation_table(explanation))
    path = output or Workspace(workspace).bundle(explanation.study) / "explain.html"
    for one in write_explanation(explanation, path):
        out.print(f"Written: {one}")


@app.command()
def trust(
    study: StudyName = None,
    landmarks: Annotated[int, typer.Option(help="Networks trained on their own.")] = 12,
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 2,
    iterations: Annotated[
        int | None, typer.Option(help="Steps of a training.", show_default="the recipe's")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trainings side by side.")] = 2,
    threshold: Annotated[float, typer.Option(help="Least Kendall tau.")] = 0.5,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Check whether the ranking of a stored study holds, by training networks on their own."""
    from nas import api
    from nas.results.console import LiveProgress
    from nas.results.trust import trust_tables
    from nas.searcher.trust_job import Effort

    effort = Effort(
        landmarks=landmarks, seeds=seeds, iterations=iterations, jobs=jobs, threshold=threshold
    )
    request = api.stored_request(study, storage, workspace)
    again = f"nas trust --study {request.study}{repeated(storage, workspace)}"
    with LiveProgress(out) as progress, _told_how_to_go_on(again):
        found = api.trust(request, effort, progress)
    out.print(trust_tables(found))
    out.print(f"Written: {request.workspace.bundle(found.study)}/: trust.html, trust.csv")


@app.command()
def worth(
    study: StudyName = None,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Say whether a stored search was worth it: its winner beside plain choices, and the cost."""
    from nas import api
    from nas.results.worth import worth_table, write_worth

    request = api.stored_request(study, storage, workspace)
    found = api.worth(request)
    out.print(worth_table(found))
    for rival in found.rivals:
        out.print(rival.sentence, highlight=False)
    for path in write_worth(found, request.workspace.bundle(found.study)):
        out.print(f"Written: {path}")


@app.command()
def export(
    subject: Annotated[
        str | None,
        typer.Argument(
            help="Network to write as a layer list: space:anchor or a YAML file.",
            show_default="the study's winner",
        ),
    ] = None,
    study: StudyName = None,
    trial: Annotated[
        int | None, typer.Option(help="Trial to deliver.", show_default="the winner")
    ] = None,
    format_: Annotated[
        _Format,
        typer.Option("--format", help="A trained bundle, or the layer list that YOLO users know."),
    ] = _Format.bundle,
    output: Annotated[
        Path | None, typer.Option(help="File of the layer list.", show_default="derived")
    ] = None,
    classes: ClassesOption = COCO_CLASSES,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Fine-tune, build, measure and write a study's winner; or write any network as layers."""
    from nas import api
    from nas.files import write_text
    from nas.results.console import LiveProgress, delivered_panel
    from nas.space.subject import subject_name

    if subject is not None:
        if format_ is not _Format.ultralytics:
            raise typer.BadParameter(
                "a network that is not of a study can only be written with --format ultralytics",
                param_hint="subject",
            )
        path = output or workspace / f"{subject_name(subject)}.ultralytics.yaml"
        write_text(path, api.layer_list(subject, classes=classes))
        out.print(f"Layer list: {path}")
        return
    request = api.stored_request(study, storage, workspace)
    if format_ is _Format.ultralytics:
        folder = request.workspace.bundle(str(request.study))
        path = output or folder / "architecture.ultralytics.yaml"
        write_text(path, api.layer_list(request, trial=trial))
        out.print(f"Layer list: {path}")
        return
    with LiveProgress(out) as progress:
        delivered = api.export(request, progress, trial)
    out.print(delivered_panel(delivered))


@app.command()
def ablate(
    subject: Annotated[str, typer.Argument(help="Baseline: space:anchor, or a YAML file.")],
    space: Annotated[
        str | None, typer.Option(help="Space of the choices.", show_default="the subject's")
    ] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="A choice of the space, or CHOICE=A,B; repeatable.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=A,B of the training recipe; or its YAML file; repeatable."),
    ] = None,
    switch: Annotated[
        list[str] | None,
        typer.Option(help="A switch of the recipe, such as lookahead, or all; repeatable."),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Another anchor of the space; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 3,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps.", show_default="the recipe's")
    ] = None,
    data: Data = None,
    hardware: HardwareOption = "cpu",
    runtime: Runtime = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the engines.", show_default="the space's")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Trainings side by side.")] = 1,
    study: Annotated[str | None, typer.Option(help="Name; an existing study is continued.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small recipe.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder of table and figure.", show_default="in workspace")
    ] = None,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Change one thing at a time around a network: train, measure and compare."""
    from nas import api
    from nas.results.ablation_view import ablation_table, write_ablation
    from nas.results.console import LiveProgress
    from nas.searcher.ablation import AblationRequest
    from nas.searcher.request import Workspace
    from nas.searcher.switches import find_switches
    from nas.searcher.variants import Changes, parted_recipe

    fields, values = parted_recipe(recipe or ())
    request = AblationRequest(
        subject=subject,
        changes=Changes.parse(
            vary or (),
            fields,
            api.anchors(subject, space, against or ()),
            find_switches(switch or ()),
        ),
        space=space,
        seeds=seeds,
        iterations=iterations,
        data=data,
        study=study,
        storage=storage,
        workspace=Workspace(workspace),
        precision=precision,
        hardware=hardware,
        runtime=runtime,
        quick=quick,
        jobs=jobs,
        recipe_values=values,
    )
    with LiveProgress(out) as progress:
        result = api.ablate(request, progress)
    out.print(ablation_table(result))
    for path in write_ablation(result, output or request.workspace.bundle(result.study)):
        out.print(f"Written: {path}")


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 8080,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Browse the studies in optuna-dashboard, read-only, on this machine."""
    from nas.results.dashboard import serve
    from nas.searcher.request import Workspace

    out.print(f"Open http://127.0.0.1:{port}/dashboard (read-only; Ctrl-C ends it).")
    serve(storage or Workspace(workspace).database_url, port)


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


def _multiplier(text: str) -> float:
    """Read lambda. Auto orders by mAP: the rate is a property of the front that comes out."""
    if text == _AUTO:
        return 0.0
    try:
        return float(text)
    except ValueError as error:
        message = f"a number or {_AUTO}, got {text!r}"
        raise typer.BadParameter(message, param_hint="--lambda") from error


@contextlib.contextmanager
def _told_how_to_go_on(command: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        err.print("\nStopped; everything measured is stored. Continue with:")
        err.print(f"  {command}", highlight=False)
        sys.exit(_INTERRUPTED)
