from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import environments
import numpy as np
import pytest

from nas.errors import InputError, StorageError
from nas.latency.features import FEATURES
from nas.latency.predictor import LEAST_SAMPLES
from nas.latency.table import LatencyTable, TableRow
from nas.space.architecture import Architecture
from nas.space.space import load_space

ENVIRONMENT = replace(environments.ENVIRONMENT, precision="bf16")
CSV, JSON = "openvino-bf16.csv", "openvino-bf16.json"


@functools.cache
def _architectures(count: int) -> tuple[Architecture, ...]:
    space, rng = load_space("digits"), np.random.default_rng(0)
    return tuple(space.candidate(space.sample(rng), 10).architecture for _ in range(count))


def _rows(count: int) -> list[TableRow]:
    rng = np.random.default_rng(1)
    features = rng.lognormal(0, 1, (count, len(FEATURES)))
    ms = features.mean(axis=1) * rng.lognormal(0, 0.01, count) / 3
    return [
        TableRow(architecture, row, float(time), float(time) * 0.99, float(time) * 1.01)
        for architecture, row, time in zip(_architectures(count), features, ms, strict=True)
    ]


def _table(count: int = 3, rows: list[TableRow] | None = None) -> LatencyTable:
    return LatencyTable.of(
        _rows(count) if rows is None else rows,
        ENVIRONMENT,
        hardware="cpu",
        space="digits",
        space_digest="1" * 16,
        created="2026-01-01T00:00:00+00:00",
        commit="abc",
        versions={"python": "3.11"},
    )


def _load(folder: Path) -> LatencyTable:
    return LatencyTable.load(folder, "openvino", "bf16")


def test_table__comes_back_as_it_was_saved(tmp_path: Path) -> None:
    table = _table(LEAST_SAMPLES + 1)
    path = table.save(tmp_path / "cpu")
    loaded = _load(tmp_path / "cpu")
    assert path == tmp_path / "cpu" / CSV
    assert loaded.provenance == table.provenance
    assert loaded.environment == ENVIRONMENT
    np.testing.assert_array_equal(loaded.features, table.features)
    for one, other in zip(loaded.rows, table.rows, strict=True):
        assert one.architecture == other.architecture
        assert (one.ms, one.low_ms, one.high_ms) == (other.ms, other.low_ms, other.high_ms)
    assert sorted(file.name for file in path.parent.iterdir()) == [CSV, JSON]


def test_table__predicts_as_well_as_its_provenance_says() -> None:
    table = _table(LEAST_SAMPLES + 1)
    figures = table.predictor().leave_one_out()
    stated = table.provenance.leave_one_out
    assert stated is not None
    assert (stated.mape, stated.median) == (figures.mape, figures.median)
    assert (stated.spearman, stated.coverage) == (figures.spearman, figures.coverage)


def test_table__too_small_for_a_predictor_says_no_figures(tmp_path: Path) -> None:
    table = _table(LEAST_SAMPLES - 1)
    assert table.provenance.leave_one_out is None
    table.save(tmp_path)
    with pytest.raises(InputError, match=f"at least {LEAST_SAMPLES}"):
        _load(tmp_path).predictor()


def test_table__answers_for_its_networks_only() -> None:
    table = _table(2)
    row = table.rows[1]
    found = table.find(row.architecture.digest)
    assert found is not None
    assert (found.ms, found.source, found.environment) == (row.ms, "table", ENVIRONMENT)
    assert table.find("0" * 16) is None


def test_require__another_environment_is_refused_with_what_differs() -> None:
    table = _table()
    table.require(ENVIRONMENT)
    other = dataclasses.replace(ENVIRONMENT, device="another", runtime_version="2")
    with pytest.raises(InputError, match="device 'a processor' instead of 'another', runtime_v"):
        table.require(other)


@pytest.mark.parametrize(
    "times",
    [
        (-1.0, -1.0, -1.0),
        (0.0, 0.0, 0.0),
        (float("nan"), 1.0, 1.0),
        (1.0, 1.0, float("inf")),
        (1.0, 2.0, 3.0),
    ],
)
def test_table__impossible_times_are_refused(times: tuple[float, float, float]) -> None:
    ms, low_ms, high_ms = times
    row = dataclasses.replace(_rows(1)[0], ms=ms, low_ms=low_ms, high_ms=high_ms)
    with pytest.raises(InputError, match="0 < low_ms <= ms <= high_ms"):
        _table(rows=[row])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([*_rows(1), *_rows(1)], "stands twice"),
        ([dataclasses.replace(_rows(1)[0], features=np.ones(3))], "features must be"),
        ([dataclasses.replace(_rows(1)[0], features=-np.ones(len(FEATURES)))], "features must be"),
    ],
)
def test_table__impossible_rows_are_refused(rows: list[TableRow], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _table(rows=rows)


def _without_provenance(folder: Path) -> None:
    (folder / JSON).unlink()


def _without_rows(folder: Path) -> None:
    (folder / CSV).unlink()


def _without_commit(folder: Path) -> None:
    _change_json(folder, "commit", None)


def _of_nothing(folder: Path) -> None:
    _change_json(folder, "environment", {"device": "a processor"})


def _of_other_features(folder: Path) -> None:
    _change_json(folder, "features", "0" * 16)


def _of_fewer_rows(folder: Path) -> None:
    _change_json(folder, "rows", 2)


def _of_another_precision(folder: Path) -> None:
    _change_json(folder, "environment", {**ENVIRONMENT.as_dict(), "precision": "int8"})


def _change_json(folder: Path, name: str, value: object) -> None:
    data = json.loads((folder / JSON).read_text())
    if value is None:
        del data[name]
    else:
        data[name] = value
    (folder / JSON).write_text(json.dumps(data))


def _lose_a_row(folder: Path) -> None:
    lines = (folder / CSV).read_text().splitlines(keepends=True)
    (folder / CSV).write_text("".join(lines[:-1]))


def _change_cell(column: int, value: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        header, first, *rest = (folder / CSV).read_text().splitlines(keepends=True)
        cells = first.split(",")
        cells[column] = value
        (folder / CSV).write_text(header + ",".join(cells) + "".join(rest))

    return change


def _rename_a_column(folder: Path) -> None:
    text = (folder / CSV).read_text()
    (folder / CSV).write_text(text.replace("pixels", "area", 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_provenance, "openvino-bf16.json, which cannot be read"),
        (_without_rows, "openvino-bf16.csv, which cannot be read"),
        (_without_commit, "commit: Field required"),
        (_of_nothing, "exactly the fields"),
        (_of_other_features, "of this version"),
        (_of_fewer_rows, "2 rows"),
        (_of_another_precision, "openvino in int8"),
        (_lose_a_row, "it has 2 rows"),
        (_rename_a_column, "must have the columns"),
        (_change_cell(0, "0" * 16), "line 2: the architecture must have the digest"),
        (_change_cell(1, "-3"), "0 < low_ms"),
        (_change_cell(1, "0"), "0 < low_ms"),
        (_change_cell(1, "nan"), "0 < low_ms"),
        (_change_cell(1, "fast"), "line 2: a number is needed, got 'fast'"),
        (_change_cell(5, "nan"), "features must be"),
        (_change_cell(5, "12345"), "SHA-256"),
        (_change_cell(5, "1,2"), "line 2: .* cells are needed"),
    ],
)
def test_load__damaged_table_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    _table().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        _load(tmp_path)
    assert "openvino-bf16" in str(caught.value) or "environment" in str(caught.value)


def test_save__where_nothing_can_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        _table().save(tmp_path / "file")
