"""Who answers for a device: here, profiled elsewhere, or known from its data sheet alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heard import Heard

from nas.errors import InputError, MeasurementError, SpaceError
from nas.latency.environment import Environment
from nas.latency.features import FEATURES
from nas.latency.hardware import Hardware
from nas.latency.oracle import EstimatingOracle, MeasuringOracle, TableOracle
from nas.latency.predictor import LEAST_SAMPLES
from nas.latency.runtimes.literal import LiteralRuntime
from nas.latency.table import LatencyTable, TableRow
from nas.searcher.database import Database
from nas.searcher.oracles import Answers, open_answers
from nas.searcher.progress import Silent
from nas.searcher.request import Request, Workspace
from nas.space.space import load_space
from nas.units import Budget

FAR = "xavier-nx"
SPACE = load_space("digits")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        yield database


@pytest.fixture
def far(tmp_path: Path) -> Request:
    return Request(budget=Budget(10.0), hardware=FAR, workspace=Workspace(tmp_path))


@pytest.fixture
def near(far: Request) -> Request:
    return replace(far, hardware="cpu", runtime="onnxruntime")


def _open(request: Request, database: Database, listener: Silent | None = None) -> Answers:
    hardware = Hardware.named(request.hardware)
    return open_answers(request, hardware, SPACE, database, listener or Silent())


def _profile(folder: Path, environment: Environment) -> Path:
    """Write a table of random networks, whose latencies are no device's."""
    generator = np.random.default_rng(0)
    rows = []
    for ms in np.linspace(1, 3, LEAST_SAMPLES + 1):
        point = SPACE.sample(generator)
        architecture = SPACE.candidate(point, 10).architecture
        features = generator.uniform(1, 2, len(FEATURES))
        rows.append(TableRow(architecture, features, float(ms), 0.9 * float(ms), 1.1 * float(ms)))
    table = LatencyTable.of(
        rows,
        environment,
        hardware=FAR,
        space=SPACE.name,
        space_digest=SPACE.digest,
        created="2026-01-01",
        commit="0",
        versions={"python": "3"},
    )
    table.save(folder)
    return folder


def _far_environment(precision: str = "fp16") -> Environment:
    return Environment(
        device="a Jetson",
        runtime="tensorrt",
        runtime_version="10",
        precision=precision,
        threads=1,
        protocol="hot",
        clock="wall",
        reference="0" * 16,
    )


def test_far__is_estimated_loudly(far: Request, database: Database) -> None:
    heard = Heard()
    answers = _open(far, database, heard)
    assert isinstance(answers.oracle, EstimatingOracle)
    assert isinstance(answers.runtime, LiteralRuntime)
    assert answers.target == "tensorrt"
    assert answers.space.precisions == ("fp16",)
    (warning,) = heard.warnings
    for words in (FAR, "ESTIMATED", "80 %", "not promised", "--latency measured", "nas measure"):
        assert words in warning


def test_far__only_measurements_will_do(far: Request, database: Database) -> None:
    with pytest.raises(MeasurementError, match=FAR):
        _open(replace(far, latency="measured"), database)


def test_far__precision_that_nobody_can_estimate(far: Request, database: Database) -> None:
    with pytest.raises(SpaceError, match="int8"):
        _open(replace(far, precisions=("int8",)), database)


def test_far__profiled_device_is_answered_for_from_its_table(
    far: Request, database: Database
) -> None:
    _profile(far.workspace.latency_tables / FAR, _far_environment())
    _profile(far.workspace.latency_tables / FAR, _far_environment("int8"))
    heard = Heard()
    answers = _open(replace(far, precisions=("int8", "fp16")), database, heard)
    assert isinstance(answers.oracle, TableOracle)
    assert answers.space.precisions == ("int8", "fp16")
    (warning,) = heard.warnings
    assert "latency tables" in warning
    assert "95 %" in warning


def test_far__folder_without_tables(far: Request, database: Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        _open(replace(far, table=tmp_path), database)


def test_near__is_measured_and_keeps_the_precision_of_the_space(
    near: Request, database: Database
) -> None:
    heard = Heard()
    answers = _open(near, database, heard)
    with answers.oracle as oracle:
        assert isinstance(oracle, MeasuringOracle)
        assert oracle.measures
        assert answers.space.precisions == ("fp32",)
        assert not heard.lines


def test_near__table_of_another_environment_is_refused_and_serves_as_prior(
    near: Request, database: Database, tmp_path: Path
) -> None:
    environment = replace(_far_environment("fp32"), runtime="onnxruntime")
    folder = _profile(tmp_path / "elsewhere", environment)
    with pytest.raises(InputError, match="as a prior"):
        _open(replace(near, table=folder), database)
    assert isinstance(_open(replace(near, prior=folder), database).oracle, MeasuringOracle)


def test_near__what_the_workspace_has_of_another_time_is_left_alone(
    near: Request, database: Database
) -> None:
    environment = replace(_far_environment("fp32"), runtime="onnxruntime")
    _profile(near.workspace.latency_tables / "cpu", environment)
    assert isinstance(_open(near, database).oracle, MeasuringOracle)
