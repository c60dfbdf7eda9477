"""Commands about one network: describe, measure, estimate, train."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from nas.cli.options import (
    WORKSPACE,
    ClassesOption,
    Data,
    DryRun,
    HardwareOption,
    Network,
    RecipeFile,
    Runtime,
    Storage,
    Subject,
    WorkspaceOption,
    app,
    err,
    out,
    print_pasteable,
)
from nas.units import COCO_CLASSES

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.table import Table

    from nas.searcher.request import Request


@app.command()
def describe(
    subject: Subject,
    classes: ClassesOption = COCO_CLASSES,
    svg: Annotated[
        Path | None, typer.Option(help="File of the drawing.", show_default="in the workspace")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print plain data instead of the table.")
    ] = False,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """List a network's layers with shapes, parameters and MACs, and draw it."""
    from nas import api
    from nas.files import write_text
    from nas.results.description import description_facts, description_table
    from nas.results.drawing import draw
    from nas.space.alignment import misaligned
    from nas.space.subject import subject_name

    description = api.describe(subject, classes=classes)
    path = svg or workspace / f"{subject_name(subject)}.svg"
    write_text(path, draw(description, subject))
    if json_:
        typer.echo(json.dumps(description_facts(description), indent=1))
        return
    out.print(description_table(description, subject))
    for warning in misaligned(description.architecture):
        out.print(f"[yellow]warning:[/] {escape(str(warning))}", highlight=False)
    out.print(f"Drawing: {path}")


class _Protocol(StrEnum):
    """How runs follow each other."""

    hot = "hot"
    buffered = "buffered"


@app.command()
def measure(
    subject: Annotated[
        str | None,
        typer.Argument(help="model.onnx, architecture.yaml, a layer list, or space:anchor"),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(help="Measure what this study predicted or estimated, in place."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Device to measure on.", show_default="cpu, or the study's")
    ] = None,
    runtime: Runtime = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 or int8: what the runtime has.")
    ] = "fp32",
    protocol: Annotated[
        _Protocol, typer.Option(help="hot, or buffered: with a pause before every run.")
    ] = _Protocol.hot,
    batch: Annotated[
        int | None, typer.Option(help="Images per run.", show_default="1, or the ONNX file's")
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="Time this image on its way to detections, not the network alone."),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Of the engine; more than one needs an idle machine.")
    ] = 1,
    storage: Storage = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Measure a network, any ONNX file with one image input, or a study that was estimated."""
    from nas import api
    from nas.results.latency import measured_lines

    if (subject is None) == (study is None):
        raise typer.BadParameter("give a network or --study, and not both", param_hint="subject")
    if study is not None:
        request = api.stored_request(study, storage, workspace)
        _measure_study(replace(request, hardware=hardware or request.hardware))
        return
    assert subject is not None
    measured = api.measure(
        subject,
        hardware=hardware or "cpu",
        runtime=runtime,
        precision=precision,
        protocol=protocol.value,
        batch=batch,
        image=image,
        threads=threads,
        workspace=workspace,
    )
    for line in measured_lines(measured):
        out.print(line, highlight=False)


def _measure_study(request: Request) -> None:
    from nas import api
    from nas.results.console import LiveProgress
    from nas.results.latency import upgrade_summary, upgrade_table

    with LiveProgress(out) as progress:
        upgrade = api.measure_study(request, progress)
    if not upgrade.changes.empty:
        out.print(upgrade_table(upgrade))
    out.print(upgrade_summary(upgrade), highlight=False)


@app.command()
def estimate(
    subject: Network,
    hardware: Annotated[str, typer.Option(help="NVIDIA GPU or Jetson; it need not be here.")],
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Estimate a latency on a device that is not here: TensorRT, fp16, from its data sheet."""
    from nas import api
    from nas.latency.latency import ESTIMATED_LEVEL
    from nas.searcher.commands import command_line
    from nas.units import percent

    found = api.estimate(subject, hardware=hardware, workspace=workspace)
    out.print(
        f"{found.ms:.3g} ms, {percent(ESTIMATED_LEVEL)} interval [{found.low_ms:.3g}, "
        f"{found.high_ms:.3g}], estimated for {hardware} (TensorRT, fp16, batch 1, engine alone)",
        highlight=False,
    )
    if found.outside:
        err.print(
            "[yellow]warning:[/] beyond what the estimator was fitted to, so the interval is wider "
            f"by rule, not by evidence: {escape(', '.join(found.outside))}",
            highlight=False,
        )
    options = ("--hardware", hardware, "--precision", "fp16")
    measure = command_line("measure", subject, *options, workspace=workspace)
    print_pasteable(f"Nothing was measured on that device. Where it is: {measure}")


@app.command()
def train(
    subject: Subject,
    data: Data = None,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps.", show_default="the recipe's")
    ] = None,
    hardware: HardwareOption = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, data order and augmentation.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small recipe.")] = False,
    recipe: RecipeFile = None,
    dry_run: DryRun = False,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Train a network from scratch, and write its bundle."""
    from nas import api
    from nas.results.console import LiveProgress, delivered_panel
    from nas.results.forecast import forecast_table

    asked: dict[str, Any] = {
        "data": data,
        "iterations": iterations,
        "hardware": hardware,
        "seed": seed,
        "quick": quick,
        "recipe": recipe,
        "workspace": workspace,
    }
    with LiveProgress(out) as progress:
        if dry_run:
            shown: Table | Panel = forecast_table(
                api.forecast_training(subject, **asked, listener=progress)
            )
        else:
            shown = delivered_panel(api.train(subject, **asked, listener=progress))
    out.print(shown)
