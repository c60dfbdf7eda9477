from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError, MeasurementError, UnknownNameError
from nas.latency.clock import Clock, Elapsed, Timers
from nas.latency.throttling import Sight
from nas.latency.timing import ClockSettings, ProtocolName, Timing


class World:
    """Time that passes only when somebody works: everything about a clock but the real one."""

    def __init__(self, seed: int = 0, *, read_ns: int = 500) -> None:
        self.cpu = self.wall = 0
        self.neighbours_s = 0.0
        self.own_cpus = 1.0
        self.slept_s: list[float] = []
        self._read_ns = read_ns
        self._rng = np.random.default_rng(seed)

    def work(self, ns: float, noise: float = 0.0) -> Callable[[], None]:
        """A callable that takes `ns`, plus noise that only ever adds."""

        def run() -> None:
            taken = int(ns * (1 + noise * self._rng.exponential()))
            self.cpu += int(taken * self.own_cpus)
            self.wall += taken

        return run

    def read_cpu(self) -> int:
        self.cpu += self._read_ns
        self.wall += self._read_ns
        return self.cpu

    def read_wall(self) -> int:
        return self.wall

    def busy_s(self) -> float:
        return self.cpu / 1e9 + self.neighbours_s * self.wall / 1e9

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.wall += int(seconds * 1e9)

    def clock(
        self,
        *,
        threads: int = 1,
        on_cpu: bool = True,
        protocol: ProtocolName = "hot",
        settings: ClockSettings | None = None,
        watch: Watchman | None = None,
    ) -> Clock:
        return Clock(
            threads=threads,
            on_cpu=on_cpu,
            protocol=protocol,
            settings=settings,
            timers=Timers(self.read_cpu, self.read_wall, self.busy_s, self.sleep),
            watch=watch,
        )


class Watchman:
    """Says what a test wants to hear, block by block; the last word is repeated."""

    name = "a watchman"

    def __init__(self, sights: Sequence[Sight | Exception]) -> None:
        self._sights = list(sights)
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1

    def end(self) -> Sight:
        sight = self._sights.pop(0) if len(self._sights) > 1 else self._sights[0]
        if isinstance(sight, Exception):
            raise sight
        return sight


@given(ns=st.floats(2e4, 5e7), noise=st.floats(0, 0.02), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_measure__finds_the_true_time(ns: float, noise: float, seed: int) -> None:
    world = World(seed)
    timing = world.clock().measure(world.work(ns, noise), world.work(1e6, noise), 1.0)
    assert timing.ms == pytest.approx(ns / 1e6, rel=0.02)
    assert timing.converged
    assert timing.low_ms <= timing.ms <= timing.high_ms


def test_measure__scales_with_the_calibrated_reference() -> None:
    world = World()
    timing = world.clock().measure(world.work(2e6), world.work(1e6), 0.5)
    assert timing.ratio == pytest.approx(2, rel=1e-3)
    assert timing.ms == pytest.approx(1, rel=1e-3)


def test_measure__slowdown_of_the_whole_machine_cancels() -> None:
    slow, fast = World(1), World(1)
    timings = [
        world.clock().measure(world.work(3e6 * factor, 0.01), world.work(1e6 * factor, 0.01), 1.0)
        for world, factor in ((slow, 1.3), (fast, 1.0))
    ]
    assert timings[0].ms == pytest.approx(timings[1].ms, rel=0.01)


def test_measure__slow_runs_of_neighbours_do_not_move_it() -> None:
    world = World()
    quiet = world.work(1e6)
    runs = iter(range(10**6))

    def disturbed() -> None:
        quiet()
        if next(runs) % 3:
            world.work(4e5)()

    timing = world.clock().measure(disturbed, world.work(1e6), 1.0)
    assert timing.ms == pytest.approx(1, rel=0.01)


def test_measure__is_the_same_with_the_same_seed() -> None:
    def once() -> object:
        world = World(3)
        return world.clock().measure(world.work(1e6, 0.1), world.work(1e6, 0.1), 1.0)

    assert once() == once()


def test_measure__noise_that_stays_is_reported_not_hidden() -> None:
    world = World()
    rng = np.random.default_rng(0)

    def erratic() -> None:
        world.work(1e6 * rng.uniform(1, 100))()

    wanted = ClockSettings(half_width=0.01, min_blocks=3, max_blocks=6)
    timing = world.clock(settings=wanted).measure(erratic, world.work(1e6), 1.0)
    assert not timing.converged
    assert timing.blocks == 6
    assert timing.half_width > 0.01


def test_measure__runs_shorter_than_a_reading_are_batched() -> None:
    world = World(read_ns=500)
    timing = world.clock().measure(world.work(1000), world.work(1e6), 1.0)
    assert timing.ms == pytest.approx(1e-3, rel=0.01)
    assert timing.runs / timing.blocks >= 50 * 10


def test_measure__second_thread_in_the_process_is_an_error() -> None:
    world = World()
    world.own_cpus = 1.9
    with pytest.raises(MeasurementError, match=r"1\.9 CPUs"):
        world.clock().measure(world.work(1e6), world.work(1e6), 1.0)


def test_measure__blocks_with_a_second_thread_are_rejected() -> None:
    world = World()
    runs = iter(range(10**6))

    def sometimes() -> None:
        world.own_cpus = 2.0 if next(runs) % 100 > 80 else 1.0
        world.work(1e6)()

    timing = world.clock().measure(sometimes, world.work(1e6), 1.0)
    assert timing.rejected > 0
    assert timing.ms == pytest.approx(1, rel=0.01)


def test_measure__another_device_is_timed_by_the_wall() -> None:
    """Its process only waits meanwhile: CPU time would say that it costs next to nothing."""
    world = World()
    world.own_cpus = 0.001
    timing = world.clock(on_cpu=False).measure(world.work(3e6), world.work(1e6), 1.0)
    assert timing.clock == "wall"
    assert timing.ms == pytest.approx(3, rel=0.01)


def test_measure__several_threads_are_timed_by_the_wall() -> None:
    world = World()
    world.own_cpus = 2.0
    timing = world.clock(threads=2).measure(world.work(3e6), world.work(1e6), 1.0)
    assert timing.clock == "wall"
    assert timing.ms == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("neighbours", [0.0, 1.5])
def test_measure__other_load_is_what_neighbours_use(neighbours: float) -> None:
    world = World()
    world.neighbours_s = neighbours
    timing = world.clock().measure(world.work(1e6), world.work(1e6), 1.0)
    assert timing.other_load == pytest.approx(neighbours, abs=0.02)


@pytest.mark.parametrize(
    ("threads", "on_cpu", "neighbours", "disturbed"),
    [
        (1, True, 1.5, False),
        (2, True, 1.5, True),
        (2, True, 0.05, False),
        (1, False, 1.5, False),
    ],
)
def test_measure__wall_clock_of_a_shared_processor_is_marked(
    threads: int, on_cpu: bool, neighbours: float, disturbed: bool
) -> None:
    world = World()
    world.neighbours_s = neighbours
    clock = world.clock(threads=threads, on_cpu=on_cpu)
    assert clock.measure(world.work(1e6), world.work(1e6), 1.0).disturbed == disturbed


@given(seed=st.integers(0, 99), reference_ms=st.sampled_from([1.0, 2.0]))
@settings(max_examples=20, deadline=None)
def test_percentiles__are_those_of_the_runs_on_the_scale_of_the_latency(
    seed: int, reference_ms: float
) -> None:
    world = World()
    rng = np.random.default_rng(seed)

    def varying() -> None:
        world.work(4e6 * (1 + rng.random()))()

    wanted = ClockSettings(half_width=0.001, min_blocks=24, block_ms=100)
    timing = world.clock(settings=wanted).measure(varying, world.work(1e6), reference_ms)
    assert None not in {timing.p50_ms, timing.p90_ms, timing.p99_ms}
    found = np.array([timing.p50_ms, timing.p90_ms, timing.p99_ms], float)
    np.testing.assert_allclose(found, np.array([6, 7.6, 7.96]) * reference_ms, rtol=0.12)
    assert timing.ms <= found[0] <= found[1] <= found[2]


def test_buffered__times_the_first_run_after_a_pause() -> None:
    world = World()
    slept = 0

    def cold_after_a_pause() -> None:
        nonlocal slept
        world.work(3e6 if len(world.slept_s) > slept else 1e6)()
        slept = len(world.slept_s)

    clock = world.clock(protocol="buffered")
    timing = clock.measure(cold_after_a_pause, world.work(2e6), 2.0)
    assert timing.ms == pytest.approx(3, rel=1e-2)
    assert timing.protocol == "buffered 200 ms"
    assert timing.runs == timing.blocks == 16
    assert world.slept_s == [0.2] * 32  # one before each run, of candidate and reference


def test_buffered__runs_nothing_untimed_in_between() -> None:
    world = World()
    order: list[str] = []

    def running(name: str) -> Callable[[], None]:
        return lambda: (order.append(name), world.work(1e6)())[1]

    clock = world.clock(protocol="buffered", settings=ClockSettings(pause_ms=50, warmup_ms=1))
    timing = clock.measure(running("C"), running("R"), 1.0)
    assert "".join(order).endswith("CR" * timing.blocks)
    assert len(order) < 2 * timing.blocks + 8  # and the warm-up before


def test_buffered__estimates_the_median() -> None:
    world = World()
    rng = np.random.default_rng(0)

    def erratic() -> None:
        world.work(1e6 * rng.uniform(1, 3))()

    wanted = ClockSettings(half_width=0.001, max_pauses=60)
    timing = world.clock(protocol="buffered", settings=wanted).measure(
        erratic, world.work(1e6), 1.0
    )
    assert timing.blocks == 60
    assert timing.ms == pytest.approx(timing.p50_ms)
    assert timing.ms == pytest.approx(2, rel=0.15)


def test_protocol__pause_is_in_its_name() -> None:
    world = World()
    names = {
        world.clock(protocol="buffered", settings=ClockSettings(pause_ms=pause)).protocol
        for pause in (200, 201, 0.5)
    }
    assert names == {"buffered 200 ms", "buffered 201 ms", "buffered 0.5 ms"}
    assert world.clock().protocol == "hot"


def test_timing__of_version_0_1_is_still_read() -> None:
    """As databases hold it, and with none of the fields that came later."""
    old: dict[str, Any] = {
        "ms": 2.0,
        "low_ms": 1.9,
        "high_ms": 2.1,
        "ratio": 2.0,
        "blocks": 8,
        "rejected": 0,
        "runs": 80,
        "protocol": "hot",
        "clock": "process CPU time",
        "converged": True,
        "other_load": None,
    }
    timing = Timing(**old)
    assert (timing.p50_ms, timing.throttled, timing.disturbed) == (None, False, False)
    assert Timing(**json.loads(json.dumps(dataclasses.asdict(timing)))) == timing


def test_protocol__unknown_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="lukewarm"):
        Clock(protocol="lukewarm")  # type: ignore[arg-type]  # as a user may


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("leap_ns", [-(10**12), 10**12])
@pytest.mark.parametrize("when", [0, 1, 5, 60, 300])
def test_measure__survives_a_clock_that_jumps_once(threads: int, leap_ns: int, when: int) -> None:
    world = World()
    runs = iter(range(10**6))

    def jumping() -> None:
        world.work(2e6)()
        if next(runs) == when:
            world.cpu += leap_ns
            world.wall += leap_ns

    wanted = ClockSettings(min_blocks=22)
    timing = world.clock(threads=threads, settings=wanted).measure(jumping, world.work(1e6), 1.0)
    assert timing.ms == pytest.approx(2, rel=0.01)
    assert timing.p99_ms == pytest.approx(2, rel=0.01)
    assert timing.rejected == sum(timing.rejected_by.values())
    assert set(timing.rejected_by) <= {"the clock leapt"}


def test_measure__suspended_machine_spoils_one_buffered_run() -> None:
    world = World()
    runs = iter(range(10**6))

    def suspended() -> None:
        world.work(2e6 * (1e6 if next(runs) == 20 else 1))()

    clock = world.clock(protocol="buffered", on_cpu=False)
    timing = clock.measure(suspended, world.work(1e6), 1.0)
    assert timing.p99_ms == pytest.approx(2, rel=0.01)
    assert timing.rejected_by == {"the clock leapt": 1}


def test_measure__clock_that_keeps_going_backwards_is_an_error() -> None:
    world = World()
    runs = iter(range(10**6))

    def back() -> None:
        world.work(1e6)()
        if next(runs) > 40:
            world.wall -= 10**7

    with pytest.raises(MeasurementError, match=r"went backwards or leapt: it was sound in \d+ of"):
        world.clock(threads=2).measure(back, world.work(1e6), 1.0)


def test_measure__clock_that_stands_still_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.latency.clock._MOST_WARMUPS", 1000)
    timers = Timers(cpu_ns=lambda: 7, wall_ns=lambda: 7, busy_s=lambda: None)
    with pytest.raises(MeasurementError, match="stands still: 1000 runs took 0 ns"):
        Clock(timers=timers).measure(lambda: None, lambda: None, 1.0)


def test_throttled__few_blocks_are_thrown_away() -> None:
    world = World()
    hot, cool = Sight("power cap", 1500.0), Sight(None, 1500.0)
    watch = Watchman([cool, hot, cool, Sight(None, 1200.0), cool])
    timing = world.clock(watch=watch).measure(world.work(2e6), world.work(1e6), 1.0)
    assert timing.rejected_by == {"power cap": 1, "another clock than usual": 1}
    assert timing.rejected == 2
    assert timing.blocks == 8
    assert watch.begun == 10
    assert not timing.throttled
    assert timing.watch == "a watchman"
    assert world.slept_s == []


def test_throttled__blocks_of_a_slow_clock_do_not_move_the_figure() -> None:
    """The reference slows down less, so that the ratio would not take it out."""
    world = World()
    watch = Watchman([Sight(None, 1500.0)])
    runs = iter(range(10**6))
    slow = range(61, 81)  # two blocks of 10 runs, after 11 to warm up

    def slowed() -> None:
        run = next(runs)
        watch._sights = [Sight(None, 1000.0 if run in slow else 1500.0)]
        world.work(2e6 * (0.5 if run in slow else 1))()

    wanted = ClockSettings(min_blocks=20)
    clock = world.clock(on_cpu=False, settings=wanted, watch=watch)
    timing = clock.measure(slowed, world.work(1e6), 1.0)
    assert timing.rejected_by == {"another clock than usual": 2}
    assert timing.low_ms == pytest.approx(2, rel=0.01)


def test_throttled__device_that_cools_down_is_given_time() -> None:
    world = World()
    watch = Watchman([Sight("power cap")] * 8 + [Sight()])
    timing = world.clock(watch=watch).measure(world.work(2e6), world.work(1e6), 1.0)
    assert not timing.throttled
    assert timing.rejected == 0
    assert set(world.slept_s) == {0.1}


def test_throttled__device_that_stays_hot_is_marked_after_twice_the_rest() -> None:
    world = World()
    watch = Watchman([Sight("power cap", 900.0)])
    timing = world.clock(watch=watch).measure(world.work(2e6), world.work(1e6), 1.0)
    assert timing.throttled
    assert timing.ms == pytest.approx(2, rel=0.01)
    assert set(timing.rejected_by) == {"power cap"}
    assert timing.blocks >= 8
    assert world.slept_s[:8] == [0.1] * 8
    assert set(world.slept_s[8:]) == {0.2}


def test_throttled__buffered_pause_stays_what_its_name_says() -> None:
    world = World()
    watch = Watchman([Sight("power cap")])
    timing = world.clock(protocol="buffered", watch=watch).measure(
        world.work(2e6), world.work(1e6), 1.0
    )
    assert timing.throttled
    assert set(world.slept_s) == {0.2}


@pytest.mark.parametrize("protocol", ["hot", "buffered"])
def test_watch__device_that_disappears_ends_the_measurement(protocol: ProtocolName) -> None:
    world = World()
    watch = Watchman([Sight(), Sight(), MeasurementError("The GPU does not answer any more.")])
    with pytest.raises(MeasurementError, match="does not answer any more"):
        world.clock(protocol=protocol, watch=watch).measure(world.work(1e6), world.work(1e6), 1.0)


@pytest.mark.parametrize("reference_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_measure__impossible_reference_is_an_error(reference_ms: float) -> None:
    world = World()
    with pytest.raises(InputError, match="reference_ms"):
        world.clock().measure(world.work(1e6), world.work(1e6), reference_ms)


def test_calibrate__finds_the_true_time() -> None:
    world = World()
    calibration = world.clock().calibrate(world.work(4e5, 0.01))
    assert calibration.ms == pytest.approx(0.4, rel=0.01)
    assert calibration.low_ms <= calibration.ms <= calibration.high_ms


@pytest.mark.parametrize(
    "values",
    [
        {"half_width": 0},
        {"min_blocks": 2},
        {"min_blocks": 9, "max_blocks": 8},
        {"min_samples": 0},
        {"min_pauses": 61},
        {"pause_ms": 0},
        {"pause_ms": float("nan")},
    ],
)
def test_settings__impossible_values_are_errors(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="got"):
        ClockSettings(**values)


def test_real_clock__eight_times_the_work_takes_longer() -> None:
    matrix = np.random.default_rng(0).random((64, 64))

    def work(times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(100 * times):
                np.tanh(matrix)

        return run

    quick = ClockSettings(half_width=0.5, min_blocks=3, max_blocks=4, block_ms=2)
    timing = Clock(settings=quick).measure(work(8), work(1), 1.0)
    assert 4 < timing.ratio < 16


def test_elapsed__grows() -> None:
    elapsed = Elapsed()
    first = elapsed.wall_s, elapsed.cpu_s
    sum(range(100_000))
    assert elapsed.wall_s > first[0] >= 0
    assert elapsed.cpu_s > first[1] >= 0
