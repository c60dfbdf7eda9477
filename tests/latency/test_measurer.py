from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from nas.errors import InputError, UnknownNameError
from nas.latency.measurer import Measurer, protocol_around
from nas.latency.runtimes.base import Engine
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.latency.timing import ClockSettings

QUICK = ClockSettings(
    half_width=0.9, min_blocks=3, max_blocks=4, block_ms=2, warmup_ms=2, pause_ms=2, min_pauses=3
)


class Thrice:
    name = "thrice"

    def __call__(self, engine: Engine) -> Callable[[], object]:
        def run() -> None:
            for _ in range(3):
                engine.run()

        return run

    def parts(self, engine: Engine) -> dict[str, Callable[[], object]]:
        return {"one": engine.run}


@pytest.fixture
def stages() -> list[str]:
    return []


@pytest.fixture
def measurer(stages: list[str]) -> Iterator[Measurer]:
    made = Measurer(OpenVinoRuntime(), settings=QUICK, enter=lambda stage, _: stages.append(stage))
    with contextlib.closing(made):
        yield made


def test_measure__enters_its_stages(measurer: Measurer, stages: list[str], graph: bytes) -> None:
    measurer.measure(graph, "fp32", 1.0)
    assert stages == ["building", "running"] * 2 + ["measuring"]
    stages.clear()
    measurer.measure(graph, "fp32", 1.0)
    assert stages == ["building", "running", "measuring"]


def test_measure__around_is_timed_as_a_whole_and_in_parts(
    measurer: Measurer, stages: list[str], large_graph: bytes
) -> None:
    timing = measurer.measure(large_graph, "fp32", 1.0, Thrice())
    assert timing.protocol == "hot, thrice"
    assert timing.ms == pytest.approx(3 * timing.parts_ms["one"], rel=0.4)
    assert stages[-2:] == ["measuring", "measuring"]  # each has its own limit of time


def test_measure__another_batch_is_an_error(graph: bytes) -> None:
    with (
        contextlib.closing(Measurer(OpenVinoRuntime(), settings=QUICK, batch=4)) as measurer,
        pytest.raises(InputError, match="4 images per run, it takes 1"),
    ):
        measurer.measure(graph, "fp32", 1.0)


def test_calibrate__buffered(graph: bytes) -> None:
    with contextlib.closing(
        Measurer(OpenVinoRuntime(), settings=QUICK, protocol="buffered")
    ) as measurer:
        calibration = measurer.calibrate("fp32")
        timing = measurer.measure(graph, "fp32", calibration.ms)
    assert 0 < calibration.low_ms <= calibration.ms <= calibration.high_ms
    assert timing.protocol == "buffered 2 ms"


def test_protocol__names_what_is_around() -> None:
    assert protocol_around("hot") == "hot"
    assert protocol_around("hot", None, Thrice()) == "hot, thrice"
    assert protocol_around("buffered", QUICK, Thrice()) == "buffered 2 ms, thrice"
    with pytest.raises(UnknownNameError):
        protocol_around("cold")  # type: ignore[arg-type]  # as a user may
