"""What several commands share: the options that they have in common, and where they print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = [
    "AUTO",
    "WORKSPACE",
    "ClassesOption",
    "Data",
    "DryRun",
    "HardwareOption",
    "Network",
    "RecipeFile",
    "Runtime",
    "Storage",
    "StudyName",
    "Subject",
    "WorkspaceOption",
    "app",
    "err",
    "multiplier",
    "out",
    "print_pasteable",
    "told_how_to_go_on",
]

app = typer.Typer(
    help="Find the most accurate object detector that keeps a latency budget on your device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130  # what a shell expects after Ctrl-C
_PLAIN_WIDTH = 160  # of a log file, where nothing tells how wide it will be read
out = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
err = Console(stderr=True)

WORKSPACE = Path("studies")
AUTO = "auto"
"""The lambda that is left to the front."""

Storage = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL of the database.", show_default="SQLite")
]
WorkspaceOption = Annotated[
    Path, typer.Option(help="Folder for studies, caches and winners.", file_okay=False)
]
HardwareOption = Annotated[str, typer.Option(help="Device to measure on.")]
Network = Annotated[
    str, typer.Argument(help="model.onnx, architecture.yaml, a layer list, or space:anchor")
]
StudyName = Annotated[str | None, typer.Option(help="Name of the study.", show_default="latest")]
Subject = Annotated[
    str, typer.Argument(help="architecture.yaml, a YOLO user's layer list, or space:anchor")
]
ClassesOption = Annotated[int, typer.Option(help="Classes of an anchor; a file says its own.")]
Data = Annotated[
    str | None, typer.Option(help="COCO JSON or YOLO folder.", show_default="the embedded digits")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be done, and time, memory and disk of it."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="YAML file of the training's fields.", show_default="usual"),
]
Runtime = Annotated[
    str | None, typer.Option(help="Runtime of the engines.", show_default="the hardware's")
]


def print_pasteable(text: str, console: Console = out) -> None:
    """Print lines that hold a command or a path, and break none of them where it would not fit."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def told_how_to_go_on(command: str) -> Iterator[None]:
    """End a command that was stopped with what continues it, in place of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("\nStopped; everything measured is stored. Continue with:")
        print_pasteable(f"  {command}", err)
        sys.exit(_INTERRUPTED)


def multiplier(text: str) -> float:
    """Read lambda. Auto orders by mAP: the rate is a property of the front that comes out."""
    if text == AUTO:
        return 0.0
    try:
        return float(text)
    except ValueError as error:
        message = f"a number or {AUTO}, got {text!r}"
        raise typer.BadParameter(message, param_hint="--lambda") from error
