"""The history of our tables: `upgrade` brings a database to the newest revision.

A change of `nas.searcher.tables` is a new file in `versions`. Alembic is configured here, in code;
its version table is our own, because Optuna keeps its revision in Alembic's default one.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from nas.errors import StorageError
from nas.searcher.connection import NoDatabaseError, exclusive, masked

__all__ = ["SCHEMA_LOCK", "VERSION_TABLE", "upgrade"]

SCHEMA_LOCK = "schema"
"""Held while tables are made, ours or Optuna's: neither SQLite nor PostgreSQL lets two processes
create the same table at once."""

VERSION_TABLE = "nas_alembic_version"


def upgrade(engine: Engine, *, make: bool = True) -> None:
    """Make or upgrade our tables; writes nothing, not even a lock, if they are the newest.

    Args:
        engine: of the database.
        make: the tables where there are none; without, only those that are there are upgraded.

    Raises:
        NoDatabaseError: there are none, and none shall be made.
        StorageError: a newer version of this project wrote the schema.
    """
    with engine.connect() as connection:
        found = _revisions(connection)
        if found == set(_script(connection).get_heads()):
            return
    if not (found or make):
        raise NoDatabaseError(masked(engine.url))
    with exclusive(engine, SCHEMA_LOCK), engine.begin() as connection:
        command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "nas.searcher:migrations")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    return config


def _script(connection: Connection) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(connection))


def _revisions(connection: Connection) -> set[str]:
    """Return the revisions that a database has: one, or none before its tables are made."""
    script = _script(connection)
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = set(context.get_current_heads())
    unknown = found - {revision.revision for revision in script.walk_revisions()}
    if unknown:
        raise StorageError(
            f"The schema of {connection.engine.url} must be at most revision "
            f"{script.get_current_head()}, and is {', '.join(sorted(unknown))}.",
            "A newer version of nas-detector wrote it: upgrade with pip install -U nas-detector.",
        )
    return found
