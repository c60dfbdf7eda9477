"""Plug points: a name, found among the installed entry points, becomes a class.

A distribution offers a runtime by an entry point in the group `nas.runtimes`; this project's own
are declared the same way in `pyproject.toml`, so there is one path for ours and theirs.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from nas.errors import MissingPackageError, UnknownNameError

__all__ = ["load", "names"]


def names(kind: str) -> tuple[str, ...]:
    """List the names that are installed for a kind, such as `"runtimes"`."""
    return tuple(sorted(_found(kind)))


def load(kind: str, name: str) -> Any:
    """Import what the name stands for.

    Raises:
        UnknownNameError: nothing of that kind has the name; the message lists those that do.
        MissingPackageError: it exists, and a package that it needs is not installed.
    """
    found = _found(kind)
    if name not in found:
        raise UnknownNameError.of(kind.removesuffix("s"), name, found)
    try:
        return found[name].load()
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The {kind.removesuffix('s')} {name!r} needs the package {error.name!r}.",
            f"Install it with: pip install 'nas-detector[{name}]'.",
        ) from error


def _found(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"nas.{kind}")}
