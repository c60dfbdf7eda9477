from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.latency.estimator import (
    Correction,
    Estimator,
    _margin,
    _shipped_folder,
    fit_estimator,
)
from nas.latency.hardware import Hardware
from nas.latency.latency import ESTIMATED_LEVEL
from nas.latency.onnx_export import export_onnx
from nas.latency.roofline import DevicePeaks, Roofline, Sample, fit_roofline, weights_of
from nas.latency.workload import Layer, Workload
from nas.model.detector import Detector
from nas.space.space import load_space

T4 = DevicePeaks.of(Hardware.named("t4"))


def network(depth: int, channels: int, side: int) -> Workload:
    """A stack of 3x3 convolutions."""
    elements, weights = channels * side**2, 9 * channels**2
    layer = Layer(
        name="conv",
        kind="convolution",
        operators=("Conv",),
        macs=weights * side**2,
        weights=weights,
        reads=elements,
        writes=elements,
        shape=(1, channels, side, side),
        kernel=(3, 3),
        in_channels=channels,
        out_channels=channels,
    )
    return Workload((layer,) * depth, (8 * side, 8 * side))


def device(index: int, rate: float = 20.0) -> DevicePeaks:
    return DevicePeaks(
        name=f"device {index}",
        fp16_tflops=rate * (1 + index),
        bandwidth_gbs=100.0 * (1 + index) ** 0.8,
        multiprocessors=10.0 + 8 * index,
        clock_ghz=1.0 + 0.15 * index,
        power_w=40.0 * (1 + index) ** 1.4,
    )


NETWORKS = [network(*one) for one in itertools.product((20, 60), (16, 64, 128), (10, 40, 80))]


def samples(law: Roofline, chips: int = 5, noise: float = 0.0) -> list[Sample]:
    random = np.random.default_rng(0)
    return [
        Sample(one, device(k), f"chip {k}", law.milliseconds(one, device(k)) * float(np.exp(by)))
        for k in range(chips)
        for one, by in zip(NETWORKS, random.normal(0, noise, len(NETWORKS)), strict=True)
    ]


@pytest.fixture(scope="module")
def shipped() -> Estimator:
    return Estimator.load()


@pytest.fixture(scope="module")
def yolo_nas_s() -> Workload:
    space = load_space("yolo_nas")
    architecture = space.candidate(space.anchors["S"], 80).architecture
    return Workload.from_onnx(export_onnx(Detector(architecture).deploy(), *architecture.input))


def test_roofline__one_layer_by_hand() -> None:
    law, layer = Roofline(), network(1, 64, 40)
    peaks = DevicePeaks(
        name="unit",
        fp16_tflops=100.0,
        bandwidth_gbs=500.0,
        multiprocessors=50.0,
        clock_ghz=1.6,
        power_w=200.0,
    )
    operations = 2 * 9 * 64**2 * 1600
    compute = operations / (0.5 * 100e12) * (1 + 8 / 64) + 2 * 4096 * 576 * 50 / 100e12
    memory = 2 * (2 * 64 * 1600 + 9 * 64**2) / (0.75 * 500e9)
    expected = 1e3 * (compute + memory + 4e-6)
    assert law.milliseconds(layer, peaks) == pytest.approx(expected, rel=1e-12)


def test_roofline__is_additive_in_layers() -> None:
    law = Roofline()
    one, many = network(1, 64, 40), network(7, 64, 40)
    assert law.milliseconds(many, T4) == pytest.approx(7 * law.milliseconds(one, T4))


@settings(max_examples=50, deadline=None)
@given(
    channels=st.integers(8, 256),
    side=st.integers(4, 80),
    field=st.sampled_from(["bandwidth_gbs", "clock_ghz", "power_w"]),
    factor=st.floats(1, 8),
)
def test_roofline__better_devices_are_not_slower(
    channels: int, side: int, field: str, factor: float
) -> None:
    better = T4.model_copy(update={field: getattr(T4, field) * factor})
    work, law = network(3, channels, side), Roofline()
    assert 0 < law.milliseconds(work, better) <= law.milliseconds(work, T4) * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(channels=st.integers(8, 256), side=st.integers(4, 80))
def test_roofline__more_work_is_not_faster(channels: int, side: int) -> None:
    law, work = Roofline(), network(3, channels, side)
    assert law.milliseconds(network(3, channels, side + 1), T4) > law.milliseconds(work, T4)
    assert law.milliseconds(network(3, channels + 8, side), T4) > law.milliseconds(work, T4)


def test_roofline__depthwise_is_cheaper_than_dense() -> None:
    dense = network(1, 64, 40)
    (layer,) = dense.layers
    depthwise = Layer(
        name="depthwise",
        kind="convolution",
        operators=("Conv",),
        macs=layer.macs // 64,
        weights=layer.weights // 64,
        reads=layer.reads,
        writes=layer.writes,
        shape=layer.shape,
        kernel=(3, 3),
        groups=64,
        in_channels=1,
        out_channels=1,
    )
    law = Roofline()
    assert law.milliseconds(Workload((depthwise,), dense.input), T4) < law.milliseconds(dense, T4)


def test_fit__finds_the_law_that_made_the_samples() -> None:
    law = Roofline(
        compute=0.4, bandwidth=0.6, tile=1.5, launch_us=6.0, narrow=12.0, clock=0.7, power=0.4
    )
    found = fit_roofline(samples(law), strength=1e-6)
    for name in Roofline.model_fields:
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=0.1), name


def test_fit__strong_pull_keeps_the_defaults() -> None:
    found = fit_roofline(samples(Roofline(compute=0.3, launch_us=9.0)), strength=1e6)
    assert found.compute == pytest.approx(0.5, rel=1e-2)
    assert found.launch_us == pytest.approx(4.0, rel=1e-2)


def test_weights__chips_weigh_alike() -> None:
    uneven = samples(Roofline(), chips=2)[: len(NETWORKS) + 3]
    weights = weights_of(uneven)
    assert weights[: len(NETWORKS)].sum() == pytest.approx(weights[len(NETWORKS) :].sum())


def test_margin__is_the_quantile_with_one_chip_of_infinite_error() -> None:
    """Of 4 chips, each weighs 1/5: 80 % is reached only with the largest error of all."""
    errors = [np.array([0.1, -0.05]), np.array([0.2]), np.array([-0.3]), np.array([0.4, 0.9])]
    assert _margin(errors) == 0.9
    assert ESTIMATED_LEVEL == 0.8
    nine = [np.linspace(0, 1, 101)] * 9
    assert _margin(nine) == pytest.approx(0.89)  # 0.8 of 10 / 9 of the errors


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=8), min_size=4, max_size=9))
def test_margin__covers_its_own_errors_at_least_as_often(errors: list[list[float]]) -> None:
    margin = _margin([np.array(one) for one in errors])
    covered = [np.mean(np.abs(one) <= margin) for one in errors]
    assert np.mean(covered) >= ESTIMATED_LEVEL - 1e-9


def test_estimator__is_exact_on_devices_that_keep_the_law() -> None:
    fitted = fit_estimator(samples(Roofline(launch_us=6.0)), {"data": "made up"})
    assert fitted.provenance["data"] == "made up"
    assert fitted.margin < 0.05
    unknown = device(2, rate=26.0)
    truth = Roofline(launch_us=6.0).milliseconds(NETWORKS[4], unknown)
    assert fitted.estimate(NETWORKS[4], unknown).ms == pytest.approx(truth, rel=0.05)


def test_estimator__noise_between_chips_widens_the_interval() -> None:
    plain = fit_estimator(samples(Roofline()), {})
    noisy = fit_estimator(samples(Roofline(), noise=0.3), {})
    assert noisy.margin > plain.margin + 0.2


def test_estimator__needs_four_chips() -> None:
    with pytest.raises(InputError, match="at least 4 chips"):
        fit_estimator(samples(Roofline(), chips=3), {})


def test_correction__removes_what_networks_have_in_common() -> None:
    law, known = Roofline(), samples(Roofline())
    slower = [
        Sample(one.workload, one.peaks, one.chip, one.ms * one.workload.launches / 40)
        for one in known
    ]
    correction = Correction.fitted(slower, law, 1e-6)
    deep, flat = (correction.factor(network(depth, 64, 40)) for depth in (60, 20))
    assert deep / flat == pytest.approx(3, rel=0.02)


def test_correction__does_not_extrapolate() -> None:
    slower = [
        Sample(one.workload, one.peaks, one.chip, one.ms * one.workload.launches)
        for one in samples(Roofline())
    ]
    correction = Correction.fitted(slower, Roofline(), 1e-6)
    ends = [correction.factor(NETWORKS[-1]), correction.factor(network(600, 128, 80))]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_correction__none_is_one() -> None:
    assert Correction.fitted(samples(Roofline()), Roofline(), None).factor(NETWORKS[0]) == 1.0


@pytest.mark.parametrize("published_ms", [3.21, 3.09])
def test_shipped__holds_the_published_latency_of_yolo_nas_s(
    shipped: Estimator, yolo_nas_s: Workload, published_ms: float
) -> None:
    found = shipped.estimate(yolo_nas_s, T4)
    assert found.low_ms < published_ms < found.high_ms
    assert found.ms == pytest.approx(published_ms, rel=0.2)
    assert found.outside == ()
    assert math.log(found.high_ms / found.ms) == pytest.approx(shipped.margin)
    assert math.log(found.ms / found.low_ms) == pytest.approx(shipped.margin)


def test_shipped__orders_devices_by_what_they_promise(
    shipped: Estimator, yolo_nas_s: Workload
) -> None:
    names = ("a100-sxm4-40gb", "rtx-3090", "t4", "agx-orin", "xavier-nx")
    order = [shipped.estimate(yolo_nas_s, DevicePeaks.of(Hardware.named(n))).ms for n in names]
    assert order == sorted(order)


def test_shipped__beyond_what_it_knows_the_interval_widens_and_says_why(
    shipped: Estimator, yolo_nas_s: Workload
) -> None:
    known, found = (
        shipped.estimate(yolo_nas_s, DevicePeaks.of(Hardware.named(name)))
        for name in ("t4", "h100-sxm")
    )
    assert any(one.startswith("fp16_tflops") for one in found.outside)
    assert found.high_ms / found.ms > 1.1 * known.high_ms / known.ms
    small = shipped.estimate(network(2, 16, 10), T4)
    assert any(one.startswith("launches 2 <") for one in small.outside)


@pytest.mark.parametrize("precision", ["int8", "fp32", "bf16", ""])
def test_shipped__refuses_precisions_without_evidence(shipped: Estimator, precision: str) -> None:
    with pytest.raises(InputError, match=f"fp16, not in '{precision}'"):
        shipped.estimate(NETWORKS[0], T4, precision)


def test_shipped__was_fitted_to_the_data_beside_it(shipped: Estimator) -> None:
    data = (_shipped_folder() / shipped.provenance["data"]).read_bytes()
    assert shipped.provenance["data_sha256"] == hashlib.sha256(data).hexdigest()
    assert shipped.provenance["samples"] == len(data.splitlines()) - 1
    assert {"commit", "created", "devices", "setting"} <= shipped.provenance.keys()
    assert shipped.coverage == ESTIMATED_LEVEL


def test_shipped__every_source_is_attributed() -> None:
    folder = _shipped_folder()
    lines = (folder / "tensorrt_fp16.csv").read_text().splitlines()[1:]
    attribution = (folder / "ATTRIBUTION.md").read_text()
    sources = [line.rsplit(",", 1)[1] for line in lines]
    for source in sorted(set(sources)):
        assert f"| `{source}` | {sources.count(source)} |" in attribution


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"margin": 1}', '{"margin": -1}'], ids=["broken", "list", "part", "sign"]
)
def test_load__refuses_what_is_no_estimator(tmp_path: Path, text: str) -> None:
    path = tmp_path / "estimator.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"estimator\.json is not an estimator"):
        Estimator.load(path)


def test_load__missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Estimator.load(tmp_path / "nowhere.json")


def test_load__survives_json(shipped: Estimator, tmp_path: Path) -> None:
    path = tmp_path / "again.json"
    path.write_text(shipped.model_dump_json())
    assert Estimator.load(path) == shipped
    assert json.loads(path.read_text())["provenance"] == shipped.provenance


def test_peaks__device_without_figures_names_them() -> None:
    with pytest.raises(InputError, match=r"'cpu' lacks .*fp16_tensor_tflops"):
        DevicePeaks.of(Hardware.named("cpu"))


@pytest.mark.parametrize(
    "name",
    ["t4", "l4", "l40s", "a10", "a100-pcie-80gb", "h100-sxm", "rtx-4090", "orin-nano", "orin-nx"],
)
def test_peaks__registry_has_what_an_estimate_needs(name: str) -> None:
    peaks = DevicePeaks.of(Hardware.named(name))
    assert peaks.name == name
    assert 0.05 < peaks.fp16_tflops / peaks.power_w < 5
    assert 0.4 < peaks.clock_ghz < 4
