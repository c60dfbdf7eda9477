from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from stored import ACCURACY, LATENCY, TIMING, ablation_values, add_architecture

from nas.errors import StorageError


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
