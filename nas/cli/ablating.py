"""The command that changes one thing at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import (
    WORKSPACE,
    Data,
    HardwareOption,
    Runtime,
    Storage,
    WorkspaceOption,
    app,
    out,
)


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
