"""Commands about stored studies: look at what was found, judge it, hand it over, browse."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    AUTO,
    WORKSPACE,
    ClassesOption,
    Storage,
    StudyName,
    WorkspaceOption,
    app,
    multiplier,
    out,
    print_pasteable,
    told_how_to_go_on,
)
from nas.cli.retargeting import print_difference
from nas.units import COCO_CLASSES, Budget


class _Format(StrEnum):
    """What `nas export` writes."""

    bundle = "bundle"
    ultralytics = "ultralytics"


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
    from nas.results.trust import full_check_line, trust_line
    from nas.searcher.commands import command_on
    from nas.searcher.score import Score

    request = api.stored_request(study, storage, workspace)
    stored = request
    if budget is not None:
        request = dataclasses.replace(request, budget=Budget.parse(budget))
    if lambda_ is not None:
        score = Score(request.score.alpha, multiplier(lambda_))
        request = dataclasses.replace(request, score=score)
    result = api.front(request)
    best = None if result.front.empty else int(result.row()["trial"])
    name = "front"
    if request == stored:
        best = api.delivered_trial(request, result, otherwise=best)
    else:  # beside the figure of what was delivered, not in its place
        name += f"-{request.budget}" + (f"-lambda-{lambda_}" if lambda_ else "")
    title = f"Front of {result.study} under {request.budget}, by {request.score}"
    out.print(front_table(result.front, title, best))
    out.print(trust_line(result.trust))
    if line := full_check_line(result.trust, command_on(request, "trust")):
        print_pasteable(line)
    if stopped := stopped_line(result):
        out.print(stopped, highlight=False)
    if lambda_ == AUTO:
        out.print(exchange_line(result), highlight=False)
    path = request.workspace.bundle(result.study) / f"{name}.html"
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
    from nas.searcher.commands import command_on
    from nas.searcher.trust_job import Effort

    effort = Effort(
        landmarks=landmarks, seeds=seeds, iterations=iterations, jobs=jobs, threshold=threshold
    )
    request = api.stored_request(study, storage, workspace)
    again = command_on(request, "trust", *effort.options)
    with LiveProgress(out) as progress, told_how_to_go_on(again):
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
def dashboard(
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 8080,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Browse the studies in optuna-dashboard, read-only, on this machine."""
    from nas.results.dashboard import serve
    from nas.searcher.commands import reading
    from nas.searcher.request import Workspace

    out.print(f"Open http://127.0.0.1:{port}/dashboard (Ctrl-C ends it).")
    out.print("It is read-only: what would make, rename, delete or note a study is hidden.")
    with reading(None, storage, workspace):
        serve(storage or Workspace(workspace).database_url, port)
