from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import ACCURACY, ENVIRONMENT, LATENCY, TIMING, add_architecture

from nas.accuracy.evaluate import Agreement
from nas.latency.hardware import Environment
from nas.searcher.tables import LatencyRow


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
