"""A latency table: what networks of a space cost on a device, for whoever does not have it.

The networks are chosen to cover the space, not at random: of many candidates, those from whose
latencies the others can be told best (`nas.latency.design`). So a few dozen measurements serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nas.errors import EngineError, ExportError, InputError, MeasurementError, NasError
from nas.latency.design import cover
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import MeasuringOracle, Network
from nas.latency.predictor import LEAST_SAMPLES, LatencyPredictor
from nas.latency.table import LatencyTable, TableRow
from nas.searcher.database import Database
from nas.searcher.latency_judge import LatencyJudge
from nas.searcher.progress import Listener
from nas.searcher.request import Workspace
from nas.searcher.setting import installed_versions
from nas.space.architecture import Architecture, Candidate
from nas.space.space import SearchSpace, load_space
from nas.units import COCO_CLASSES

__all__ = ["ProfileRequest", "profile_space"]

_CANDIDATES = 4  # to choose from, for each network that is measured


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """A profile, as the command line or Python asks for it.

    Attributes:
        hardware: a device that is attached.
        space: name or path of the search space.
        measurements: networks to measure, in each precision.
        candidates: random networks to choose them from; None takes 4 times as many.
        runtime: a name among the plug-ins; None takes the hardware's own.
        precisions: None takes those of the space that the runtime has.
        classes: of the networks.
        output: folder of the tables; None takes the workspace's.
        storage: as of a search.
        workspace: as of a search.
        seed: of the candidates to choose from.

    Raises:
        InputError: fewer measurements than a prediction can be fitted to.
    """

    hardware: str = "cpu"
    space: str = "digits"
    measurements: int = 40
    candidates: int | None = None
    runtime: str | None = None
    precisions: tuple[str, ...] | None = None
    classes: int = COCO_CLASSES
    output: Path | None = None
    storage: str | None = None
    workspace: Workspace = field(default_factory=Workspace)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.measurements < LEAST_SAMPLES:
            raise InputError(
                f"A latency table needs at least {LEAST_SAMPLES} measurements to predict from, "
                f"got {self.measurements}."
            )
        if self.pool < self.measurements:
            raise InputError(
                f"{self.measurements} networks cannot be chosen from {self.pool}.",
                "Ask for more candidates, or measure fewer.",
            )

    @property
    def pool(self) -> int:
        """Candidates to choose from."""
        return self.candidates or _CANDIDATES * self.measurements

    @property
    def url(self) -> str:
        """The database."""
        return self.storage or self.workspace.database_url

    @property
    def folder(self) -> Path:
        """Where the tables are written."""
        return self.output or self.workspace.latency_tables / self.hardware


def profile_space(
    request: ProfileRequest, database: Database, listener: Listener
) -> list[LatencyTable]:
    """Measure networks that cover a space, and write a table for each precision.

    Returns:
        The tables; `LatencyTable.predictor` says how well they predict.

    Raises:
        MeasurementError: the device is not attached.
        SpaceError: the space has no precision that the runtime has.
        EngineError: no network could be measured.
    """
    hardware = Hardware.named(request.hardware, request.workspace.hardware)
    runtime = runtime_for(hardware, request.runtime)
    space = load_space(request.space)
    if request.precisions:
        space = space.in_precisions(request.precisions)
    space = space.within(runtime.precisions)
    with LatencyMeter(
        hardware,
        runtime,
        precisions=space.precisions,
        store=database,
        isolated=True,
        on_wait=listener.say,
    ) as meter:
        profiler = _Profiler(request, space, MeasuringOracle(meter, predicts=False), database)
        return list(profiler.tables(listener))


class _Profiler:
    """Measures what covers a space."""

    def __init__(
        self,
        request: ProfileRequest,
        space: SearchSpace,
        oracle: MeasuringOracle,
        database: Database,
    ) -> None:
        self._request = request
        self._space = space
        self._oracle = oracle
        self._judge = LatencyJudge(oracle, database, space.digest)

    def tables(self, listener: Listener) -> Iterator[LatencyTable]:
        """Yield the table of each precision, once it is written."""
        chosen = self._covering(listener)
        for precision in self._space.precisions:
            listener.stage(f"Measure in {precision}", len(chosen))
            rows = self._rows(chosen, precision, listener)
            table = LatencyTable.of(
                self._checked(rows, precision, listener),
                self._oracle.environment(precision),
                hardware=self._oracle.hardware.name,
                space=self._space.name,
                space_digest=self._space.digest,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                commit=installed_versions()["nas-detector"],
                versions=installed_versions(),
            )
            table.save(self._request.folder)
            yield table

    def _covering(self, listener: Listener) -> list[Network]:
        """Choose the networks whose latencies tell the most about all others."""
        request, space = self._request, self._space
        generator = np.random.default_rng(request.seed)
        points = [
            *space.anchors.values(),
            *(space.sample(generator) for _ in range(request.pool)),
        ]
        found = {}
        for point in points:
            architecture = space.candidate(point, request.classes).architecture
            found[architecture.digest] = self._judge.network(architecture)
        pool, features = list(found.values()), []
        listener.stage("Look at the space", len(pool))
        for done, network in enumerate(pool, start=1):
            features.append(network.features)
            listener.advance(done)
        anchors = list(range(min(len(space.anchors), request.measurements)))
        wanted = min(request.measurements, len(pool)) - len(anchors)
        rest = cover(np.stack(features), wanted, chosen=anchors)
        return [pool[index] for index in (*anchors, *rest)]

    def _rows(self, chosen: list[Network], precision: str, listener: Listener) -> list[TableRow]:
        rows: list[TableRow] = []
        failures: list[NasError] = []
        for done, network in enumerate(chosen, start=1):
            assert network.architecture is not None
            candidate = {"architecture": network.architecture, "precision": precision}
            try:
                found = self._judge(Candidate.model_validate(candidate))
            except (EngineError, ExportError, MeasurementError) as error:
                failures.append(error)
                listener.say(f"A network could not be measured: {error}", warning=True)
                continue
            rows.append(_row(network.architecture, network.features, found))
            listener.advance(done, f"{found.ms:.3f} ms")
        if len(rows) < LEAST_SAMPLES:
            raise failures[0]
        return rows

    def _checked(
        self, rows: list[TableRow], precision: str, listener: Listener
    ) -> Iterator[TableRow]:
        """Measure again what a neighbour on the machine seems to have slowed down."""
        features, ms = np.stack([row.features for row in rows]), np.array([row.ms for row in rows])
        suspects = LatencyPredictor.fit(features, ms).leave_one_out().suspects
        if suspects:
            listener.say(f"{len(suspects)} of {len(rows)} look too slow, and are measured again.")
        for index, row in enumerate(rows):
            if index not in suspects:
                yield row
                continue
            network = self._judge.network(row.architecture)
            again = self._oracle.confirm(network, network.onnx, precision)
            yield row if row.ms <= again.ms else _row(row.architecture, row.features, again)


def _row(
    architecture: Architecture, features: npt.NDArray[np.float64], latency: Latency
) -> TableRow:
    return TableRow(architecture, features, latency.ms, latency.low_ms, latency.high_ms)
