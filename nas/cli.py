"""The command line: parse, call, print. What a command does lives in `nas.api`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

# Before any library starts its threads: two threads spin against each other as soon as anything
# else runs on the machine, and one thread is what the clock can time exactly.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nas.errors import NasError
from nas.units import Budget

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find the most accurate object detector that keeps a latency budget on your device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PLAIN_WIDTH = 150  # of a log file, where nothing tells how wide it will be read
_out = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
_err = Console(stderr=True)

_WORKSPACE = Path("studies")
_COCO_CLASSES = 80
_INTERRUPTED = 130  # what a shell expects after Ctrl-C

Storage = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL of the database.", show_default="SQLite")
]
WorkspaceOption = Annotated[
    Path, typer.Option(help="Folder for studies, caches and winners.", file_okay=False)
]
StudyName = Annotated[str | None, typer.Option(help="Name of the study.", show_default="latest")]
Subject = Annotated[
    str, typer.Argument(help="architecture.yaml, a YOLO user's layer list, or space:anchor")
]
ClassesOption = Annotated[int, typer.Option(help="Classes of an anchor; a file says its own.")]
Data = Annotated[
    str | None, typer.Option(help="COCO JSON or YOLO folder.", show_default="the embedded digits")
]
Runtime = Annotated[
    str | None, typer.Option(help="Runtime of the engines.", show_default="the hardware's")
]


class _Format(StrEnum):
    """What `nas export` writes."""

    bundle = "bundle"
    ultralytics = "ultralytics"


@app.command()
def search(
    hardware: Annotated[str, typer.Option(help="Device that the budget holds on.")] = "cpu",
    budget: Annotated[
        str | None, typer.Option(help="Hard upper bound on latency, such as 10ms.")
    ] = None,
    data: Data = None,
    space: Annotated[str, typer.Option(help="Name or YAML file of the search space.")] = "digits",
    runtime: Runtime = None,
    sampler: Annotated[str, typer.Option(help="tpe, nsga2, gp or random.")] = "tpe",
    evaluations: Annotated[
        int | None,
        typer.Option(help="Accuracy evaluations in the study.", show_default="60, quick: 8"),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name; an existing study is continued.", show_default="new")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the latest study, or --study; --budget, --evaluations change.",
        ),
    ] = False,
    lambda_: Annotated[
        float, typer.Option("--lambda", help="Score = mAP - lambda x latency in ms.")
    ] = 0.0,
    alpha: Annotated[float, typer.Option(help="Score = alpha x mAP - lambda x latency.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small recipe: does everything, finds little.")
    ] = False,
    storage: Storage = None,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Search for the most accurate detector within a latency budget, and deliver it."""
    from nas import api
    from nas.results.console import LiveProgress, delivered_panel, front_table, next_commands
    from nas.searcher.connection import masked, parse_url
    from nas.searcher.request import Workspace

    if budget is None and not resume:
        raise typer.BadParameter("give one, such as --budget 0.4ms", param_hint="--budget")
    options = _repeated(storage, workspace)
    with LiveProgress(_out) as progress, _told_how_to_resume(study, options):
        if resume or budget is None:
            found = api.resume(
                study,
                budget=budget,
                evaluations=evaluations,
                storage=storage,
                workspace=workspace,
                listener=progress,
            )
        else:
            found = api.search(
                budget,
                hardware=hardware,
                data=data,
                space=space,
                runtime=runtime,
                sampler=sampler,
                evaluations=evaluations,
                study=study,
                storage=storage,
                workspace=workspace,
                alpha=alpha,
                beta=lambda_,
                seed=seed,
                quick=quick,
                listener=progress,
            )
    result = found.result
    title = f"Front of {found.study} under {result.budget}, by {result.score}"
    _out.print(front_table(found.front, title, found.delivered.trial))
    _out.print(delivered_panel(found.delivered))
    url = storage or Workspace(workspace).database_url
    _out.print(f"Studies: {masked(parse_url(url))}", highlight=False)
    _out.print(next_commands(found.study, found.folder, options), highlight=False)


@app.command()
def front(
    study: StudyName = None,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Order by mAP - lambda x latency in ms.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Show what keeps this budget.", show_default="the study's")
    ] = None,
    storage: Storage = None,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Print the front of a stored study, and draw it as HTML."""
    from nas import api
    from nas.results.console import front_table
    from nas.results.figures import front_figure, write_figure
    from nas.searcher.score import Score

    request = api.stored_request(study, storage, workspace)
    if budget is not None:
        request = dataclasses.replace(request, budget=Budget.parse(budget))
    if lambda_ is not None:
        request = dataclasses.replace(request, score=Score(request.score.alpha, lambda_))
    result = api.front(request)
    best = None if result.front.empty else int(result.row()["trial"])
    title = f"Front of {result.study} under {request.budget}, by {request.score}"
    _out.print(front_table(result.front, title, best))
    path = request.workspace.bundle(result.study) / "front.html"
    write_figure(front_figure(result, best), path)
    _out.print(f"Figure: {path}")


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
    classes: ClassesOption = _COCO_CLASSES,
    storage: Storage = None,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Fine-tune, build, measure and write a study's winner; or write any network as layers."""
    from nas import api
    from nas.results.console import LiveProgress, delivered_panel
    from nas.results.files import write_text
    from nas.space.subject import subject_name

    if subject is not None:
        if format_ is not _Format.ultralytics:
            raise typer.BadParameter(
                "a network that is not of a study can only be written with --format ultralytics",
                param_hint="subject",
            )
        path = output or workspace / f"{subject_name(subject)}.ultralytics.yaml"
        write_text(path, api.layer_list(subject, classes=classes))
        _out.print(f"Layer list: {path}")
        return
    request = api.stored_request(study, storage, workspace)
    if format_ is _Format.ultralytics:
        folder = request.workspace.bundle(str(request.study))
        path = output or folder / "architecture.ultralytics.yaml"
        write_text(path, api.layer_list(request, trial=trial))
        _out.print(f"Layer list: {path}")
        return
    with LiveProgress(_out) as progress:
        delivered = api.export(request, progress, trial)
    _out.print(delivered_panel(delivered))


@app.command()
def describe(
    subject: Subject,
    classes: ClassesOption = _COCO_CLASSES,
    svg: Annotated[
        Path | None, typer.Option(help="File of the drawing.", show_default="in the workspace")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print plain data instead of the table.")
    ] = False,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """List a network's layers with shapes, parameters and MACs, and draw it."""
    from nas import api
    from nas.results.description import description_facts, description_table
    from nas.results.drawing import draw
    from nas.results.files import write_text
    from nas.space.alignment import misaligned
    from nas.space.subject import subject_name

    description = api.describe(subject, classes=classes)
    path = svg or workspace / f"{subject_name(subject)}.svg"
    write_text(path, draw(description, subject))
    if json_:
        typer.echo(json.dumps(description_facts(description), indent=1))
        return
    _out.print(description_table(description, subject))
    for warning in misaligned(description.architecture):
        _out.print(f"[yellow]warning:[/] {escape(str(warning))}", highlight=False)
    _out.print(f"Drawing: {path}")


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
        list[str] | None, typer.Option(help="FIELD=A,B of the training recipe; repeatable.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Another anchor of the space; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 3,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps.", show_default="the recipe's")
    ] = None,
    data: Data = None,
    hardware: Annotated[str, typer.Option(help="Device to measure on.")] = "cpu",
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
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Change one thing at a time around a network: train, measure and compare."""
    from nas import api
    from nas.results.ablation import ablation_table, write_ablation
    from nas.results.console import LiveProgress
    from nas.searcher.ablation import AblationRequest
    from nas.searcher.request import Workspace
    from nas.searcher.variants import Changes

    request = AblationRequest(
        subject=subject,
        changes=Changes.parse(vary or (), recipe or (), api.anchors(subject, space, against or ())),
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
    )
    with LiveProgress(_out) as progress:
        result = api.ablate(request, progress)
    _out.print(ablation_table(result))
    for path in write_ablation(result, output or request.workspace.bundle(result.study)):
        _out.print(f"Written: {path}")


@app.command()
def measure(
    subject: Annotated[
        str, typer.Argument(help="model.onnx, architecture.yaml, a layer list, or space:anchor")
    ],
    hardware: Annotated[str, typer.Option(help="Device to measure on.")] = "cpu",
    runtime: Runtime = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 or int8: what the runtime has.")
    ] = "fp32",
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Measure the latency of a network, or of any ONNX file with one image input."""
    from nas import api

    latency = api.measure(
        subject, hardware=hardware, runtime=runtime, precision=precision, workspace=workspace
    )
    _out.print(
        f"{latency.ms:.4f} ms, 95 % interval [{latency.low_ms:.4f}, {latency.high_ms:.4f}], "
        f"{latency.source}",
        highlight=False,
    )
    for name, value in latency.environment.as_dict().items():
        _out.print(f"  {name}: {value}", highlight=False)


@app.command()
def estimate(
    subject: Annotated[
        str, typer.Argument(help="model.onnx, architecture.yaml, a layer list, or space:anchor")
    ],
    hardware: Annotated[str, typer.Option(help="NVIDIA GPU or Jetson; it need not be here.")],
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Estimate a latency on a device that is not here: TensorRT, fp16, from its data sheet."""
    from nas import api
    from nas.latency.latency import ESTIMATED_LEVEL

    found = api.estimate(subject, hardware=hardware, workspace=workspace)
    _out.print(
        f"{found.ms:.3g} ms, {ESTIMATED_LEVEL:.0%} interval [{found.low_ms:.3g}, "
        f"{found.high_ms:.3g}], estimated for {hardware} (TensorRT, fp16, batch 1, engine alone)",
        highlight=False,
    )
    if found.outside:
        _err.print(
            "[yellow]warning:[/] beyond what the estimator was fitted to, so the interval is wider "
            f"by rule, not by evidence: {escape(', '.join(found.outside))}",
            highlight=False,
        )
    _out.print(
        "Nothing was measured on that device. Where it is, use: nas measure", highlight=False
    )


@app.command()
def train(
    subject: Subject,
    data: Data = None,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps.", show_default="the recipe's")
    ] = None,
    hardware: Annotated[str, typer.Option(help="Device to measure on.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, data order and augmentation.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small recipe.")] = False,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Train a network from scratch, and write its bundle."""
    from nas import api
    from nas.results.console import LiveProgress, delivered_panel

    with LiveProgress(_out) as progress:
        delivered = api.train(
            subject,
            data=data,
            iterations=iterations,
            hardware=hardware,
            seed=seed,
            quick=quick,
            workspace=workspace,
            listener=progress,
        )
    _out.print(delivered_panel(delivered))


@app.command()
def hardware(workspace: WorkspaceOption = _WORKSPACE) -> None:
    """List known devices, what is attached, and what can be measured on it here and now."""
    from nas.latency.detection import detect
    from nas.latency.measurable import measurable, unregistered
    from nas.results.hardware import hardware_table
    from nas.searcher.request import Workspace

    folder, machine = Workspace(workspace).hardware, detect()
    _out.print(hardware_table(measurable(folder, machine), unregistered(folder, machine)))


@app.command()
def spaces() -> None:
    """List the search spaces that come with the package."""
    from nas.space.space import load_space, shipped_spaces

    table = Table("name", "candidates", "choices", "description", box=None)
    for name in shipped_spaces():
        space = load_space(name)
        table.add_row(name, f"{space.size:,}", str(len(space.choices)), space.description)
    _out.print(table)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 8080,
    storage: Storage = None,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Browse the studies in optuna-dashboard, read-only, on this machine."""
    from nas.results.dashboard import serve
    from nas.searcher.request import Workspace

    _out.print(f"Open http://127.0.0.1:{port}/dashboard (read-only; Ctrl-C ends it).")
    serve(storage or Workspace(workspace).database_url, port)


def main() -> None:
    """Run a command; an error of ours is one clear message and exit code 1."""
    try:
        app()
    except NasError as error:
        _err.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False)
        if error.remedy:
            _err.print(f"[bold]remedy:[/] {escape(error.remedy)}", highlight=False)
        sys.exit(1)


@contextlib.contextmanager
def _told_how_to_resume(study: str | None, options: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        name = f" --study {study}" if study else ""
        _err.print("\nStopped; everything measured is stored. Continue with:")
        _err.print(f"  nas search --resume{name}{options}", highlight=False)
        sys.exit(_INTERRUPTED)


def _repeated(storage: str | None, workspace: Path) -> str:
    """Return the options that the next command needs too, to find the same study."""
    options = "" if workspace == _WORKSPACE else f" --workspace {workspace}"
    return options + (f" --storage {storage}" if storage else "")
