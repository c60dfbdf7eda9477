from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import optuna
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.accuracy.evaluate import Accuracy, Agreement
from nas.errors import MissingPackageError, StorageError
from nas.latency.clock import Timing
from nas.latency.hardware import Environment
from nas.latency.latency import Latency
from nas.searcher.connection import LockedError, exclusive, parse_url, sqlite_path, sqlite_url
from nas.searcher.database import Database
from nas.searcher.migrations import VERSION_TABLE, _config
from nas.searcher.tables import LatencyRow, Row

ENVIRONMENT = Environment(
    device="a CPU",
    runtime="openvino",
    runtime_version="2026.2",
    precision="int8",
    threads=1,
    protocol="hot",
    clock="process CPU time",
    reference="0123456789abcdef",
)
LATENCY = Latency(ms=2.5, low_ms=2.4, high_ms=2.6, source="measured", environment=ENVIRONMENT)
TIMING = Timing(
    ms=2.5,
    low_ms=2.4,
    high_ms=2.6,
    ratio=1.25,
    blocks=12,
    rejected=1,
    runs=480,
    protocol="hot",
    clock="process CPU time",
    converged=True,
    other_load=0.5,
)
ACCURACY = Accuracy(
    map50_95=0.31,
    map50=0.5,
    map_small=None,
    map_medium=0.3,
    map_large=0.4,
    images=100,
    split="validation",
    weights="inherited",
    artifact="engine",
    low=0.29,
    high=0.33,
    agreement=Agreement(0.95, 16, "onnxruntime fp32"),
)
OPTUNA_TABLES = {"studies", "trials", "alembic_version", "version_info"}


def tables(url):
    engine = sqlalchemy.create_engine(parse_url(url))
    names = set(sqlalchemy.inspect(engine).get_table_names())
    engine.dispose()
    return names


def add_architecture(database, digest="a" * 16):
    database.add_architecture(digest, space="s" * 16, text="stem: 16", macs=8_000_000_000)
    return digest


# Schema


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
        "from nas.searcher.study import open_storage\n"
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


# Errors


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


# Locks


def test_exclusive__a_name_is_held_once(database):
    with exclusive(database.engine, "x"), exclusive(database.engine, "y"):
        again = exclusive(database.engine, "x", timeout_s=0.1)
        with pytest.raises(LockedError, match="process") as error, again:
            pass
        assert str(subprocess.os.getpid()) in error.value.holder
    with exclusive(database.engine, "x", timeout_s=0):
        pass


def test_exclusive__is_released_when_its_process_is_killed(database, url):
    code = (
        "import time; from nas.searcher.database import Database;"
        f"from nas.searcher.connection import exclusive; database = Database({url!r})\n"
        "with exclusive(database.engine, 'x'): print('in', flush=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    with pytest.raises(LockedError) as error, exclusive(database.engine, "x", timeout_s=0):
        pass
    assert f"process {process.pid} on" in error.value.holder
    process.kill()
    process.communicate()
    with exclusive(database.engine, "x", timeout_s=10):
        pass


# What is stored


def test_architecture__counts_may_come_later(database):
    digest = add_architecture(database)
    database.add_architecture(digest, space="s" * 16, text="stem: 16", parameters=10)
    row = database.find_architecture(digest)
    assert (row.parameters, row.macs) == (10, 8_000_000_000)
    assert database.find_architecture("nothing") is None


def test_environment__is_found_again(database):
    for _ in range(2):
        database.add_environment(ENVIRONMENT.digest, ENVIRONMENT.as_dict())
    row = database.find_environment(ENVIRONMENT.digest)
    assert Environment.from_dict(row.description) == ENVIRONMENT


def test_reference__the_first_one_stays(database):
    assert database.find_reference("e") is None
    database.add_reference("e", 1.5, 1.4, 1.6)
    database.add_reference("e", 9.5, 9.4, 9.6)
    assert database.find_reference("e") == 1.5


@given(
    ms=st.floats(1e-3, 1e4),
    width=st.floats(0, 1),
    source=st.sampled_from(["measured", "cached", "table", "predicted", "estimated"]),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_latency__comes_back_as_it_was(database, ms, width, source):
    latency = replace(LATENCY, ms=ms, low_ms=ms, high_ms=ms + width, source=source)
    database.add_latency("key", latency, TIMING)
    assert database.find_latency("key") == latency
    assert database.find_latency("another key") is None


def test_latency__keeps_what_the_clock_said(database):
    database.add_latency("key", replace(LATENCY, source="predicted"), None)
    database.add_latency("key", LATENCY, TIMING)
    with sqlalchemy.orm.Session(database.engine) as session:
        (row,) = session.scalars(sqlalchemy.select(LatencyRow))
    assert (row.source, row.runs, row.converged, row.other_load) == ("measured", 480, True, 0.5)
    assert row.timing["ratio"] == 1.25


@pytest.mark.parametrize("agreement", [ACCURACY.agreement, Agreement(None, 16, "torch fp32"), None])
def test_accuracy__comes_back_as_it_was_and_is_stored_once(database, agreement):
    digest = add_architecture(database)
    accuracy = replace(ACCURACY, agreement=agreement)
    rows = {
        database.add_accuracy(digest, "int8", one, data="d", weights_digest="w")
        for one in (ACCURACY, accuracy)
    }
    names = {"data": "d", "split": "validation", "weights": "inherited", "artifact": "engine"}
    row, found = database.find_accuracy(digest, "int8", weights_digest="w", **names)
    assert (rows, found) == ({row}, accuracy)
    assert database.find_accuracy(digest, "int8", weights_digest="v", **names) is None
    assert database.find_accuracy(digest, "fp32", weights_digest="w", **names) is None


def test_evaluations__one_row_per_trial_with_all_that_is_known(database):
    digest = add_architecture(database)
    database.add_latency(digest, LATENCY, TIMING)
    accuracy_id = database.add_accuracy(digest, "int8", ACCURACY, data="d", seconds=3.0)
    known = {"architecture": digest, "precision": "int8"}
    told = {"latency": LATENCY, "accuracy_id": accuracy_id, "score": 0.3}
    for _ in range(2):
        database.add_evaluation(
            "s", 0, **known, **told, state="complete", weights=(0.1, None, None)
        )
    database.add_evaluation("s", 1, **known, state="failed", error="no memory")
    database.add_evaluation("another", 0, **known, state="infeasible", latency=LATENCY)
    table = database.evaluations("s")
    assert list(table["state"]) == ["complete", "failed"]
    first, second = table.to_dict("records")
    assert (first["latency_ms"], first["latency_source"]) == (2.5, "measured")
    assert (first["map50_95"], first["weights"], first["split"]) == (
        0.31,
        "inherited",
        "validation",
    )
    assert (first["runs"], first["macs"], first["accuracy_seconds"]) == (480, 8e9, 3.0)
    assert second["error"] == "no memory"
    assert math.isnan(second["latency_ms"])


def test_evaluations__keep_the_latency_that_was_told(database):
    digest = add_architecture(database)
    predicted = replace(LATENCY, ms=9.0, high_ms=9.5, source="predicted")
    database.add_latency(digest, predicted, None)
    database.add_evaluation(
        "s",
        0,
        architecture=digest,
        precision="int8",
        state="infeasible",
        latency=predicted,
    )
    database.add_latency(digest, LATENCY, TIMING)
    (row,) = database.evaluations("s").to_dict("records")
    assert (row["latency_ms"], row["latency_source"]) == (9.0, "predicted")


@pytest.mark.parametrize(
    "wrong", [{"state": "good"}, {"state": "failed", "architecture": "unknown"}]
)
def test_evaluation__what_cannot_be_stored(database, wrong):
    values = {"architecture": add_architecture(database), "precision": "int8"}
    with pytest.raises(StorageError):
        database.add_evaluation("s", 0, **values | wrong)
    assert database.evaluations("s").empty


def test_fronts__come_back_in_order(database):
    for trial in (3, 8):
        members = [{"trial": trial, "accuracy": 0.3, "latency_ms": 2.0}]
        database.add_front("s", trial, members, hypervolume=0.1 * trial, reference_point=(0, 10))
    first, last = database.fronts("s")
    assert (first.trial_number, last.trial_number) == (3, 8)
    assert last.members == [{"trial": 8, "accuracy": 0.3, "latency_ms": 2.0}]
    assert last.reference_point == [0.0, 10.0]


def run_values():
    digests = {"space": "s", "data": "d", "recipe": "r"}
    names = {"command": "search", "hardware": "cpu", "runtime": "openvino"}
    return {**digests, **names, "arguments": {"budget": "10ms"}, "seed": 2**40, "versions": {}}


def test_runs__one_that_never_ended_was_interrupted(database):
    database.add_run("s", **run_values())
    database.add_run("another", **run_values())
    last = database.add_run("s", **run_values(), budget_ms=10.0)
    database.end_run(last, "finished", "a winner")
    killed, finished = database.runs("s")
    assert (killed.status, killed.ended) == ("interrupted", None)
    assert (finished.status, finished.message, finished.seed) == ("finished", "a winner", 2**40)
    assert database.runs("another")[0].status == "running"
    assert database.latest_run("another").id == database.runs("another")[0].id
    assert database.latest_run().id == last
    assert database.latest_run("nothing") is None
    with pytest.raises(StorageError, match="excellent"):
        database.end_run(last, "excellent")


def ablation_values(digest, accuracy_id):
    names = {"variant": "p4=dense", "kind": "choice", "changed": "p4", "before": "none"}
    told = {"latency_ms": 2.5, "latency_low_ms": 2.4, "latency_high_ms": 2.6}
    known = {"latency_source": "measured", "environment": ENVIRONMENT.digest, "recipe": "r"}
    cost = {"iterations": 3, "seconds": 1.5, "recipe_values": {"loss": {"box": 2.5}}}
    what = {"architecture": digest, "precision": "int8", "accuracy_id": accuracy_id}
    return {**names, **told, **known, **cost, **what, "after": "dense", "position": 1}


def test_ablations__a_variant_has_one_row_for_each_seed(database):
    digest = add_architecture(database)
    accuracy_id = database.add_accuracy(digest, "int8", ACCURACY, data="d")
    values = ablation_values(digest, accuracy_id)
    for seed, resampled in ((2**40, [0.1, 0.2]), (0, [0.3]), (0, [0.4])):
        database.add_ablation("s", seed=seed, resampled=resampled, **values)
    database.add_ablation("s", seed=0, resampled=[], **values | {"variant": "b", "position": 0})
    database.add_ablation("another", seed=0, resampled=[], **values)
    table = database.ablations("s")
    assert table["variant"].tolist() == ["b", "p4=dense", "p4=dense"]
    assert table["seed"].tolist() == [0, 0, 2**40]
    assert table["resampled"].tolist() == [[], [0.4], [0.1, 0.2]]
    assert set(table["map50_95"]) == {0.31}
    assert set(table["macs"]) == {8_000_000_000}
    rows = database.ablation_rows("s")
    assert [row.variant for row in rows] == ["p4=dense", "p4=dense", "b"]
    assert rows[0].recipe_values == {"loss": {"box": 2.5}}


def test_ablation__needs_a_stored_architecture(database):
    with pytest.raises(StorageError):
        database.add_ablation("s", seed=0, resampled=[], **ablation_values("unknown", None))
    assert database.ablations("s").empty


def test_latest_run__of_a_search_unless_another_command_is_named(database):
    search = database.add_run("s", **run_values())
    other = database.add_run("t", **run_values() | {"command": "ablate"})
    assert database.latest_run().id == search
    assert database.latest_run("t") is None
    assert database.latest_run(None, "ablate").id == database.latest_run("t", "ablate").id == other


def test_times__are_utc(database):
    run = database.add_run("s", **run_values())
    database.end_run(run, "finished")
    (row,) = database.runs("s")
    assert row.started.tzinfo is UTC
    assert timedelta(0) <= row.ended - row.started < timedelta(minutes=1)
    assert abs(datetime.now(UTC) - row.started) < timedelta(minutes=1)


def test_times__without_a_zone_are_refused(database):
    with pytest.raises(StorageError, match="time zone"):
        database.add_run("s", **run_values(), started=datetime(2026, 1, 1))


def test_delete_study__keeps_the_caches_and_other_studies(database):
    digest = add_architecture(database)
    accuracy_id = database.add_accuracy(digest, "int8", ACCURACY, data="d")
    for study in ("s", "t"):
        values = {"architecture": digest, "precision": "int8", "accuracy_id": accuracy_id}
        database.add_evaluation(study, 0, **values, state="complete")
        database.add_front(study, 0, [], hypervolume=0.0, reference_point=(0, 1))
        database.add_run(study, **run_values())
        values = ablation_values(digest, accuracy_id)
        database.add_ablation(study, seed=0, resampled=[], **values)
    database.delete_study("s")
    assert database.evaluations("s").empty
    assert database.ablations("s").empty
    assert not database.fronts("s")
    assert not database.runs("s")
    assert len(database.evaluations("t")) == len(database.fronts("t")) == len(database.runs("t"))
    assert len(database.ablations("t")) == 1
    assert database.find_architecture(digest)


def test_database__a_training_is_kept_once_and_the_latest_report_counts(database):
    database.add_architecture("a" * 8, space="space", text="text")
    values = {
        "purpose": "landmark",
        "name": "trial 3",
        "architecture": "a" * 8,
        "precision": "fp32",
        "start": "scratch",
        "recipe": "r",
        "seed": 1,
        "split": "validation",
        "artifact": "engine",
        "resampled": [0.5, 0.6],
        "iterations": 20,
        "seconds": 1.0,
    }
    database.add_training("s", **values, map50_95=0.4)
    database.add_training("s", **values, map50_95=0.5)
    database.add_training("s", **{**values, "split": "test"}, map50_95=0.3)
    assert [(row.split, row.map50_95) for row in database.trainings("s", "landmark")] == [
        ("validation", 0.5),
        ("test", 0.3),
    ]
    assert database.trainings("s", "confirmation") == []
    database.add_report("s", "trust", {"tau": 0.1})
    database.add_report("s", "trust", {"tau": 0.2})
    assert database.find_report("s", "trust") == {"tau": 0.2}
    database.delete_study("s")
    assert database.find_report("s", "trust") is None
    assert database.trainings("s", "landmark") == []
