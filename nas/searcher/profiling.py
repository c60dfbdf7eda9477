"""A latency table: what networks of a space cost on a device, for whoever does not have it.

The networks are chosen to cover the space, not at random: of many candidates, those from whose
latencies the others can be told best (`nas.latency.design`). So a few dozen measurements serve.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from nas.errors import EngineError, ExportError, InputError, MeasurementError, NasError
from nas.latency.design import cover
from nas.latency.hardware import Hardware
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import MeasuringOracle, Network
from nas.latency.predictor import LEAST_SAMPLES
from nas.latency.table import LatencyTable, TableRow
from nas.searcher.database import Database
from nas.searcher.latency_judge import LatencyJudge, untrained_onnx
from nas.searcher.progress import Listener
from nas.searcher.request import Workspace
from nas.searcher.setting import installed_versions
from nas.space.architecture import Architecture, Candidate
from nas.space.space import SearchSpace, load_space

__all__ = ["ProfileRequest", "profile_space"]

_CANDIDATES = 4  # to choose from, for each network that is measured
_CLASSES = 80


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
    classes: int = _CLASSES
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
    chosen = _covering(request, space, listener)
    with LatencyMeter(
        hardware, runtime, precisions=space.precisions, store=database, isolated=True
    ) as meter:
        judge = LatencyJudge(MeasuringOracle(meter, predicts=False), database, space.digest)
        tables = []
        for precision in space.precisions:
            listener.stage(f"Measure in {precision}", len(chosen))
            table = LatencyTable.of(
                _rows(chosen, precision, judge, listener),
                meter.environment(precision),
                hardware=hardware.name,
                space=space.name,
                space_digest=space.digest,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                commit="release",
                versions=installed_versions(),
            )
            table.save(request.folder)
            tables.append(table)
    return tables


_Chosen = list[tuple[Architecture, Network]]


def _covering(request: ProfileRequest, space: SearchSpace, listener: Listener) -> _Chosen:
    """Choose the networks whose latencies tell the most about all others."""
    generator = np.random.default_rng(request.seed)
    points = [*space.anchors.values(), *(space.sample(generator) for _ in range(request.pool))]
    found = {}
    for point in points:
        architecture = space.candidate(point, request.classes).architecture
        found[architecture.digest] = architecture
    pool = [
        (architecture, Network(digest, partial(untrained_onnx, architecture)))
        for digest, architecture in found.items()
    ]
    listener.stage("Look at the space", len(pool))
    features = []
    for done, (_, network) in enumerate(pool, start=1):
        features.append(network.features)
        listener.advance(done)
    anchors = list(range(min(len(space.anchors), request.measurements)))
    wanted = min(request.measurements, len(pool)) - len(anchors)
    rest = cover(np.stack(features), wanted, chosen=anchors)
    return [pool[index] for index in (*anchors, *rest)]


def _rows(
    chosen: _Chosen, precision: str, judge: LatencyJudge, listener: Listener
) -> list[TableRow]:
    rows: list[TableRow] = []
    failures: list[NasError] = []
    for done, (architecture, network) in enumerate(chosen, start=1):
        try:
            found = judge(
                Candidate.model_validate({"architecture": architecture, "precision": precision})
            )
        except (EngineError, ExportError, MeasurementError) as error:
            failures.append(error)
            listener.say(f"A network could not be measured: {error}", warning=True)
            continue
        rows.append(
            TableRow(
                architecture=architecture,
                features=network.features,
                ms=found.ms,
                low_ms=found.low_ms,
                high_ms=found.high_ms,
            )
        )
        listener.advance(done, f"{found.ms:.3f} ms")
    if len(rows) < LEAST_SAMPLES:
        raise failures[0]
    return rows
