"""What a search says while it runs; a console, a notebook or a test listens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Listener", "Member", "Silent", "Status"]


@dataclass(frozen=True)
class Member:
    """One candidate of the front so far: what it is called, mAP50-95 in 0..1, latency in ms."""

    trial: int
    map50_95: float
    latency_ms: float


@dataclass(frozen=True)
class Status:
    """Where the search stands.

    Attributes:
        evaluated: candidates with an accuracy, in the whole study.
        wanted: how many there shall be.
        asked: candidates that the sampler proposed in this run.
        over_budget: of those, how many broke the budget (they cost no accuracy evaluation).
        repeated: of those, how many were known already.
        per_hour: candidates asked per hour of this run.
        best: the best candidate under the budget, by score.
        front: the non-dominated candidates under the budget, by ascending latency.
    """

    evaluated: int
    wanted: int
    asked: int
    over_budget: int
    repeated: int
    per_hour: float
    best: Member | None
    front: Sequence[Member]


class Listener(Protocol):
    """Called by the search from its own thread, in the order in which things happen."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins; it counts `total` steps (0 if it is not counted)."""

    def advance(self, done: int, note: str = "") -> None:
        """The stage has done `done` of its steps; `note` says how it goes in a few words."""

    def say(self, text: str, *, warning: bool = False) -> None:
        """Something that the user should read."""

    def status(self, status: Status) -> None:
        """A candidate was evaluated."""


class Silent:
    """Listens to nothing."""

    def stage(self, name: str, total: int) -> None:
        """Ignore it."""

    def advance(self, done: int, note: str = "") -> None:
        """Ignore it."""

    def say(self, text: str, *, warning: bool = False) -> None:
        """Ignore it."""

    def status(self, status: Status) -> None:
        """Ignore it."""
