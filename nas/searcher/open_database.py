"""An open database, and the few kinds of transaction that all of its tables share.

Every one is short and begins with its write: SQLite then waits for its turn instead of failing
half-way. The schema is made and upgraded by Alembic when a database is opened, under a lock,
because neither SQLite nor PostgreSQL lets two processes create the same tables at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

import pandas as pd
from sqlalchemy import Select, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from nas.errors import StorageError
from nas.searcher.connection import (
    BUSY_TIMEOUT_S,
    create_engine,
    masked,
    parse_url,
    require_file,
    sqlite_path,
    translated,
)
from nas.searcher.migrations import upgrade
from nas.searcher.tables import Row

__all__ = ["OpenDatabase"]

_AnyRow = TypeVar("_AnyRow", bound=Row)


class OpenDatabase:
    """A database that is open and has the newest schema.

    Args:
        url: `sqlite:///studies/nas.db` (the folder is made) or `postgresql://user@host/name`.
        busy_timeout_s: how long a write waits for another process on SQLite.
        make: the database, if there is none; who only reads says no, so that a mistyped path is an
            error and not an empty database.

    Raises:
        NoDatabaseError: there is none, and none shall be made.
        StorageError: no such dialect, no server, no permission, not a database, or a schema that a
            newer version of this project wrote.
        MissingPackageError: the driver is not installed.
    """

    def __init__(
        self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S, make: bool = True
    ) -> None:
        self.url = parse_url(url)
        self.busy_timeout_s = busy_timeout_s
        if make:
            self._make_folder()
        else:
            require_file(self.url)
        self.engine = create_engine(self.url, busy_timeout_s)
        with ExitStack() as stack, translated(self.url):
            stack.callback(self.close)  # unless all goes well
            upgrade(self.engine, make=make)
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return masked(self.url)

    def close(self) -> None:
        """Close the connections; the next use would open new ones."""
        self.engine.dispose()

    def _make_folder(self) -> None:
        path = sqlite_path(self.url)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The folder of a database must exist or be made, and {path.parent} cannot: "
                f"{error.strerror}.",
                "Give a path that you may write to.",
            ) from error

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with (
            translated(self.url),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def _first(self, table: type[_AnyRow], **values: Any) -> _AnyRow | None:
        with self._session() as session:
            return session.scalars(select(table).filter_by(**values).limit(1)).first()

    def _of_study(self, table: type[_AnyRow], study: str) -> list[_AnyRow]:
        with self._session() as session:
            rows = session.scalars(select(table).filter_by(study_name=study).order_by("id"))
            return list(rows)

    def _frame(self, query: Select[Any]) -> pd.DataFrame:
        """Return what a query selects, under the names that its columns have there."""
        with self._session() as session:
            rows = [tuple(row) for row in session.execute(query)]
        return pd.DataFrame(rows, columns=[column.name for column in query.selected_columns])

    def _upsert(
        self,
        table: type[Row],
        values: Mapping[str, Any],
        *,
        keys: Sequence[str],
        replace: Mapping[str, Any] | None = None,
    ) -> int:
        """Insert a row, or replace some values of the one with its keys; return its id, if any."""
        insert = sqlite.insert if self.url.get_backend_name() == "sqlite" else postgresql.insert
        statement = insert(table).values(**values)
        changed = {name: value for name, value in (replace or {}).items() if name not in keys}
        if changed:
            statement = statement.on_conflict_do_update(index_elements=keys, set_=changed)
        else:
            statement = statement.on_conflict_do_nothing(index_elements=keys)
        with self._session() as session:
            if not changed or not hasattr(table, "id"):
                session.execute(statement)
                return 0
            return int(session.execute(statement.returning(table.id)).scalar_one())
