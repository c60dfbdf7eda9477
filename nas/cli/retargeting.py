"""What `nas search` and `nas front` need to re-target a study, and to show what it changed."""

from __future__ import annotations

from pathlib import Path

import typer

from nas.cli.options import out

__all__ = ["named_parent", "print_difference", "refuse_beside_resume", "stated"]

_FIELDS = {
    "lambda_": "beta",
    "no_trust": "trust",
    **dict.fromkeys(("max_params", "max_macs", "max_size", "max_memory"), "bounds"),
}

_OF_RESUME = {"resume", "study", "budget", "evaluations", "storage", "workspace", "beta", "trust"}


def stated(ctx: typer.Context) -> set[str]:
    """Return the arguments of `nas.api.search` that the user gave: what they left out is stored."""
    given = [
        name
        for name in ctx.params
        if (source := ctx.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    return {_FIELDS.get(name, name) for name in given}


def named_parent(study: str | None) -> str:
    """Return the study to re-target, which must be named."""
    if study is None:
        raise typer.BadParameter("say which study is re-targeted", param_hint="--study")
    return study


def refuse_beside_resume(ctx: typer.Context) -> None:
    """Refuse what --resume would leave out of account: another target is another study."""
    if others := sorted(stated(ctx) - _OF_RESUME):
        raise typer.BadParameter(
            f"it continues a study as it is; leave it out to re-target one ({', '.join(others)})",
            param_hint="--resume",
        )


def print_difference(study: str, against: str, storage: str | None, workspace: Path) -> None:
    """Print how the front of a study differs from another, and draw both as HTML."""
    from nas import api
    from nas.results.figures import write_figure
    from nas.results.fronts import difference_figure, difference_lines, difference_table
    from nas.searcher.request import Workspace

    difference = api.compare(study, against, storage=storage, workspace=workspace)
    out.print(difference_table(difference))
    for line in difference_lines(difference):
        out.print(line, highlight=False)
    path = Workspace(workspace).bundle(study) / f"front-against-{against}.html"
    write_figure(difference_figure(difference), path)
    out.print(f"Figure: {path}")
