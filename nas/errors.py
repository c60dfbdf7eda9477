"""Every error that this project raises on purpose.

::

    NasError
    ├── InputError               the user can mend it: a value, a file, a name (also a ValueError)
    │   ├── UnknownNameError     a name that no plug-in, space or device has
    │   ├── BudgetError          a budget that cannot be read, or that nothing meets
    │   ├── ArchitectureError    an architecture that cannot be built
    │   ├── SpaceError           a search space that cannot be read
    │   ├── DatasetError         a data set with nothing usable left
    │   └── StudyError           a study that does not fit what was asked
    ├── MissingPackageError      an optional package is not installed (also an ImportError)
    ├── StorageError             a database or disk that fails (also an OSError)
    ├── ExportError              an ONNX graph that differs from the network, or is broken
    ├── EngineError              an engine that cannot be built, or that ran something else
    ├── MeasurementError         a latency that could not be measured
    └── TrainingError            a training that produced no finite loss

Each message says the rule and the value that broke it; `remedy` says what to do. All of them can be
pickled, because worker processes send them back.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArchitectureError",
    "BudgetError",
    "DatasetError",
    "EngineError",
    "ExportError",
    "InputError",
    "MeasurementError",
    "MissingPackageError",
    "NasError",
    "SpaceError",
    "StorageError",
    "StudyError",
    "TrainingError",
    "UnknownNameError",
    "nearest",
]


class NasError(Exception):
    """The root: catch this one to catch all of them.

    Args:
        message: the rule and the value that broke it.
        remedy: what the reader can do about it; empty if there is nothing to do.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(NasError, ValueError):
    """The user can mend it."""


class UnknownNameError(InputError):
    """A name that nothing answers to."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Build the message for an unknown `kind` called `name`, listing the `known` ones."""
        known = sorted(known)
        hint = nearest(name, known)
        return cls(
            f"Unknown {kind} {name!r}.",
            (f"Did you mean {hint!r}? " if hint else "") + f"Known: {', '.join(known) or 'none'}.",
        )


class BudgetError(InputError):
    """A budget that cannot be read, or that nothing meets."""


class ArchitectureError(InputError):
    """An architecture that cannot be built."""


class SpaceError(InputError):
    """A search space that cannot be read."""


class DatasetError(InputError):
    """A data set with nothing usable left."""


class StudyError(InputError):
    """A study that does not fit what was asked."""


class MissingPackageError(NasError, ImportError):
    """An optional package is not installed."""


class StorageError(NasError, OSError):
    """A database or disk that cannot be read or written."""


class ExportError(NasError):
    """An ONNX graph that differs from the network, or cannot be made or read."""


class EngineError(NasError):
    """An engine that cannot be built or run, or that ran something else than was asked."""


class MeasurementError(NasError):
    """A latency that could not be measured."""


class TrainingError(NasError):
    """A training that produced no finite loss."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like `name`, or None if none does."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None
