from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import MeasurementError
from nas.latency.throttling import (
    REASONS,
    JetsonWatch,
    NvmlWatch,
    ProcessorWatch,
    Sight,
    unfit,
    usual_watch,
)


class FakeNvml:
    """Answers as `pynvml` does, for one GPU."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, reasons: int = 0, clock: int = 1500) -> None:
        self.reasons, self.clock, self.lost = reasons, clock, False
        self.asked_for: list[object] = []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked_for.append(index)
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked_for.append(uuid)
        return "handle"

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        assert handle == "handle"
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return self.reasons

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        assert (handle, kind) == ("handle", self.NVML_CLOCK_SM)
        return self.clock


@pytest.mark.parametrize(("bit", "text"), REASONS.items())
def test_nvml__reasons_that_count(bit: int, text: str) -> None:
    watch = NvmlWatch(FakeNvml(bit))
    watch.begin()
    assert watch.end() == Sight(text, 1500)


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x2, 0x100, 0x103])
def test_nvml__idle_and_locked_clocks_are_no_throttling(bits: int) -> None:
    watch = NvmlWatch(FakeNvml(bits))
    watch.begin()
    assert watch.end().reason is None


@pytest.mark.parametrize(("before", "after"), [(0x4, 0), (0, 0x4)])
def test_nvml__either_end_of_a_block_counts(before: int, after: int) -> None:
    library = FakeNvml(before)
    watch = NvmlWatch(library)
    watch.begin()
    library.reasons = after
    assert watch.end().reason == "power cap"


def test_nvml__several_reasons_are_all_named() -> None:
    watch = NvmlWatch(FakeNvml(0x4 | 0x40))
    watch.begin()
    assert watch.end().reason == "power cap, thermal slowdown by hardware"


@pytest.mark.parametrize(("uuid", "asked"), [(None, 0), ("GPU-1", "GPU-1")])
def test_nvml__watches_the_gpu_that_is_named(uuid: str | None, asked: object) -> None:
    library = FakeNvml()
    NvmlWatch(library, uuid)
    assert library.asked_for == [asked]


def test_nvml__lost_gpu_is_an_error_that_says_so() -> None:
    library = FakeNvml()
    watch = NvmlWatch(library)
    watch.begin()
    library.lost = True
    with pytest.raises(MeasurementError, match=r"does not answer any more.*GPU is lost"):
        watch.end()


def test_nvml__names_are_those_of_the_package() -> None:
    pynvml: Any = pytest.importorskip("pynvml", exc_type=ImportError)
    names = {
        "SwPowerCap": 0x04,
        "HwSlowdown": 0x08,
        "SyncBoost": 0x10,
        "SwThermalSlowdown": 0x20,
        "HwThermalSlowdown": 0x40,
        "HwPowerBrakeSlowdown": 0x80,
    }
    assert set(names.values()) == set(REASONS)
    for name, bit in names.items():
        assert getattr(pynvml, f"nvmlClocksEventReason{name}") == bit
    for name in (one for one in vars(FakeNvml) if one.startswith(("nvml", "NVML"))):
        assert hasattr(pynvml, name)
    assert issubclass(pynvml.NVMLError, Exception)


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    """A tree of files as an Orin has it."""
    for path, text in {
        "class/devfreq/15340000.vic/cur_freq": "115200000",
        "class/devfreq/17000000.gpu/cur_freq": "624750000",
        "class/thermal/cooling_device0/type": "pwm-fan",
        "class/thermal/cooling_device0/cur_state": "3",
        "class/thermal/cooling_device1/type": "gpu-throttle-alert",
        "class/thermal/cooling_device1/cur_state": "0",
        "class/hwmon/hwmon2/oc1_event_cnt": "4",
    }.items():
        _write(tmp_path / path, text)
    return tmp_path


def test_jetson__quiet_block_counts_with_its_clock(jetson: Path) -> None:
    watch = JetsonWatch(jetson)
    watch.begin()
    assert watch.end() == Sight(None, 624.75)


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("class/thermal/cooling_device1/cur_state", "1\n", "thermal slowdown by software"),
        ("class/hwmon/hwmon2/oc1_event_cnt", "5\n", "over-current"),
    ],
)
def test_jetson__throttling_is_seen(jetson: Path, path: str, text: str, reason: str) -> None:
    watch = JetsonWatch(jetson)
    watch.begin()
    (jetson / path).write_text(text)
    assert watch.end().reason == reason


def test_jetson__gpu_that_disappears_is_an_error(jetson: Path) -> None:
    watch = JetsonWatch(jetson)
    watch.begin()
    (jetson / "class/devfreq/17000000.gpu/cur_freq").unlink()
    with pytest.raises(MeasurementError, match="does not answer any more"):
        watch.end()


def test_processor__counts_events_of_its_cores(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    counters = [
        tmp_path / f"devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count"
        for core in (*cores, 9999)
    ]
    for counter in counters:
        _write(counter, "7")
    watch = ProcessorWatch.found(tmp_path)
    assert watch is not None
    watch.begin()
    assert watch.end() == Sight()
    watch.begin()
    counters[-1].write_text("8")  # of a core that this process may not use
    assert watch.end() == Sight()
    watch.begin()
    counters[0].write_text("8")
    assert watch.end().reason == "thermal slowdown by hardware"


def test_usual_watch__is_what_the_device_has(tmp_path: Path, jetson: Path) -> None:
    assert usual_watch(on_cpu=True, sys=tmp_path / "none") is None
    assert isinstance(usual_watch(on_cpu=False, sys=jetson), JetsonWatch)


@pytest.mark.parametrize("lost", [False, True])
def test_usual_watch__gpu_needs_an_nvml_that_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    library = FakeNvml()
    library.lost = lost
    monkeypatch.setitem(sys.modules, "pynvml", library)
    watch = usual_watch(on_cpu=False, uuid="GPU-1", sys=tmp_path)
    assert (watch is None) == lost


@given(st.lists(st.sampled_from([1500.0, 1507.0, 1200.0, None]), max_size=30))
def test_unfit__keeps_the_clock_of_most_blocks(clocks: list[float | None]) -> None:
    found = unfit([Sight(None, clock) for clock in clocks])
    kept = [clock for clock, reason in zip(clocks, found, strict=True) if reason is None]
    fast, slow = sum(c in {1500, 1507} for c in clocks), clocks.count(1200)
    assert kept.count(None) == clocks.count(None)
    assert len(kept) - kept.count(None) == max(fast, slow)


def test_unfit__clock_of_a_throttled_block_does_not_set_the_usual_one() -> None:
    sights = [Sight("power cap", 1200.0)] * 3 + [Sight(None, 1500.0)] * 2
    assert unfit(sights) == ["power cap"] * 3 + [None] * 2


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
