"""The only clock of the project: what a latency means, and how sure it is.

**Ratio to a reference.** On a machine that others share, the CPU time of the same network moves by
10 % and more with what its neighbours do to the caches. A fixed network, run in turns with the
candidate, moves with it. So blocks of runs alternate C R C R ..., and

    latency = estimate of C / estimate of R x R_0

over the samples of all blocks, where `R_0` is the reference's own time, calibrated once per
environment. Hot, the estimate is a low percentile: neighbours only ever add time, so it finds what
the network costs by itself; between processes on a busy machine it varied half as much as medians
of block ratios. Buffered, it is the median: what leaves the caches during a pause is part of the
answer. `nas.latency.timing` says what the protocols are.

**The interval** is a bootstrap over blocks, not over runs, because the runs of a block share one
state of the machine. It is narrow if most blocks saw the undisturbed network, and wide if only one
did. It knows this process only: another process has other memory, and differs by a little more.
`R_0` scales all candidates alike and cannot change their order, so its error is not in it.

**Process CPU time** is used for engines with one thread: it does not count the time that the
scheduler gave to somebody else. It counts *all* threads of this process, so nothing else may run
in the process during a measurement; blocks in which more than one thread was busy are rejected.
Engines with several threads are timed by the wall clock, which is only trustworthy on an idle
machine: `Timing.other_load` says how idle it was, and `Timing.disturbed` that it was not.

**Blocks that do not count**: the process was not alone in itself; a clock went backwards or leapt
(a suspended machine); the device was throttled. If the last happens in more than 30 % of them, the
device rests between blocks, twice as long the second time; after that the figure is that of a
throttled device, and says so. Buffered blocks have a pause of their own, which is in the name of
the protocol and stays as it is.

Everything that reads a clock lives here, so that no other room can measure time in its own way.
`Elapsed` serves progress displays.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.errors import InputError, MeasurementError
from nas.latency.blocks import (
    Interval,
    Samples,
    Turn,
    counting,
    interval,
    percentiles,
    reasons,
    throttles,
    too_few,
)
from nas.latency.throttling import Sight, Watch
from nas.latency.timing import (
    Calibration,
    ClockName,
    ClockSettings,
    ProtocolName,
    Timing,
    protocol_name,
)

__all__ = [
    "Calibration",
    "Clock",
    "ClockName",
    "ClockSettings",
    "Elapsed",
    "ProtocolName",
    "Timers",
    "Timing",
]

# Reading the clock may cost at most this share of a sample; shorter runs are timed in batches.
_LARGEST_OVERHEAD = 0.01
# Above this many busy CPUs, a block of a one-thread engine was not alone in its process.
_ALONE_CPUS = 1.1
# Above this many CPUs that others keep busy, the wall clock of a processor is not to be trusted.
_QUIET_CPUS = 0.1
# More samples per block say little more, and cost time in the bootstrap.
_MOST_SAMPLES = 50
# A coarse clock stands still for many readings before it steps.
_STEPS, _MOST_READINGS = 50, 200_000
# A warm-up that takes so many runs has a clock that stands still.
_MOST_WARMUPS = 5_000_000
# A device that throttles rests so long before each hot block, in one try after the other.
_RESTS_MS = (0.0, 100.0, 200.0)
_PROC_STAT = Path("/proc/stat")
_NS_PER_MS = 1e6


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
        sleep: lets so many seconds pass.
    """

    cpu_ns: Callable[[], int] = time.process_time_ns
    wall_ns: Callable[[], int] = time.perf_counter_ns
    busy_s: Callable[[], float | None] = _machine_busy_s
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class _Plan:
    """A block of one callable: so many samples of so many runs."""

    run: Callable[[], object]
    samples: int
    runs: int


@dataclass(frozen=True)
class _Series:
    """Blocks until they agreed: the interval of their values, and what became of them."""

    interval: Interval
    samples: Samples  # of the first plan, in the blocks that count
    kept: int
    rejected_by: dict[str, int]
    converged: bool
    throttled: bool


class Clock:
    """Times a callable against a reference callable, in turns.

    Args:
        threads: threads of the engines; 1 is timed by process CPU time, more by the wall clock.
        on_cpu: whether they compute in this process; another device is timed by the wall clock.
        protocol: how runs follow each other: `hot` or `buffered`.
        settings: how long and how narrow.
        seed: of the bootstrap.
        timers: the sources of time.
        watch: looks at the device around each block; None if nothing can.

    Raises:
        UnknownNameError: there is no such protocol.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        on_cpu: bool = True,
        protocol: ProtocolName = "hot",
        settings: ClockSettings | None = None,
        seed: int = 0,
        timers: Timers | None = None,
        watch: Watch | None = None,
    ) -> None:
        alone = on_cpu and threads == 1
        self.name: ClockName = "process CPU time" if alone else "wall"
        self.settings = settings or ClockSettings()
        self.protocol = protocol_name(protocol, self.settings)
        self._buffered = protocol == "buffered"
        self._shared = on_cpu and not alone
        self._seed = seed
        self._timers = timers or Timers()
        self._watch = watch
        self._now = self._timers.cpu_ns if alone else self._timers.wall_ns
        self._read_ns = _reading_cost_ns(self._now)

    def calibrate(self, reference: Callable[[], object]) -> Calibration:
        """Time the reference alone, for as long as a measurement may take: it sets the scale.

        Args:
            reference: runs the reference once, and returns when its result is there.

        Raises:
            MeasurementError: other threads of this process kept disturbing, the clock does not
                work, or the device is gone.
        """
        _, most = self._bounds()
        series = self._collect([self._plan(reference)], most)
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
                more than the one thread that it was built for; the clock does not work; the device
                is gone.
        """
        if not (math.isfinite(reference_ms) and reference_ms > 0):
            raise InputError(f"reference_ms must be a positive number, got {reference_ms:g}.")
        load = _OtherLoad(self._timers)
        plans = [self._plan(candidate), self._plan(reference)]
        series = self._collect(plans, self._bounds()[0])
        return self._timing(series, plans[0], reference_ms, load.cpus())

    def _timing(
        self, series: _Series, plan: _Plan, reference_ms: float, load: float | None
    ) -> Timing:
        """Bring a series of the candidate and the reference to the reference's scale."""
        ratio, low, high = series.interval
        found = percentiles(series.samples, [self._percentile, 50, 90, 99])
        p50, p90, p99 = (ratio * reference_ms * one / found[0] for one in found[1:])
        return Timing(
            ms=ratio * reference_ms,
            low_ms=low * reference_ms,
            high_ms=high * reference_ms,
            ratio=ratio,
            blocks=series.kept,
            rejected=sum(series.rejected_by.values()),
            runs=series.kept * plan.samples * plan.runs,
            protocol=self.protocol,
            clock=self.name,
            converged=series.converged,
            other_load=load,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            rejected_by=series.rejected_by,
            throttled=series.throttled,
            disturbed=self._shared and load is not None and load > _QUIET_CPUS,
            watch="nothing" if self._watch is None else self._watch.name,
        )

    def _bounds(self) -> tuple[int, int]:
        """Pairs of blocks at least and at most."""
        one = self.settings
        return (
            (one.min_pauses, one.max_pauses) if self._buffered else (one.min_blocks, one.max_blocks)
        )

    def _collect(self, plans: list[_Plan], enough: int) -> _Series:
        """Run the plans in turns until they agree; let a device that throttles rest, and retry."""
        rests = (0.0,) if self._buffered else _RESTS_MS
        for rest_ms in rests:
            turns = self._turns(plans, enough, rest_ms, hasty=rest_ms != rests[-1])
            if not throttles(turns):
                break
        return self._series(turns, enough)

    def _turns(self, plans: list[_Plan], enough: int, rest_ms: float, *, hasty: bool) -> list[Turn]:
        """Run the plans in turns until the interval is narrow or the blocks are too many.

        Args:
            plans: what to run.
            enough: blocks before the interval is looked at.
            rest_ms: how long the device rests before each turn.
            hasty: end as soon as it is known to throttle.
        """
        least, most = self._bounds()
        turns: list[Turn] = []
        while len(turns) < most:
            if rest_ms:
                self._timers.sleep(rest_ms / 1000)
                for plan in plans:
                    self._warm_up(plan.run)
            turns.append(self._turn(plans))
            if hasty and len(turns) >= least and throttles(turns):
                break
            kept = counting(turns)
            if len(kept) >= enough and self._is_narrow(self._interval(kept)):
                break
        return turns

    def _series(self, turns: list[Turn], enough: int) -> _Series:
        """Judge the turns that count.

        Raises:
            MeasurementError: they are too few.
        """
        least, _ = self._bounds()
        throttled = throttles(turns)
        kept = counting(turns)
        if throttled and len(kept) < least:  # then the throttled device is all there is
            kept = counting(turns, though_throttled=True)
        if len(kept) < least:
            raise too_few(turns)
        found = self._interval(kept)
        return _Series(
            found,
            np.concatenate([turn.samples[0] for turn in kept]),
            len(kept),
            dict(Counter(reason for reason in reasons(turns) if reason)),
            len(kept) >= enough and self._is_narrow(found),
            throttled,
        )

    def _interval(self, turns: list[Turn]) -> Interval:
        return interval(turns, self._percentile, self._seed)

    def _is_narrow(self, found: Interval) -> bool:
        value, low, high = found
        return (high - low) / 2 / value <= self.settings.half_width

    def _plan(self, run: Callable[[], object]) -> _Plan:
        """Warm up, and divide a block into samples that are long enough for the clock."""
        run()  # the first run allocates: it warms up, and says nothing about the next ones
        run_ns = self._warm_up(run)
        if self._buffered:
            return _Plan(run, 1, 1)
        block_ns = self.settings.block_ms * _NS_PER_MS
        shortest_ns = max(block_ns / _MOST_SAMPLES, self._read_ns / _LARGEST_OVERHEAD)
        runs = max(1, round(shortest_ns / run_ns))
        samples = round(block_ns / (runs * run_ns))
        return _Plan(run, min(max(samples, self.settings.min_samples), _MOST_SAMPLES), runs)

    def _warm_up(self, run: Callable[[], object]) -> float:
        """Run for a while; ns per run, roughly, even if the clock leaps or goes backwards once.

        Raises:
            MeasurementError: the clock stands still.
        """
        enough_ns = max(self.settings.warmup_ms * _NS_PER_MS, 10 * self._read_ns, 1)
        last, count, elapsed, longest = self._now(), 0, 0, 0
        while elapsed < enough_ns:
            run()
            now = self._now()
            step, last = max(now - last, 0), now
            elapsed, longest, count = elapsed + step, max(longest, step), count + 1
            if count == _MOST_WARMUPS:
                raise MeasurementError(
                    f"The clock ({self.name}) stands still: {count} runs took {elapsed} ns.",
                    "Look at the clock source of this machine (dmesg, clocksource).",
                )
        rest = elapsed - longest
        return rest / (count - 1) if rest else elapsed / count

    def _turn(self, plans: list[_Plan]) -> Turn:
        """One block of each plan."""
        if self._watch is not None:
            self._watch.begin()
        blocks = [self._block(plan) for plan in plans]
        sight = Sight() if self._watch is None else self._watch.end()
        cpus = max(used for _, used in blocks)
        crowded = self.name != "wall" and cpus > _ALONE_CPUS
        return Turn([block for block, _ in blocks], cpus, crowded, sight)

    def _block(self, plan: _Plan) -> tuple[Samples, float]:
        """Time the plan's samples; (samples,) ns per run, and how many CPUs the process used."""
        if self._buffered:
            self._timers.sleep(self.settings.pause_ms / 1000)
        now, run, runs = self._now, plan.run, plan.runs
        durations = np.empty(plan.samples)
        cpu, wall = self._timers.cpu_ns(), self._timers.wall_ns()
        for index in range(plan.samples):
            start = now()
            for _ in range(runs):
                run()
            durations[index] = now() - start
        cpu, wall = self._timers.cpu_ns() - cpu, self._timers.wall_ns() - wall
        # Less than the cost of a reading is a short run; less than nothing is a broken clock.
        exact = np.where(durations < 0, durations, np.maximum(durations - self._read_ns, 1.0))
        return exact / runs, cpu / max(wall, 1)

    @property
    def _percentile(self) -> float:
        return 50.0 if self._buffered else self.settings.percentile


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
