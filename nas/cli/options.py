"""What several commands share: the options that they have in common, and where they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = [
    "WORKSPACE",
    "ClassesOption",
    "Data",
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
    "out",
    "repeated",
]

app = typer.Typer(
    help="Find the most accurate object detector that keeps a latency budget on your device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PLAIN_WIDTH = 160  # of a log file, where nothing tells how wide it will be read
out = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
err = Console(stderr=True)

WORKSPACE = Path("studies")

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
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="YAML file of the training's fields.", show_default="usual"),
]
Runtime = Annotated[
    str | None, typer.Option(help="Runtime of the engines.", show_default="the hardware's")
]


def repeated(storage: str | None, workspace: Path) -> str:
    """Return the options that the next command needs too, to find the same study."""
    options = "" if workspace == WORKSPACE else f" --workspace {workspace}"
    return options + (f" --storage {storage}" if storage else "")
