"""Real databases: SQLite files, and a fresh database on the PostgreSQL server, if there is one."""

from __future__ import annotations

import os
import uuid

import pytest
import sqlalchemy

from nas.searcher.connection import parse_url
from nas.searcher.database import Database


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path}/nas.db"


@pytest.fixture
def postgresql():
    server = os.environ.get("NAS_TEST_POSTGRESQL")
    if not server:
        pytest.skip("NAS_TEST_POSTGRESQL names no server")
    url, name = parse_url(server), f"nas_test_{uuid.uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    yield url.set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request):
    """The URL of an empty database, of every kind that there is."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def database(url):
    with Database(url, busy_timeout_s=5) as database:
        yield database
