"""The command line: parse, call, print. What a command does lives in `nas.api`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
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
_INTERRUPTED = 130  # what a shell expects after Ctrl-C

Storage = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL of the database.", show_default="SQLite")
]
WorkspaceOption = Annotated[
    Path, typer.Option(help="Folder for studies, caches and winners.", file_okay=False)
]
StudyName = Annotated[str | None, typer.Option(help="Name of the study.", show_default="latest")]


@app.command()
def search(
    hardware: Annotated[str, typer.Option(help="Device that the budget holds on.")] = "cpu",
    budget: Annotated[
        str | None, typer.Option(help="Hard upper bound on latency, such as 10ms.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="COCO JSON or YOLO folder.", show_default="the embedded digits"),
    ] = None,
    space: Annotated[str, typer.Option(help="Name or YAML file of the search space.")] = "digits",
    runtime: Annotated[
        str | None, typer.Option(help="Runtime of the engines.", show_default="the hardware's")
    ] = None,
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
    study: StudyName = None,
    trial: Annotated[
        int | None, typer.Option(help="Trial to deliver.", show_default="the winner")
    ] = None,
    storage: Storage = None,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Fine-tune, build, measure and write the winner of a stored study, or one of its trials."""
    from nas import api
    from nas.results.console import LiveProgress, delivered_panel

    request = api.stored_request(study, storage, workspace)
    with LiveProgress(_out) as progress:
        delivered = api.export(request, progress, trial)
    _out.print(delivered_panel(delivered))


@app.command()
def measure(
    path: Annotated[Path, typer.Argument(help="architecture.yaml or model.onnx")],
    hardware: Annotated[str, typer.Option(help="Device to measure on.")] = "cpu",
    runtime: Annotated[
        str | None, typer.Option(help="Runtime of the engine.", show_default="the hardware's")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 on OpenVINO.")] = "fp32",
) -> None:
    """Measure the latency of an architecture or of any ONNX file with one image input."""
    from nas import api

    latency = api.measure(path, hardware=hardware, runtime=runtime, precision=precision)
    _out.print(
        f"{latency.ms:.4f} ms, 95 % interval [{latency.low_ms:.4f}, {latency.high_ms:.4f}], "
        f"{latency.source}",
        highlight=False,
    )
    for name, value in latency.environment.as_dict().items():
        _out.print(f"  {name}: {value}", highlight=False)


@app.command()
def train(
    path: Annotated[Path, typer.Argument(help="architecture.yaml")],
    data: Annotated[
        str | None,
        typer.Option(help="COCO JSON or YOLO folder.", show_default="the embedded digits"),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Training steps.", show_default="the recipe's")
    ] = None,
    hardware: Annotated[str, typer.Option(help="Device to measure on.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, data order and augmentation.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small recipe.")] = False,
    workspace: WorkspaceOption = _WORKSPACE,
) -> None:
    """Train an architecture from scratch, and write its bundle."""
    from nas import api
    from nas.results.console import LiveProgress, delivered_panel

    with LiveProgress(_out) as progress:
        delivered = api.train(
            path,
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
