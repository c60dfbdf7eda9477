from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import optuna
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from stored import ACCURACY, add_architecture

from nas.errors import MissingPackageError, StorageError
from nas.searcher.connection import NoDatabaseError, parse_url, sqlite_path, sqlite_url
from nas.searcher.database import Database
from nas.searcher.migrations import VERSION_TABLE, _config
from nas.searcher.tables import Row

OPTUNA_TABLES = {"studies", "trials", "alembic_version", "version_info"}


def tables(url):
    engine = sqlalchemy.create_engine(parse_url(url))
    names = set(sqlalchemy.inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_database__an_empty_one_gets_the_schema(url):
    Database(url).close()
    assert tables(url) == set(Row.metadata.tables) | {VERSION_TABLE}


def test_database__migrations_make_what_the_models_say(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, Row.metadata) == []


def test_database__the_first_schema_is_upgraded_and_keeps_its_rows(url):
    old = sqlalchemy.create_engine(parse_url(url))
    with old.begin() as connection:
        command.upgrade(_config(connection), "0001")
        values = {
            "digest": "a" * 16,
            "space": "s",
            "text": "stem: 16",
            "created": datetime.now(UTC),
        }
        connection.execute(Row.metadata.tables["nas_architectures"].insert().values(**values))
    assert "nas_ablations" not in tables(url)
    with Database(url) as database:
        assert database.find_architecture("a" * 16).text == "stem: 16"
        assert database.ablations("s").empty
        with database.engine.begin() as connection:
            command.downgrade(_config(connection), "0001")
    assert "nas_ablations" not in tables(url)
    assert "nas_architectures" in tables(url)
    old.dispose()


def test_database__accuracies_without_agreement_are_upgraded_and_stay_referenced(url):
    old = sqlalchemy.create_engine(parse_url(url))
    name = "nas_accuracies"
    with old.begin() as connection:
        command.upgrade(_config(connection), "0002")
        metadata = sqlalchemy.MetaData()
        metadata.reflect(connection)
        now = {"created": datetime.now(UTC)}
        digest = {"architecture": "a" * 16, "precision": "int8"}
        values = vars(ACCURACY) | digest | now | {"data": "d", "weights_digest": "", "id": 7}
        del values["agreement"]
        trial = {"study_name": "s", "trial_number": 0, "state": "complete", "accuracy_id": 7}
        for table, row in (
            ("nas_architectures", {"digest": "a" * 16, "space": "s", "text": "t"} | now),
            (name, values),
            ("nas_evaluations", trial | digest | now),
        ):
            connection.execute(metadata.tables[table].insert().values(**row))
    with Database(url) as database:
        names = {"data": "d", "split": "validation", "weights": "inherited", "artifact": "engine"}
        found = database.find_accuracy("a" * 16, "int8", **names)
        assert found == (7, replace(ACCURACY, agreement=None))
        assert database.add_accuracy("a" * 16, "int8", ACCURACY, data="d") == 7
        (row,) = database.evaluations("s").to_dict("records")
        assert (row["agreement"], row["compared_images"]) == (0.95, 16)
        assert row["compared_with"] == "onnxruntime fp32"
        with database.engine.begin() as connection:
            command.downgrade(_config(connection), "0002")
    with old.begin() as connection:
        query = "SELECT map50_95 FROM nas_accuracies JOIN nas_evaluations ON accuracy_id = 7"
        assert connection.execute(sqlalchemy.text(query)).all() == [(0.31,)]
        columns = {one["name"] for one in sqlalchemy.inspect(connection).get_columns(name)}
    assert not columns & {"agreement", "compared_images", "compared_with"}
    old.dispose()


def test_database__moves_in_with_optuna_and_leaves_it_alone(url):
    storage = optuna.storages.RDBStorage(str(parse_url(url)))
    study = optuna.create_study(storage=storage, study_name="old")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    version = storage.get_current_version()
    before = tables(url)
    Database(url).close()
    assert tables(url) == before | set(Row.metadata.tables) | {VERSION_TABLE}
    assert before >= OPTUNA_TABLES
    again = optuna.storages.RDBStorage(str(parse_url(url)))
    assert again.get_current_version() == version == again.get_head_version()
    assert len(optuna.load_study(study_name="old", storage=again).trials) == 2
    for each in (storage, again):
        each.remove_session()
        each.engine.dispose()


def test_database__optuna_upgrade_leaves_ours_alone(database, url):
    add_architecture(database)
    storage = optuna.storages.RDBStorage(str(parse_url(url)))
    storage.upgrade()
    storage.remove_session()
    storage.engine.dispose()
    with Database(url) as again:
        assert again.find_architecture("a" * 16).text == "stem: 16"


def test_database__opening_again_changes_nothing(database, url):
    add_architecture(database)
    with Database(url) as again:
        assert again.find_architecture("a" * 16).macs == 8_000_000_000


def test_database__a_newer_schema_is_refused(database, url):
    with database.engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StorageError, match="9999") as error:
        Database(url)
    assert "pip install -U" in error.value.remedy


def test_database__four_processes_may_open_an_empty_one_at_once(url):
    code = (
        "import os\nfrom nas.searcher.database import Database\n"
        "from nas.searcher.opening import open_storage\n"
        "me = os.getpid()\n"
        "children = [os.fork() for _ in range(3) if os.getpid() == me]\n"
        f"with Database({url!r}) as database, open_storage(database): pass\n"
        "if os.getpid() == me:\n    assert all(os.waitpid(child, 0)[1] == 0 for child in children)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(Row.metadata.tables) | OPTUNA_TABLES <= tables(url)


def test_database__sqlite_is_set_up_for_one_writer_and_many_readers(sqlite):
    with Database(sqlite, busy_timeout_s=7) as database, database.engine.connect() as connection:
        pragma = {
            name: connection.execute(sqlalchemy.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    assert pragma == {
        "journal_mode": "wal",
        "synchronous": 1,
        "busy_timeout": 7000,
        "foreign_keys": 1,
    }


def test_database__makes_the_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "nas.db"
    Database(sqlite_url(path)).close()
    assert path.exists()
    assert not list(path.parent.glob("*.lock"))


def test_database__that_is_read_is_not_made(tmp_path):
    path = tmp_path / "typo" / "nas.db"
    with pytest.raises(NoDatabaseError, match=f"no database at {path}") as error:
        Database(sqlite_url(path), make=False)
    assert "nas search" in error.value.remedy
    assert not list(tmp_path.iterdir())


def test_database__of_others_gets_no_tables_when_it_is_read(url):
    storage = optuna.storages.RDBStorage(str(parse_url(url)))
    optuna.create_study(storage=storage, study_name="theirs")
    before = tables(url)
    with pytest.raises(NoDatabaseError):
        Database(url, make=False)
    assert tables(url) == before
    storage.remove_session()
    storage.engine.dispose()


def test_database__an_old_one_that_is_read_is_upgraded(url):
    old = sqlalchemy.create_engine(parse_url(url))
    with old.begin() as connection:
        command.upgrade(_config(connection), "0001")
    old.dispose()
    with Database(url, make=False) as database:
        assert database.ablations("s").empty


@pytest.mark.parametrize(
    ("url", "error", "match"),
    [
        ("no url", StorageError, "given by a URL"),
        ("mysql://u@h/db", StorageError, "sqlite, postgresql"),
        ("sqlite://", StorageError, "in memory"),
        ("sqlite:///:memory:", StorageError, "in memory"),
        ("postgresql+psycopg2://u@h/db", MissingPackageError, "psycopg2"),
        ("postgresql+nothing://u@h/db", StorageError, r"postgresql\+nothing"),
        ("postgresql://u@127.0.0.1:1/db", StorageError, "reachable"),
    ],
)
def test_database__a_url_that_cannot_be_used(url, error, match):
    with pytest.raises(error, match=match) as caught:
        Database(url)
    assert caught.value.remedy


def test_database__never_shows_a_password():
    with pytest.raises(StorageError) as error:
        Database("postgresql://user:secret@127.0.0.1:1/db")
    assert "secret" not in str(error.value)
    assert "user:***@" in str(error.value)
    with pytest.raises(StorageError) as error:
        Database("postgresql//user://x:secret@")
    assert "secret" not in str(error.value)


def test_database__another_kind_of_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("This is a text and not a database. " * 100)
    with pytest.raises(StorageError, match="must be an SQLite database"):
        Database(sqlite_url(path))


def test_database__a_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(StorageError, match="cannot"):
        Database(sqlite_url(tmp_path))


def test_database__a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="folder"):
        Database(sqlite_url(tmp_path / "file" / "nas.db"))


def test_database__a_read_only_file(sqlite):
    with Database(sqlite) as database:
        add_architecture(database)
    path = sqlite_path(parse_url(sqlite))
    with Database(f"sqlite:///file:{path}?mode=ro&uri=true") as database:
        assert database.find_architecture("a" * 16) is not None
        with pytest.raises(StorageError, match="read-only") as error:
            add_architecture(database, "b" * 16)
    assert error.value.remedy


def test_database__locked_by_another_process(sqlite):
    with Database(sqlite, busy_timeout_s=0.2) as database:
        other = sqlite3.connect(sqlite_path(database.url), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            add_architecture(database)
        other.execute("ROLLBACK")
        other.close()
        assert add_architecture(database)


def test_database__a_full_disk_keeps_what_was_stored(sqlite):
    with Database(sqlite) as database:
        add_architecture(database)

        @sqlalchemy.event.listens_for(database.engine, "begin")
        def _(connection):
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        with pytest.raises(StorageError, match="room"):
            database.add_architecture("b" * 16, space="s", text="x" * 100_000)
        assert database.find_architecture("b" * 16) is None
        assert database.find_architecture("a" * 16) is not None
