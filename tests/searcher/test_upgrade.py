"""A study that was told estimates, on a device that is here after all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.errors import MeasurementError, StudyError
from nas.latency.environment import Environment
from nas.latency.latency import Latency
from nas.searcher.database import Database
from nas.searcher.opening import open_study
from nas.searcher.progress import Silent
from nas.searcher.request import Request, Workspace
from nas.searcher.upgrade import upgrade_study
from nas.space.space import load_space
from nas.units import Budget

SPACE = load_space("digits")
BUDGET = Budget(50.0)
FINGERPRINT = {"hardware": "cpu"}
SEEN_FROM_AFAR = Environment(
    device="far away",
    runtime="onnxruntime",
    runtime_version="estimated",
    precision="fp32",
    threads=1,
    protocol="hot",
    clock="none",
    reference="none",
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        yield database


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(budget=BUDGET, runtime="onnxruntime", study="far", workspace=Workspace(tmp_path))


def _open(database: Database):  # type: ignore[no-untyped-def]
    return open_study(
        database,
        "far",
        "random",
        parameters=SPACE.choices,
        fingerprint=FINGERPRINT,
        budget=BUDGET,
    )


@pytest.fixture
def told(database: Database) -> dict[int, str]:
    """A study with the smallest and the largest network, estimated the wrong way round."""
    told = {}
    with _open(database) as study:
        for name, ms in (("min", 40.0), ("max", 0.01)):
            candidate = SPACE.candidate(SPACE.anchors[name], 10)
            architecture = candidate.architecture
            database.add_architecture(
                architecture.digest, space=SPACE.digest, text=architecture.to_yaml()
            )
            study.enqueue(SPACE.anchors[name])
            proposal = study.ask()
            latency = Latency(ms, ms / 2, ms * 2, "estimated", SEEN_FROM_AFAR)
            database.add_evaluation(
                "far",
                proposal.number,
                architecture=architecture.digest,
                precision="fp32",
                state="complete",
                latency=latency,
            )
            study.tell_feasible(proposal, candidate.digest, accuracy=0.5, latency_ms=ms)
            told[proposal.number] = architecture.digest
    return told


def test_upgrade__measures_in_place(
    database: Database, request_: Request, told: dict[int, str]
) -> None:
    upgrade = upgrade_study(request_, database, Silent())
    table = database.evaluations("far").set_index("trial_number")
    assert set(table["latency_source"]) == {"measured"}
    small, large = (table["latency_ms"][number] for number in told)
    assert small < large
    assert upgrade.failed == 0
    assert upgrade.held == 0
    assert set(upgrade.changes["source"]) == {"estimated"}
    assert table["runs"].notna().all(), "the evaluation must name the row of its measurement"
    with _open(database) as study:
        values = [trial.values for trial in study.optuna_study.trials]
        assert values == [[0.5, small], [0.5, large]]
        assert [one.latency_ms for one in study.front()] == [small]
        for trial in study.optuna_study.trials:
            assert trial.constraints == {"latency": trial.values[1] - BUDGET.latency_ms}
            assert trial.user_attrs["latency_source"] == "measured"


def test_upgrade__a_second_time_changes_nothing(
    database: Database, request_: Request, told: dict[int, str]
) -> None:
    upgrade_study(request_, database, Silent())
    before = database.evaluations("far")
    again = upgrade_study(request_, database, Silent())
    assert again.changes.empty
    assert len(told) == 2
    assert database.evaluations("far").equals(before)


def test_upgrade__goes_on_where_a_dead_process_stopped(
    database: Database, request_: Request, told: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is measured, and Optuna's trials still say what was estimated."""
    with monkeypatch.context() as patch:
        patch.setattr("nas.searcher.upgrade._correct", lambda *_: None)
        upgrade_study(request_, database, Silent())
    upgrade_study(request_, database, Silent())
    table = database.evaluations("far")
    with _open(database) as study:
        values = [trial.values[1] for trial in study.optuna_study.trials]
    assert values == list(table["latency_ms"])
    assert len(values) == len(told)


def test_upgrade__device_that_is_not_here(tmp_path: Path, database: Database) -> None:
    request = Request(
        budget=BUDGET, hardware="xavier-nx", study="far", workspace=Workspace(tmp_path)
    )
    with pytest.raises(MeasurementError, match="xavier-nx"):
        upgrade_study(request, database, Silent())


def test_upgrade__study_that_is_searched(
    database: Database, request_: Request, told: dict[int, str]
) -> None:
    with _open(database), pytest.raises(StudyError, match="Only one process"):
        upgrade_study(request_, database, Silent())
    assert len(told) == 2


def test_upgrade__empty_study(database: Database, request_: Request) -> None:
    with pytest.raises(StudyError, match="no evaluations"):
        upgrade_study(request_, database, Silent())
