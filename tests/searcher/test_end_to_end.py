from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nas.accuracy.detections import detect
from nas.accuracy.images import letterbox
from nas.errors import InputError
from nas.latency.clock import ClockSettings
from nas.latency.hardware import Hardware
from nas.latency.measurer import Measurer
from nas.latency.meter import LatencyMeter
from nas.latency.onnx_export import export_onnx
from nas.latency.runtimes.base import Engine
from nas.latency.runtimes.conformance import ConformanceNet
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.worker import Worker
from nas.searcher.end_to_end import EndToEnd

QUICK = ClockSettings(half_width=0.9, min_blocks=3, max_blocks=4, block_ms=2, warmup_ms=2)
NAME = "end to end from 96x128"


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def graph() -> Callable[[int], bytes]:
    torch.manual_seed(0)
    network = ConformanceNet().eval()
    return lambda batch: export_onnx(network, 64, 64, batch=batch)


@pytest.fixture(params=[1, 3])
def engine(request: pytest.FixtureRequest, graph: Callable[[int], bytes]) -> Iterator[Engine]:
    with OnnxRuntime().build(graph(request.param), "fp32") as engine:
        yield engine


def test_run__finds_what_separate_steps_find(engine: Engine, image: NDArray[np.uint8]) -> None:
    found = EndToEnd(image)(engine)()
    batch = engine.input_shape[0]
    fitted = letterbox(image, (64, 64)).transpose(2, 0, 1).astype(np.float32) / 255
    outputs = engine.infer(np.repeat(fitted[None], batch, axis=0))
    expected = detect(outputs["boxes"][0], outputs["scores"][0])
    assert len(found) == batch
    assert len(expected) > 0
    for one in found:
        np.testing.assert_allclose(one.boxes, 2 * expected.boxes, rtol=1e-5)  # 128 -> 64 pixels
        np.testing.assert_array_equal(one.labels, expected.labels)


def test_parts__are_what_a_run_does(engine: Engine, image: NDArray[np.uint8]) -> None:
    around = EndToEnd(image)
    whole = around(engine)()
    parts = around.parts(engine)
    results = [part() for part in parts.values()]
    assert list(parts) == ["pre", "engine", "post"]
    again = results[-1]
    assert isinstance(again, list)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_run__leaves_the_threads_of_torch_alone(engine: Engine, image: NDArray[np.uint8]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        EndToEnd(image)(engine)()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_name__says_what_costs_time(image: NDArray[np.uint8]) -> None:
    assert EndToEnd(image).name == NAME
    assert EndToEnd(image, nms=False).name == f"{NAME} without suppression"
    assert EndToEnd(image[:50]).name == "end to end from 50x128"


@pytest.mark.parametrize("maker", [Measurer, Worker])
def test_measured__here_and_in_another_process(
    maker: type[Measurer | Worker], graph: Callable[[int], bytes], image: NDArray[np.uint8]
) -> None:
    with contextlib.closing(maker(OnnxRuntime(), settings=QUICK)) as measurer:
        bare = measurer.measure(graph(1), "fp32", 1.0)
        whole = measurer.measure(graph(1), "fp32", 1.0, EndToEnd(image))
    assert (bare.protocol, whole.protocol) == ("hot", f"hot, {NAME}")
    assert bare.parts_ms == {}
    assert list(whole.parts_ms) == ["pre", "engine", "post"]
    assert whole.ms > bare.ms
    assert sum(whole.parts_ms.values()) == pytest.approx(whole.ms, rel=0.5)


def test_meter__keeps_it_apart_from_the_bare_network(
    graph: Callable[[int], bytes], image: NDArray[np.uint8]
) -> None:
    with LatencyMeter(
        Hardware.named("cpu"),
        OnnxRuntime(),
        precisions=["fp32"],
        settings=QUICK,
        batch=2,
        around=EndToEnd(image),
    ) as meter:
        latency = meter.measure(graph(2), "fp32", "a")
    assert latency.environment.protocol == f"hot, {NAME}"
    assert latency.environment.batch == 2


def test_pickle__keeps_the_image(image: NDArray[np.uint8]) -> None:
    again = pickle.loads(pickle.dumps(EndToEnd(image, nms=False)))
    np.testing.assert_array_equal(again.image, image)
    assert not again.nms


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_image__of_another_kind_is_an_error(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="uint8"):
        EndToEnd(wrong)
