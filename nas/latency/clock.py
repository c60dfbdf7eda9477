"""The only clock of the project: what a latency means, and how sure it is.

**Ratio to a reference.** On a machine that others share, the CPU time of the same network moves by
10 % and more with what its neighbours do to the caches. A fixed network, run in turns with the
candidate, moves with it. So blocks of runs alternate C R C R ..., and

    latency = low percentile of C / low percentile of R x R_0

over the samples of all blocks, where `R_0` is the reference's own time, calibrated once per
environment. Neighbours only ever add time, so a low percentile finds what the network costs by
itself: between processes on a busy machine it varied half as much as medians of block ratios.

**The interval** is a bootstrap over blocks, not over runs, because the runs of a block share one
state of the machine. It is narrow if most blocks saw the undisturbed network, and wide if only one
did. It knows this process only: another process has other memory, and differs by a little more.
`R_0` scales all candidates alike and cannot change their order, so its error is not in it.

**Process CPU time** is used for engines with one thread: it does not count the time that the
scheduler gave to somebody else. It counts *all* threads of this process, so nothing else may run
in the process during a measurement; blocks in which more than one thread was busy are rejected.
Engines with several threads are timed by the wall clock, which is only trustworthy on an idle
machine: `Timing.other_load` says how idle it was.

**Hot protocol**: runs follow each other without a pause, on one input, after a warm-up.

Everything that reads a clock lives here, so that no other room can measure time in its own way.
`Elapsed` serves progress displays.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from nas.errors import InputError, MeasurementError

__all__ = [
    "PROTOCOL",
    "Calibration",
    "Clock",
    "ClockName",
    "ClockSettings",
    "Elapsed",
    "Timers",
    "Timing",
]

PROTOCOL = "hot"
"""Name of the protocol, part of every cache key: a change that moves the numbers renames it."""

ClockName = Literal["process CPU time", "wall"]

_Samples = npt.NDArray[np.float64]

# Reading the clock may cost at most this share of a sample; shorter runs are timed in batches.
_LARGEST_OVERHEAD = 0.01
# Above this many busy CPUs, a block of a one-thread engine was not alone in its process.
_ALONE_CPUS = 1.1
# More samples per block say little more, and cost time in the bootstrap.
_MOST_SAMPLES = 10
_RESAMPLES = 400
# A coarse clock stands still for many readings before it steps.
_STEPS, _MOST_READINGS = 50, 200_000
_PROC_STAT = Path("/proc/stat")
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Timing:
    """One measured latency.

    Args:
        ms: the latency, `ratio` x the calibrated reference.
        low_ms: lower end of the 95 % bootstrap interval over blocks.
        high_ms: upper end.
        ratio: candidate / reference, each the low percentile of its samples.
        blocks: pairs of blocks that count.
        rejected: pairs of blocks that were thrown away because the process was not alone in itself.
        runs: runs of the candidate in the blocks that count.
        protocol: `PROTOCOL`.
        clock: which clock timed it.
        converged: whether the interval is as narrow as was wanted.
        other_load: CPUs that other processes kept busy meanwhile; None where Linux does not tell.
    """

    ms: float
    low_ms: float
    high_ms: float
    ratio: float
    blocks: int
    rejected: int
    runs: int
    protocol: str
    clock: ClockName
    converged: bool
    other_load: float | None

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the latency."""
        return (self.high_ms - self.low_ms) / 2 / self.ms


@dataclass(frozen=True)
class Calibration:
    """The reference's own time per run, in ms, with its 95 % bootstrap interval over blocks."""

    ms: float
    low_ms: float
    high_ms: float


class Elapsed:
    """Wall and process CPU seconds since it was made: for progress displays and cost reports."""

    def __init__(self) -> None:
        self._wall_s = time.monotonic()
        self._cpu_s = time.process_time()

    @property
    def wall_s(self) -> float:
        """Wall seconds since the start."""
        return time.monotonic() - self._wall_s

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all threads of this process since the start."""
        return time.process_time() - self._cpu_s


def _machine_busy_s() -> float | None:
    """Busy CPU seconds of the machine since boot: user, nice, system, irq, softirq, stolen."""
    try:
        fields = _PROC_STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) * 0.01  # USER_HZ is 100 on Linux


@dataclass(frozen=True)
class Timers:
    """The sources of time; a test replaces them by counters.

    Args:
        cpu_ns: CPU nanoseconds of this process, all threads.
        wall_ns: monotonic wall nanoseconds.
        busy_s: busy CPU seconds of the whole machine since boot, or None if unknown.
    """

    cpu_ns: Callable[[], int] = time.process_time_ns
    wall_ns: Callable[[], int] = time.perf_counter_ns
    busy_s: Callable[[], float | None] = _machine_busy_s


@dataclass(frozen=True)
class _Plan:
    """A block of one callable: so many samples of so many runs."""

    run: Callable[[], object]
    samples: int
    runs: int


@dataclass(frozen=True)
class _Series:
    """Blocks until they agreed: the interval of their values, and how many counted."""

    interval: tuple[float, float, float]
    kept: int
    rejected: int
    converged: bool


@dataclass(frozen=True, kw_only=True)
class ClockSettings:
    """How long a measurement may take, and how narrow its interval shall be.

    The defaults cost a network of 1 ms about 0.2 CPU seconds.

    Args:
        half_width: wanted half-width of the 95 % interval, relative to the latency.
        min_blocks: pairs of blocks before the interval is looked at.
        max_blocks: pairs of blocks at most, rejected ones included.
        block_ms: how long a block runs ...
        min_samples: ... and how many samples it has at least.
        percentile: which percentile of all samples is the estimate.
        warmup_ms: how long each callable runs before the first block.

    Raises:
        InputError: a value that cannot work.
    """

    half_width: float = 0.02
    min_blocks: int = 8
    max_blocks: int = 24
    block_ms: float = 10.0
    min_samples: int = 5
    percentile: float = 2.0
    warmup_ms: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.half_width < 1:
            raise InputError(f"half_width must lie between 0 and 1, got {self.half_width:g}.")
        if not 3 <= self.min_blocks <= self.max_blocks:
            raise InputError(
                "Blocks must keep 3 <= min_blocks <= max_blocks, "
                f"got {self.min_blocks} and {self.max_blocks}."
            )
        if self.min_samples < 1 or not 0 <= self.percentile <= 100:
            raise InputError(
                "A block needs at least 1 sample and a percentile in 0..100, "
                f"got {self.min_samples} and {self.percentile:g}."
            )


class Clock:
    """Times a callable against a reference callable, in turns.

    Args:
        threads: threads of the engines; 1 is timed by process CPU time, more by the wall clock.
        on_cpu: whether they compute in this process; another device is timed by the wall clock.
        settings: how long and how narrow.
        seed: of the bootstrap.
        timers: the sources of time.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        on_cpu: bool = True,
        settings: ClockSettings | None = None,
        seed: int = 0,
        timers: Timers | None = None,
    ) -> None:
        alone = on_cpu and threads == 1
        self.name: ClockName = "process CPU time" if alone else "wall"
        self.settings = settings or ClockSettings()
        self._seed = seed
        self._timers = timers or Timers()
        self._now = self._timers.cpu_ns if alone else self._timers.wall_ns
        self._read_ns = _reading_cost_ns(self._now)

    def calibrate(self, reference: Callable[[], object]) -> Calibration:
        """Time the reference alone, for as long as a measurement may take: it sets the scale.

        Args:
            reference: runs the reference once, and returns when its result is there.

        Raises:
            MeasurementError: other threads of this process kept disturbing.
        """
        series = self._collect([self._plan(reference)], self.settings.max_blocks)
        return Calibration(*(value / _NS_PER_MS for value in series.interval))

    def measure(
        self,
        candidate: Callable[[], object],
        reference: Callable[[], object],
        reference_ms: float,
    ) -> Timing:
        """Time the candidate against the reference until the interval is narrow or the blocks end.

        A measurement that stays too wide is returned as it is, with `converged` False.

        Args:
            candidate: runs the candidate once, and returns when its result is there.
            reference: runs the reference once.
            reference_ms: the calibrated time of the reference.

        Raises:
            InputError: `reference_ms` is not a positive number.
            MeasurementError: other threads of this process kept disturbing, or the engine used
                more than the one thread that it was built for.
        """
        if not (math.isfinite(reference_ms) and reference_ms > 0):
            raise InputError(f"reference_ms must be a positive number, got {reference_ms:g}.")
        load = _OtherLoad(self._timers)
        plans = [self._plan(candidate), self._plan(reference)]
        series = self._collect(plans, self.settings.min_blocks)
        ratio, low, high = series.interval
        return Timing(
            ms=ratio * reference_ms,
            low_ms=low * reference_ms,
            high_ms=high * reference_ms,
            ratio=ratio,
            blocks=series.kept,
            rejected=series.rejected,
            runs=series.kept * plans[0].samples * plans[0].runs,
            protocol=PROTOCOL,
            clock=self.name,
            converged=series.converged,
            other_load=load.cpus(),
        )

    def _collect(self, plans: list[_Plan], min_blocks: int) -> _Series:
        """Run the plans in turns until the interval is narrow, or the blocks are too many."""
        settings = self.settings
        blocks: list[list[_Samples]] = []  # per plan, the samples of the blocks that count
        cpus: list[float] = []
        interval = (math.nan, -math.inf, math.inf)
        converged = False
        while len(cpus) < settings.max_blocks and not converged:
            turn, used = self._turn(plans)
            cpus.append(used)
            if self.name == "wall" or used <= _ALONE_CPUS:
                blocks.append(turn)
            if len(blocks) >= min_blocks:
                interval = self._interval(blocks)
                converged = _half_width(interval) <= settings.half_width
        if len(blocks) < settings.min_blocks:
            raise MeasurementError(
                f"A one-thread engine must be alone in its process: it was in {len(blocks)} of "
                f"{len(cpus)} blocks, and the median block kept {np.median(cpus):.1f} CPUs busy.",
                "Stop the other threads of this process, or build the engine with more threads.",
            )
        if not converged:
            interval = self._interval(blocks)
        return _Series(interval, len(blocks), len(cpus) - len(blocks), converged)

    def _plan(self, run: Callable[[], object]) -> _Plan:
        """Warm up, and divide a block into samples that are long enough for the clock."""
        run()  # the first run allocates: it warms up, and says nothing about the next ones
        start, count, elapsed = self._now(), 0, 0
        warmup_ns = max(self.settings.warmup_ms * _NS_PER_MS, 10 * self._read_ns)
        while elapsed < warmup_ns:
            run()
            count += 1
            elapsed = self._now() - start
        run_ns = elapsed / count
        block_ns = self.settings.block_ms * _NS_PER_MS
        shortest_ns = max(block_ns / _MOST_SAMPLES, self._read_ns / _LARGEST_OVERHEAD)
        runs = max(1, round(shortest_ns / run_ns))
        samples = round(block_ns / (runs * run_ns))
        return _Plan(run, min(max(samples, self.settings.min_samples), _MOST_SAMPLES), runs)

    def _turn(self, plans: list[_Plan]) -> tuple[list[_Samples], float]:
        """One block of each plan; their samples, and how many CPUs the process used at most."""
        turn, most = [], 0.0
        for plan in plans:
            cpu, wall = self._timers.cpu_ns(), self._timers.wall_ns()
            turn.append(self._block(plan))
            cpu, wall = self._timers.cpu_ns() - cpu, self._timers.wall_ns() - wall
            most = max(most, cpu / max(wall, 1))
        return turn, most

    def _block(self, plan: _Plan) -> _Samples:
        """Time the plan's samples back to back; (samples,) ns per run."""
        now, run, runs = self._now, plan.run, plan.runs
        durations = np.empty(plan.samples)
        for index in range(plan.samples):
            start = now()
            for _ in range(runs):
                run()
            durations[index] = now() - start
        samples: _Samples = np.maximum(durations - self._read_ns, 1.0) / runs
        return samples

    def _interval(self, blocks: list[list[_Samples]]) -> tuple[float, float, float]:
        """Estimate over all blocks, and its 95 % percentile-bootstrap interval over blocks.

        The estimate is a low percentile of the first plan's samples, divided by that of the second
        one's if there are two.
        """
        draws = np.random.default_rng(self._seed).integers(
            len(blocks), size=(_RESAMPLES, len(blocks))
        )
        draws = np.concatenate([np.arange(len(blocks))[None], draws])  # row 0: as it happened
        lows = []
        for samples in zip(*blocks, strict=True):
            drawn = np.stack(samples)[draws].reshape(len(draws), -1)
            lows.append(np.percentile(drawn, self.settings.percentile, axis=1))
        estimates = lows[0] / lows[1] if len(lows) > 1 else lows[0]
        middle = float(estimates[0])
        low, high = np.percentile(estimates[1:], [2.5, 97.5])
        return middle, min(float(low), middle), max(float(high), middle)


class _OtherLoad:
    """CPUs that other processes keep busy, since it was made."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._start = self._read()

    def cpus(self) -> float | None:
        (busy, own, wall), (busy0, own0, wall0) = self._read(), self._start
        if busy is None or busy0 is None or wall <= wall0:
            return None
        return max(0.0, ((busy - busy0) - (own - own0)) / (wall - wall0))

    def _read(self) -> tuple[float | None, float, float]:
        timers = self._timers
        return timers.busy_s(), timers.cpu_ns() / 1e9, timers.wall_ns() / 1e9


def _reading_cost_ns(now: Callable[[], int]) -> float:
    """What one reading adds to a sample: its duration, or the clock's tick where that is longer."""
    steps: list[int] = []
    last = now()
    for _ in range(_MOST_READINGS):
        reading = now()
        if reading > last:
            steps.append(reading - last)
        last = reading
        if len(steps) == _STEPS:
            break
    return statistics.median(steps) if steps else 0.0


def _half_width(interval: tuple[float, float, float]) -> float:
    value, low, high = interval
    return (high - low) / 2 / value
