"""Commands about devices and search spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nas.cli.options import (
    WORKSPACE,
    ClassesOption,
    HardwareOption,
    Runtime,
    Storage,
    WorkspaceOption,
    app,
    out,
)
from nas.units import COCO_CLASSES


@app.command()
def hardware(workspace: WorkspaceOption = WORKSPACE) -> None:
    """List known devices, what is attached, and what can be measured on it here and now."""
    from nas.latency.detection import detect
    from nas.latency.measurable import measurable, unregistered
    from nas.results.hardware import hardware_table
    from nas.searcher.request import Workspace

    folder, machine = Workspace(workspace).hardware, detect()
    out.print(hardware_table(measurable(folder, machine), unregistered(folder, machine)))


@app.command()
def profile(
    hardware: HardwareOption = "cpu",
    space: Annotated[str, typer.Option(help="Name or YAML file of the search space.")] = "digits",
    measurements: Annotated[
        int, typer.Option(help="Networks to measure, chosen to cover the space.")
    ] = 40,
    runtime: Runtime = None,
    precision: Annotated[
        str | None, typer.Option(help="Such as int8,bf16.", show_default="the space's")
    ] = None,
    classes: ClassesOption = COCO_CLASSES,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the tables.", show_default="in the workspace")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the candidates to choose from.")] = 0,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Fill a latency table on an attached device, for searches where the device is not."""
    from nas import api
    from nas.results.console import LiveProgress
    from nas.results.latency import profile_table
    from nas.searcher.profiling import ProfileRequest
    from nas.searcher.request import Workspace

    request = ProfileRequest(
        hardware=hardware,
        space=space,
        measurements=measurements,
        runtime=runtime,
        precisions=tuple(precision.split(",")) if precision else None,
        classes=classes,
        output=output,
        storage=storage,
        workspace=Workspace(workspace),
        seed=seed,
    )
    with LiveProgress(out) as progress:
        tables = api.profile(request, progress)
    out.print(profile_table(tables, request.folder))


@app.command()
def spaces() -> None:
    """List the search spaces that come with the package."""
    from nas.space.space import load_space, shipped_spaces

    table = Table("name", "candidates", "choices", "description", box=None)
    for name in shipped_spaces():
        space = load_space(name)
        table.add_row(name, f"{space.size:,}", str(len(space.choices)), space.description)
    out.print(table)
