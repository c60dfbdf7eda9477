from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError, MeasurementError
from nas.latency.clock import Clock, ClockSettings, Elapsed, Timers


class World:
    """Time that passes only when somebody works: everything about a clock but the real one."""

    def __init__(self, seed: int = 0, *, read_ns: int = 500) -> None:
        self.cpu = self.wall = 0
        self.neighbours_s = 0.0
        self.own_cpus = 1.0
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

    def clock(
        self, *, threads: int = 1, on_cpu: bool = True, settings: ClockSettings | None = None
    ) -> Clock:
        timers = Timers(cpu_ns=self.read_cpu, wall_ns=self.read_wall, busy_s=self.busy_s)
        return Clock(threads=threads, on_cpu=on_cpu, settings=settings, timers=timers)


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
    [{"half_width": 0}, {"min_blocks": 2}, {"min_blocks": 9, "max_blocks": 8}, {"min_samples": 0}],
)
def test_settings__impossible_values_are_errors(values: dict[str, int]) -> None:
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
