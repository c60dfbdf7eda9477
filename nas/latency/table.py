"""Latencies of whole networks in one environment, kept in files with where they come from.

A table lies in the folder of its hardware as `<runtime>-<precision>.csv`, one network a row, and
beside it `<runtime>-<precision>.json` says what it was measured on, when, with which versions, and
how well a predictor that is fitted to it does (`Provenance`). Neither is of use without the other:
the second holds a digest of the first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator

from nas.errors import InputError
from nas.files import write_text
from nas.latency.environment import Environment
from nas.latency.features import FEATURES, features_digest
from nas.latency.latency import Latency
from nas.latency.predictor import LEAST_SAMPLES, LatencyPredictor
from nas.space.architecture import Architecture
from nas.space.record import Record

__all__ = ["LatencyTable", "LeaveOneOutFigures", "Provenance", "TableRow", "load_tables"]

_TIMES = ("ms", "low_ms", "high_ms")
_COLUMNS = ("digest", *_TIMES, *FEATURES, "architecture")
_AGAIN = "Profile the device again with `nas profile`."


class LeaveOneOutFigures(Record):
    """How well each row is predicted by the others; see `nas.latency.predictor.LeaveOneOut`."""

    mape: float = Field(ge=0, allow_inf_nan=False)
    median: float = Field(ge=0, allow_inf_nan=False)
    spearman: float = Field(ge=-1, le=1)
    coverage: float = Field(ge=0, le=1)


class Provenance(Record):
    """Where a table comes from.

    Attributes:
        hardware: the name that the device was asked for by.
        environment: what the latencies are true for.
        space: name of the search space.
        space_digest: what its points meant then.
        created: when, ISO 8601.
        commit: of this project.
        versions: of Python and the main packages.
        rows: how many networks.
        features: digest of the features' names.
        sha256: of the CSV file.
        leave_one_out: of a predictor fitted to the rows; None with too few of them.
    """

    hardware: str = Field(min_length=1)
    environment: dict[str, Any]
    space: str = Field(min_length=1)
    space_digest: str = Field(min_length=1)
    created: str = Field(min_length=1)
    commit: str = Field(min_length=1)
    versions: dict[str, str] = Field(min_length=1)
    rows: int = Field(gt=0)
    features: str
    sha256: str
    leave_one_out: LeaveOneOutFigures | None

    @field_validator("environment")
    @classmethod
    def _is_complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        Environment.from_dict(values)
        return values


@dataclass(frozen=True, eq=False)
class TableRow:
    """One network, measured.

    Attributes:
        architecture: which network.
        features: of its graph, (len(FEATURES),).
        ms: one image, batch 1.
        low_ms: lower end of its 95 % interval.
        high_ms: upper end.
    """

    architecture: Architecture
    features: NDArray[np.float64]
    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Rows and their provenance; build it by `of` or `load`, which check them."""

    rows: tuple[TableRow, ...]
    provenance: Provenance

    @classmethod
    def of(
        cls,
        rows: Iterable[TableRow],
        environment: Environment,
        *,
        hardware: str,
        space: str,
        space_digest: str,
        created: str,
        commit: str,
        versions: Mapping[str, str],
    ) -> Self:
        """Check rows, and score a predictor on them if they are enough for one.

        Raises:
            InputError: there is no row, two describe one network, or a row has a value that no
                network has.
        """
        rows = tuple(rows)
        _check_rows(rows)
        provenance = Provenance(
            hardware=hardware,
            environment=environment.as_dict(),
            space=space,
            space_digest=space_digest,
            created=created,
            commit=commit,
            versions=dict(versions),
            rows=len(rows),
            features=features_digest(),
            sha256=_sha256(_text(rows)),
            leave_one_out=_figures(rows),
        )
        return cls(rows, provenance)

    @cached_property
    def environment(self) -> Environment:
        """What the latencies are true for."""
        return Environment.from_dict(self.provenance.environment)

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """Amounts of each network, (n, len(FEATURES))."""
        return np.array([row.features for row in self.rows])

    @cached_property
    def ms(self) -> NDArray[np.float64]:
        """Latency of each network, (n,)."""
        return np.array([row.ms for row in self.rows])

    def predictor(self) -> LatencyPredictor:
        """Fit a predictor to all rows.

        Raises:
            InputError: they are too few.
        """
        return LatencyPredictor.fit(self.features, self.ms)

    def find(self, digest: str) -> Latency | None:
        """Return the latency of the architecture with this digest, if it is in the table."""
        row = self._by_digest.get(digest)
        if row is None:
            return None
        return Latency(row.ms, row.low_ms, row.high_ms, "table", self.environment)

    def require(self, environment: Environment) -> None:
        """Check that the latencies are true for an environment.

        Raises:
            InputError: they are of another one; the message says where the two differ.
        """
        there, here = self.environment.as_dict(), environment.as_dict()
        differences = [
            f"{name} {there[name]!r} instead of {here[name]!r}"
            for name in there
            if there[name] != here[name]
        ]
        if differences:
            raise InputError(
                "A latency table must be of the environment that it is used in, this one has "
                f"{', '.join(differences)}.",
                "Profile this device with `nas profile`, or ask for the table as a prior.",
            )

    def save(self, folder: Path) -> Path:
        """Write the two files of the table; what stood there before is replaced.

        Args:
            folder: of the hardware.

        Returns:
            The path of the CSV.

        Raises:
            StorageError: they cannot be written.
        """
        path = _path(folder, self.environment.runtime, self.environment.precision)
        write_text(path, _text(self.rows))
        provenance = self.provenance.model_dump(mode="json")
        write_text(path.with_suffix(".json"), json.dumps(provenance, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path, runtime: str, precision: str) -> Self:
        """Read the table of a runtime and precision from the folder of its hardware.

        Raises:
            InputError: a file is missing or damaged, the two do not belong together, a value is
                impossible, or the table has other features than this version computes.
        """
        path = _path(folder, runtime, precision)
        provenance = _provenance(path.with_suffix(".json"))
        text = _read(path)
        if provenance.features != features_digest():
            raise InputError(
                f"{path} must have the features {features_digest()} of this version, it has "
                f"{provenance.features}.",
                _AGAIN,
            )
        rows = tuple(_rows(text, path))
        _check_rows(rows, f"{path}: ")
        if provenance.rows != len(rows) or provenance.sha256 != _sha256(text):
            raise InputError(
                f"{path} must be as its provenance says: {provenance.rows} rows, SHA-256 "
                f"{provenance.sha256:.12}; it has {len(rows)} rows, SHA-256 {_sha256(text):.12}.",
                f"Bring both files from one place. {_AGAIN}",
            )
        table = cls(rows, provenance)
        if (table.environment.runtime, table.environment.precision) != (runtime, precision):
            raise InputError(
                f"{path} must hold latencies of {runtime} in {precision}, it holds those of "
                f"{table.environment.runtime} in {table.environment.precision}.",
                "Rename both files.",
            )
        return table

    @cached_property
    def _by_digest(self) -> dict[str, TableRow]:
        return {row.architecture.digest: row for row in self.rows}


def load_tables(folder: Path, runtime: str) -> dict[str, LatencyTable]:
    """Read all tables of a runtime in a folder, by precision.

    Raises:
        InputError: there is none, or one is not as `LatencyTable.load` wants it.
    """
    stems = [path.stem for path in sorted(folder.glob(_path(Path(), runtime, "*").name))]
    if not stems:
        raise InputError(
            f"{folder} must hold latency tables of {runtime} ({runtime}-<precision>.csv), and has "
            "none.",
            "Name the folder that `nas profile` wrote, or profile with this runtime.",
        )
    precisions = [stem.removeprefix(f"{runtime}-") for stem in stems]
    return {name: LatencyTable.load(folder, runtime, name) for name in precisions}


def _path(folder: Path, runtime: str, precision: str) -> Path:
    return folder / f"{runtime}-{precision}.csv"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"A latency table needs the file {path}, which cannot be read: {reason}.",
            f"A table is a CSV and a JSON of one name. {_AGAIN}",
        ) from error


def _provenance(path: Path) -> Provenance:
    text = _read(path)
    try:
        return Provenance.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path} says not where its table comes from: {where}: {first['msg']}.", _AGAIN
        ) from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(rows: Sequence[TableRow]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        times = [repr(float(getattr(row, name))) for name in _TIMES]
        amounts = [f"{amount:.17g}" for amount in row.features]
        description = json.dumps(row.architecture.canonical(), separators=(",", ":"))
        writer.writerow([row.architecture.digest, *times, *amounts, description])
    return stream.getvalue()


def _rows(text: str, path: Path) -> Iterator[TableRow]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    if tuple(header) != _COLUMNS:
        raise InputError(f"{path} must have the columns {', '.join(_COLUMNS)}.", _AGAIN)
    for number, cells in enumerate(reader, start=2):
        where = f"{path}, line {number}"
        if len(cells) != len(_COLUMNS):
            raise InputError(f"{where}: {len(_COLUMNS)} cells are needed, got {len(cells)}.")
        digest, *numbers, description = cells
        ms, low_ms, high_ms, *amounts = (_number(cell, where) for cell in numbers)
        architecture = _architecture(description, where)
        if architecture.digest != digest:
            raise InputError(
                f"{where}: the architecture must have the digest {digest}, it has "
                f"{architecture.digest}.",
                _AGAIN,
            )
        yield TableRow(architecture, np.array(amounts), ms, low_ms, high_ms)


def _number(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise InputError(f"{where}: a number is needed, got {cell!r:.40}.", _AGAIN) from error


def _architecture(description: str, where: str) -> Architecture:
    try:
        return Architecture.parse(json.loads(description))
    except ValueError as error:  # an InputError is one
        raise InputError(f"{where}: this is no architecture: {error}", _AGAIN) from error


def _check_rows(rows: Sequence[TableRow], where: str = "") -> None:
    seen: set[str] = set()
    if not rows:
        raise InputError(f"{where}A latency table needs at least one row.", _AGAIN)
    for row in rows:
        digest = row.architecture.digest
        _check_row(row, f"{where}{digest}: ")
        if digest in seen:
            raise InputError(f"{where}The architecture {digest} stands twice.", "Keep one row.")
        seen.add(digest)


def _check_row(row: TableRow, where: str) -> None:
    if not (0 < row.low_ms <= row.ms <= row.high_ms < math.inf):
        raise InputError(
            f"{where}a latency must keep 0 < low_ms <= ms <= high_ms, "
            f"got {row.low_ms:g}, {row.ms:g}, {row.high_ms:g}.",
            _AGAIN,
        )
    amounts = row.features
    if amounts.shape != (len(FEATURES),) or not (np.isfinite(amounts) & (amounts >= 0)).all():
        raise InputError(
            f"{where}features must be {len(FEATURES)} finite numbers that are >= 0.", _AGAIN
        )


def _figures(rows: Sequence[TableRow]) -> LeaveOneOutFigures | None:
    if len(rows) < LEAST_SAMPLES:
        return None
    features, ms = np.array([row.features for row in rows]), np.array([row.ms for row in rows])
    found = LatencyPredictor.fit(features, ms).leave_one_out()
    return LeaveOneOutFigures(
        **{one.name: getattr(found, one.name) for one in fields(found) if one.name in _SCORES}
    )


_SCORES = frozenset(LeaveOneOutFigures.model_fields)
