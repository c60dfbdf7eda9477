"""Hardware-aware architecture search for object detectors.

`import nas` loads nothing heavy; the functions load what they need when they are first looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.errors import NasError
from nas.units import Budget

if TYPE_CHECKING:
    from nas.api import (
        Found,
        ablate,
        describe,
        estimate,
        explain,
        measure,
        resume,
        retarget,
        search,
        trust,
    )
    from nas.searcher.request import Confirmation
    from nas.space.architecture import Architecture

__all__ = [
    "Architecture",
    "Budget",
    "Confirmation",
    "Found",
    "NasError",
    "ablate",
    "describe",
    "estimate",
    "explain",
    "measure",
    "resume",
    "retarget",
    "search",
    "trust",
]

_LAZY = {
    "Architecture": "nas.space.architecture",
    "Confirmation": "nas.searcher.request",
    "Found": "nas.api",
    "ablate": "nas.api",
    "describe": "nas.api",
    "estimate": "nas.api",
    "explain": "nas.api",
    "measure": "nas.api",
    "resume": "nas.api",
    "retarget": "nas.api",
    "search": "nas.api",
    "trust": "nas.api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
