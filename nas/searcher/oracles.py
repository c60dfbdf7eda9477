"""Which oracle answers for a device: where it is attached, where it was profiled, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nas.errors import InputError, MeasurementError
from nas.latency.hardware import Hardware
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import EstimatingOracle, LatencyOracle, MeasuringOracle, TableOracle
from nas.latency.runtimes.base import Runtime
from nas.latency.runtimes.literal import LiteralRuntime
from nas.latency.table import LatencyTable, load_tables
from nas.searcher.commands import command_on
from nas.searcher.database import Database
from nas.searcher.progress import Listener
from nas.searcher.request import Request
from nas.space.space import SearchSpace
from nas.units import percent

__all__ = ["Answers", "open_answers"]

_Tables = Mapping[str, LatencyTable]


@dataclass(frozen=True)
class Answers:
    """Who answers what candidates cost, and what computes their accuracy.

    Attributes:
        oracle: answers.
        target: name of the runtime that the answers are about.
        runtime: builds the engines that are scored; another one where the device is not attached.
        space: the part of the space that can be answered for.
    """

    oracle: LatencyOracle
    target: str
    runtime: Runtime
    space: SearchSpace


def open_answers(
    request: Request, hardware: Hardware, space: SearchSpace, database: Database, listener: Listener
) -> Answers:
    """Choose the surest oracle that there is, and say so if it does not measure.

    Raises:
        MeasurementError: the device is not attached, and only measurements will do.
        SpaceError: the space has no precision that can be answered for.
        InputError: a table belongs to another environment, or is broken; or nothing is known about
            the device.
    """
    if request.precisions:
        space = space.in_precisions(request.precisions)
    try:
        runtime = runtime_for(hardware, request.runtime)
    except MeasurementError as absence:
        if request.latency == "measured":
            raise
        return _elsewhere(request, hardware, space, absence, listener)
    space = _usual(space, hardware, runtime.precisions, listener, named=bool(request.precisions))
    oracle = _measuring(request, hardware, runtime, space, database, listener)
    return Answers(oracle, runtime.name, runtime, space)


def _measuring(
    request: Request,
    hardware: Hardware,
    runtime: Runtime,
    space: SearchSpace,
    database: Database,
    listener: Listener,
) -> MeasuringOracle:
    meter = LatencyMeter(
        hardware,
        runtime,
        precisions=space.precisions,
        store=database,
        isolated=True,
        on_wait=listener.say,
    )
    predicts = request.latency == "auto"
    tables = _tables(request, hardware, runtime.name) if predicts else {}
    if request.table is None:  # what the workspace happens to have may be of another time
        tables = {
            name: one
            for name, one in tables.items()
            if name in space.precisions and one.environment == meter.environment(name)
        }
    prior = load_tables(request.prior, runtime.name) if request.prior else {}
    return MeasuringOracle(
        meter, predicts=predicts, table=_within(tables, space), prior=_within(prior, space)
    )


def _elsewhere(
    request: Request,
    hardware: Hardware,
    space: SearchSpace,
    absence: MeasurementError,
    listener: Listener,
) -> Answers:
    """Answer from a table of the device, or from its data sheet; loudly."""
    target = request.runtime or hardware.runtime
    oracle: LatencyOracle
    if tables := _tables(request, hardware, target):
        oracle = TableOracle(hardware, tables)
        how = f"from latency tables of {hardware.name}, profiled elsewhere"
    else:
        oracle = _estimating(hardware, absence)
        how = f"ESTIMATED from the data sheet of {hardware.name}: nothing was measured on one"
    listener.say(
        f"{absence.message} Latencies are {how}, with {percent(oracle.level)} intervals, and the "
        "budget is not promised. To refuse this: --latency measured. Where the device is:\n  "
        + command_on(request, "measure", study=request.study or "NAME"),
        warning=True,
    )
    precisions = [one for one in oracle.precisions if one in LiteralRuntime.precisions]
    space = _usual(space, hardware, precisions, listener, named=bool(request.precisions))
    return Answers(oracle, target, LiteralRuntime(), space)


def _estimating(hardware: Hardware, absence: MeasurementError) -> EstimatingOracle:
    try:
        return EstimatingOracle(hardware)
    except InputError as error:
        raise MeasurementError(
            f"{absence.message} Nor can it be estimated. {error.message}", error.remedy
        ) from absence


def _usual(
    space: SearchSpace,
    hardware: Hardware,
    precisions: tuple[str, ...] | list[str],
    listener: Listener,
    *,
    named: bool,
) -> SearchSpace:
    """Leave out what cannot be answered for; a GPU's usual precision replaces the processor's."""
    stated = space.precisions
    possible = [one for one in hardware.precisions if one in precisions]
    one_of_the_processor = not named and hardware.kind != "cpu" and len(stated) == 1
    if possible and one_of_the_processor and stated[0] != possible[0]:
        listener.say(
            f"The space is written in {stated[0]}; candidates for {hardware.name} are in "
            f"{possible[0]}. --precision chooses others.",
        )
        return space.in_precisions(possible[:1])
    kept = space.within(precisions)
    if left_out := [one for one in stated if one not in kept.precisions]:
        listener.say(
            f"Candidates in {', '.join(left_out)} are left out of the space: only "
            f"{', '.join(precisions)} can be answered for.",
            warning=True,
        )
    return kept


def _tables(request: Request, hardware: Hardware, runtime: str) -> dict[str, LatencyTable]:
    """Read the tables that the user names, or those that the workspace has for the device."""
    folder = request.table or request.workspace.latency_tables / hardware.name
    return load_tables(folder, runtime) if request.table or folder.is_dir() else {}


def _within(tables: _Tables, space: SearchSpace) -> dict[str, LatencyTable]:
    return {name: one for name, one in tables.items() if name in space.precisions}
