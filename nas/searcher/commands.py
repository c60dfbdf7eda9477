"""Command lines that are printed, so that each can be pasted as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.searcher.connection import NoDatabaseError, masked, parse_url
from nas.searcher.request import DEFAULT_WORKSPACE, Request

__all__ = ["command_line", "command_on", "first_search", "reading"]


def command_line(
    command: str,
    *words: str,
    study: str | None = None,
    storage: str | None = None,
    workspace: Path = DEFAULT_WORKSPACE,
) -> str:
    """Return a command of ours, quoted for a shell, with what it needs to find the same studies.

    A password never reaches a screen or a log: stars stand in its place, for the user to replace.

    Args:
        command: its name, such as `trust`.
        words: its own arguments and options; one in capitals, such as `N`, is the user's to fill.
        study: that it is about, if it is about one.
        storage: URL of the database, as the user gave it; None is the workspace's own.
        workspace: as the user gave it.

    Raises:
        StorageError: the URL is none.
    """
    found = ["nas", command, *words]
    if study is not None:
        found += ["--study", study]
    if workspace != DEFAULT_WORKSPACE:
        found += ["--workspace", str(workspace)]
    if storage is not None:
        found += ["--storage", masked(parse_url(storage))]
    return shlex.join(found)


def command_on(request: Request, command: str, *words: str, study: str | None = None) -> str:
    """Return a command about the study of a request, or about another one beside it."""
    return command_line(
        command,
        *words,
        study=study or request.study,
        storage=request.storage,
        workspace=request.workspace.root,
    )


def first_search(storage: str | None, workspace: Path) -> str:
    """Return a command that begins a study where there is none."""
    return command_line("search", "--budget", "0.4ms", storage=storage, workspace=workspace)


@contextmanager
def reading(study: str | None, storage: str | None, workspace: Path) -> Iterator[None]:
    """Let the error of a database that is not there say how to begin a study in that place.

    Raises:
        NoDatabaseError: there is none.
    """
    try:
        yield
    except NoDatabaseError as error:
        raise NoDatabaseError(error.where, study, first_search(storage, workspace)) from error
