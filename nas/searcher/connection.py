"""How a database is reached: URLs, engines, locks, and what its errors mean.

SQLite runs in WAL mode with `synchronous=NORMAL`: five times the trials per second of the default
journal, and a crash of the machine can lose the last transactions but never corrupts the file.
PostgreSQL is reached through psycopg 3. Other dialects are refused, because nothing here was ever
run on them.

Two kinds of lock keep processes apart. On SQLite they are POSIX record locks on a file beside the
database: unlike `flock` they are not inherited by forked workers, so a worker that outlives its
killed parent does not hold the study. On PostgreSQL they are session-level advisory locks. Both
vanish with the process that held them.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, TextIO

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from nas.errors import MissingPackageError, StorageError

__all__ = [
    "BUSY_TIMEOUT_S",
    "LockedError",
    "NoDatabaseError",
    "create_engine",
    "engine_options",
    "exclusive",
    "masked",
    "parse_url",
    "require_file",
    "set_pragmas",
    "sqlite_path",
    "sqlite_url",
    "translated",
]

BUSY_TIMEOUT_S = 60.0
"""How long a writer waits for another one; SQLite's own 5 s were measured to be too short."""

_DIALECTS = ("sqlite", "postgresql")
_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite"}
_POLL_S = 0.05

# What a driver says -> the rule that was broken, and what to do about it. The first match counts.
_MEANINGS = (
    (
        ("readonly database", "read-only transaction", "permission denied"),
        "The database must be writable, and {url} is read-only.",
        "Change its permissions, or copy it to a folder that you may write to.",
    ),
    (
        ("database is locked", "database table is locked", "lock timeout"),
        "The database must be free to write to, and another process keeps {url} locked.",
        "Find and end that process, then run the same command again.",
    ),
    (
        ("disk is full", "no space left", "disk full"),
        "The disk must have room for the database, and there is none left for {url}.",
        "Free some space, then run the same command again: nothing that was told is lost.",
    ),
    (
        ("file is not a database", "malformed"),
        "The file must be an SQLite database, and {url} is none, or is damaged.",
        "Give another path, or restore the file from a copy.",
    ),
    (
        ("unable to open database file",),
        "The file must be one that can be opened, and {url} cannot.",
        "Check that the path is a file, not a folder, and that you may read and write it.",
    ),
    (
        ("password authentication failed", "no password supplied"),
        "The server must accept the user and password, and refused those of {url}.",
        "Check the user name and the password in the URL.",
    ),
    (
        (
            "connection refused",
            "could not connect",
            "connection failed",
            "failed to resolve",
            "could not translate host name",
            "server closed the connection",
            "connection timeout",
        ),
        "The database server must be reachable, and {url} is not.",
        "Check that it runs, and the host and the port in the URL.",
    ),
)


class LockedError(StorageError):
    """Somebody else holds a lock; `holder` says who, as far as it can be known."""

    def __init__(self, message: str, remedy: str = "", holder: str = "another process") -> None:
        super().__init__(message, remedy)
        self.holder = holder


class NoDatabaseError(StorageError):
    """What was to be read is not there; nothing was made in its place.

    Args:
        where: it was looked for.
        study: that was to be read, if one was named.
        start: the command that makes it; with the place, where the caller knows of it.
    """

    def __init__(self, where: object, study: str | None = None, start: str = "nas search") -> None:
        named = "no study" if study is None else f"no study {study!r}"
        super().__init__(
            f"There is {named} to read: there is no database at {where}.",
            f"Correct the place, or start a study there with: {start}",
        )
        self.where = where


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return f"sqlite:///{path}"


def parse_url(text: str) -> URL:
    """Read a database URL and fix the driver.

    Raises:
        StorageError: not a URL, a dialect that was never tested, or a database in memory.
    """
    try:
        url = sqlalchemy.make_url(text)
    except ArgumentError as error:
        raise StorageError(
            f"A database is given by a URL, got {_without_password(text)!r}.",
            "Write sqlite:///studies/nas.db or postgresql://user@host/name.",
        ) from error
    dialect = url.get_backend_name()
    if dialect not in _DIALECTS:
        raise StorageError(
            f"A database must be one of {', '.join(_DIALECTS)}, got {dialect!r}.",
            "Write sqlite:///studies/nas.db or postgresql://user@host/name.",
        )
    if dialect == "sqlite" and (not url.database or ":memory:" in url.database):
        raise StorageError(
            f"A study must outlive its process, and {text!r} lives in memory.",
            "Give a file: sqlite:///studies/nas.db.",
        )
    return url.set(drivername=_DRIVERS[dialect]) if "+" not in url.drivername else url


def masked(url: URL) -> str:
    """The URL as it may be shown: with stars for the password."""
    return url.render_as_string(hide_password=True)


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite URL; None for a server."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database.removeprefix("file:"))


def require_file(url: URL) -> None:
    """Refuse to read an SQLite file that does not exist: connecting would make it.

    Raises:
        NoDatabaseError: it does not.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise NoDatabaseError(path)


def engine_options(url: URL, busy_timeout_s: float = BUSY_TIMEOUT_S) -> dict[str, Any]:
    """Arguments of `sqlalchemy.create_engine` for a URL."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": busy_timeout_s}}
    # A server that was restarted between two trials must not end the search.
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}


def set_pragmas(engine: Engine, *pragmas: str) -> None:
    """Make every new SQLite connection of the engine run these pragmas (`"journal_mode=WAL"`)."""

    def run(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine, "connect", run)


def create_engine(url: URL, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Engine:
    """Make an engine; it connects when it is first used.

    Raises:
        MissingPackageError: the driver of the dialect is not installed.
        StorageError: the URL names a driver that does not exist.
    """
    try:
        engine = sqlalchemy.create_engine(url, **engine_options(url, busy_timeout_s))
    except NoSuchModuleError as error:
        raise StorageError(
            f"A driver must be one that SQLAlchemy knows, got {url.drivername!r}.",
            "Leave the driver out: postgresql://user@host/name.",
        ) from error
    except ImportError as error:
        raise MissingPackageError(
            f"The database {masked(url)} needs the package {error.name!r}.",
            "Install it with: pip install 'nas-detector[postgresql]'.",
        ) from error
    if url.get_backend_name() == "sqlite":
        set_pragmas(engine, "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON")
    return engine


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn what a driver raises inside the block into a `StorageError` that a person can act on."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _storage_error(url, error) from error


@contextmanager
def exclusive(engine: Engine, name: str, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold a named lock on a database while the block runs.

    Args:
        engine: an engine of the database.
        name: what is locked; different names do not disturb each other.
        timeout_s: how long to wait for the holder; None waits for ever, 0 does not wait.

    Raises:
        LockedError: another process, or another block of this one, still holds it.
        StorageError: the lock's file cannot be made, or the server is gone.
    """
    path = sqlite_path(engine.url)
    lock: _Lock = _ServerLock(engine, name) if path is None else _FileLock(path, name)
    attempts = itertools.count() if timeout_s is None else range(int(timeout_s / _POLL_S) + 1)
    holder = ""
    for attempt in attempts:
        time.sleep(_POLL_S if attempt else 0)
        holder = lock.take()
        if not holder:
            break
    if holder:
        raise LockedError(
            f"Only one process may hold {name!r} at a time, and {holder} holds it.",
            "Wait until it ends, or end it.",
            holder,
        )
    try:
        yield
    finally:
        lock.release()


class _Lock(Protocol):
    def take(self) -> str:
        """Try once; return the holder's name, or nothing if the lock is ours now."""

    def release(self) -> None: ...


class _FileLock:
    """A POSIX record lock on a file beside the database, which holds its holder's name."""

    # These locks belong to a process, so a second block of the same process would get them too.
    _ours: ClassVar[set[Path]] = set()

    def __init__(self, database: Path, name: str) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        self._path = database.absolute().with_name(f"{database.name}-{digest}.lock")
        self._file: TextIO | None = None

    def take(self) -> str:
        if self._path in self._ours:
            return _own_name()
        try:
            file = self._path.open("a+")
        except OSError as error:
            raise StorageError(
                f"A lock must be made beside the database, and {self._path} cannot: "
                f"{error.strerror}.",
                "Move the database to a folder that you may write to.",
            ) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read()
            file.close()
            return holder or "another process"
        if not self._is_current(file):  # its last holder removed it after we had opened it
            file.close()
            return self.take()
        file.truncate(0)
        file.write(_own_name())
        file.flush()
        self._file = file
        self._ours.add(self._path)
        return ""

    def release(self) -> None:
        assert self._file is not None
        self._path.unlink(missing_ok=True)
        self._file.close()
        self._ours.discard(self._path)

    def _is_current(self, file: TextIO) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False


class _ServerLock:
    """A session-level advisory lock of PostgreSQL, on a connection of its own."""

    _HOLDER = text(
        "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) "
        "WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND ((classid::bigint << 32) | objid::bigint) = :key"
    )

    def __init__(self, engine: Engine, name: str) -> None:
        digest = hashlib.sha256(f"nas:{name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._engine = engine
        self._connection: Connection | None = None

    def take(self) -> str:
        # Autocommit: an open transaction of hours would keep the server from vacuuming.
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # The session must end with the lock, so it may not go back to the pool.
        connection.detach()
        key = {"key": self._key}
        connection.execute(
            text("SELECT set_config('application_name', :name, false)"), {"name": _own_name()}
        )
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one():
            self._connection = connection
            return ""
        holder = connection.execute(self._HOLDER, key).scalar()
        connection.close()
        return str(holder or "another process")

    def release(self) -> None:
        assert self._connection is not None
        # Closing alone would free the lock only when the server notices.
        with self._connection as connection, suppress(SQLAlchemyError):
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"[:63]  # PostgreSQL's longest name


def _storage_error(url: URL, error: BaseException) -> StorageError:
    """Find the meaning of a driver's error; Optuna keeps it as the cause of its own."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    said = str(getattr(cause, "orig", None) or cause).strip()
    for fragments, rule, remedy in _MEANINGS:
        if any(fragment in said.lower() for fragment in fragments):
            return StorageError(rule.format(url=masked(url)), remedy)
    return StorageError(
        f"The database {masked(url)} must take what is written to it, and says: "
        f"{said.splitlines()[0] if said else type(cause).__name__}.",
    )


def _without_password(text: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", text)
