"""The command line: parse, call, print. What a command does lives in `nas.api`."""

from __future__ import annotations

import os
import sys

# Before any library starts its threads: two threads spin against each other as soon as anything
# else runs on the machine, and one thread is what the clock can time exactly.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.markup import escape

from nas.cli.options import app, err
from nas.errors import NasError

# isort: split
# In the order in which the help lists their commands.
from nas.cli import searching

# isort: split
from nas.cli import studies

# isort: split
from nas.cli import ablating

# isort: split
from nas.cli import networks

# isort: split
from nas.cli import devices

__all__ = ["ablating", "app", "devices", "main", "networks", "searching", "studies"]


def main() -> None:
    """Run a command; an error of ours is one clear message and exit code 1."""
    try:
        _run()
    except NasError as error:
        err.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False)
        if error.remedy:
            remedy = f"[bold]remedy:[/] {escape(error.remedy)}"
            err.print(remedy, highlight=False, soft_wrap=True)  # it may hold a command to paste
        sys.exit(1)


def _run() -> None:
    """Run a command, or help the process that does, if torchrun has started several."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        app()
        return
    from nas.searcher import team

    with team.joined() as processes:
        if processes.first:
            app()
        else:
            team.help_out()
