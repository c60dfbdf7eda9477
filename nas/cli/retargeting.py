"""What `nas search` and `nas front` need to re-target a study, and to show what it changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nas.cli.options import out, print_pasteable

if TYPE_CHECKING:
    from nas.searcher.request import Request

__all__ = [
    "named_parent",
    "print_difference",
    "refuse_another_search",
    "refuse_another_target",
    "stated",
]

_FIELDS = {
    "lambda_": "beta",
    "no_trust": "trust",
    **dict.fromkeys(("confirm", "confirm_seeds", "baselines", "against", "jobs"), "confirmation"),
    **dict.fromkeys(("max_params", "max_macs", "max_size", "max_memory"), "bounds"),
}


_MAY_CHANGE = {"hardware", "runtime", "precision", "evaluations", "trust", "confirmation"}
"""Of what `nas search` is asked for: what --resume takes, or what is compared as the target."""


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


def refuse_another_target(ctx: typer.Context, stored: Request) -> None:
    """Refuse a target beside --resume that is not the study's: that would be another study."""
    theirs = {
        "hardware": stored.hardware,
        "runtime": stored.runtime,
        "precision": ",".join(stored.precisions or ()) or None,
    }
    for name, value in theirs.items():
        if name in stated(ctx) and ctx.params[name] != value:
            raise typer.BadParameter(
                f"{ctx.params[name]} is not the target of {stored.study!r}; without --resume, "
                "--study is re-targeted",
                param_hint=f"--{name}",
            )


def refuse_another_search(ctx: typer.Context, stored: Request, asked: Mapping[str, Any]) -> None:
    """Refuse options beside --resume that would be left unheard: a study goes on as it was asked.

    Args:
        ctx: of the command.
        stored: what the study was asked for.
        asked: arguments of `nas.api.search`, from the command line.
    """
    from nas import api

    given = {name: value for name, value in asked.items() if name in stated(ctx) - _MAY_CHANGE}
    weights = {"alpha": stored.score.alpha, "beta": stored.score.beta}
    wanted = api.search_request(stored.budget, **{**weights, **given})
    for name in given:
        field = {"recipe": "recipe_values", "alpha": "score", "beta": "score"}.get(name, name)
        if getattr(wanted, field) != getattr(stored, field):
            option = {"beta": "lambda", "bounds": "max-..."}.get(name, name)
            raise typer.BadParameter(
                f"the study {stored.study!r} was asked for with another, and --resume goes on as "
                "it was; leave the option out, or search under another name",
                param_hint=f"--{option}",
            )


def print_difference(study: str, against: str, storage: str | None, workspace: Path) -> None:
    """Print how the front of a study differs from another, and draw both as HTML."""
    from nas import api
    from nas.results.figures import write_figure
    from nas.results.fronts import difference_figure, difference_lines, difference_table
    from nas.searcher.commands import command_line
    from nas.searcher.request import Workspace

    difference = api.compare(study, against, storage=storage, workspace=workspace)
    out.print(difference_table(difference))
    for line in difference_lines(difference):
        out.print(line, highlight=False)
    if difference.new.unsure:
        measure = command_line("measure", study=study, storage=storage, workspace=workspace)
        print_pasteable(f"Where the device is: {measure}")
    path = Workspace(workspace).bundle(study) / f"front-against-{against}.html"
    write_figure(difference_figure(difference), path)
    out.print(f"Figure: {path}")
