"""What a search cost in seconds, kept in the database so that a continued search adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nas.latency.clock import Elapsed
from nas.searcher.database import Database

__all__ = ["charged", "search_seconds"]

_KIND = "cost"


@contextmanager
def charged(database: Database, study: str) -> Iterator[None]:
    """Add the wall seconds of the block to what a study has cost, however the block ends."""
    elapsed = Elapsed()
    try:
        yield
    finally:
        seconds = (search_seconds(database, study) or 0.0) + elapsed.wall_s
        database.add_report(study, _KIND, {"search_s": seconds})


def search_seconds(database: Database, study: str) -> float | None:
    """Return the wall seconds that a study has cost, its supernet not counted; None is unknown."""
    report = database.find_report(study, _KIND)
    return None if report is None else float(report["search_s"])
