"""Alembic's entry: runs the revisions on the connection that `nas.searcher.database` hands over.

The version table is our own, because Optuna keeps its revision in Alembic's default one, and only
tables called `nas_*` are looked at, because otherwise Alembic would want to drop Optuna's.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from alembic import context

from nas.searcher.tables import Row

__all__: list[str] = []


def _is_ours(name: str | None, kind: str, _parents: MutableMapping[Any, Any]) -> bool:
    return kind != "table" or (name or "").startswith("nas_")


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Row.metadata,
    version_table=context.config.attributes["version_table"],
    include_name=_is_ours,
    render_as_batch=True,  # SQLite cannot alter a column in place
)
with context.begin_transaction():
    context.run_migrations()
