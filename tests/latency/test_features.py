from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.latency.features import FEATURES, features_digest, latency_features
from nas.latency.onnx_export import export_onnx
from nas.latency.workload import Layer, Workload
from nas.model.detector import Detector
from nas.space.space import load_space


@pytest.fixture(scope="module")
def workloads() -> dict[str, Workload]:
    space = load_space("digits")
    found = {}
    for name in ("min", "max"):
        architecture = space.candidate(space.anchors[name], 10).architecture
        graph = export_onnx(Detector(architecture).deploy(), *architecture.input)
        found[name] = Workload.from_onnx(graph)
    return found


def _amount(workload: Workload, name: str) -> float:
    return float(latency_features(workload)[FEATURES.index(name)])


def _sum(workload: Workload, ending: str) -> float:
    return sum(_amount(workload, name) for name in FEATURES if name.endswith(ending))


@pytest.mark.parametrize("anchor", ["min", "max"])
def test_features__add_up_to_what_the_workload_counts(
    workloads: dict[str, Workload], anchor: str
) -> None:
    workload = workloads[anchor]
    assert _sum(workload, "_launches") == workload.launches
    assert _sum(workload, "_macs") - _sum(workload, "_padded_macs") == workload.macs
    assert _sum(workload, "_elements") + _amount(workload, "weights") == (
        workload.traffic + _amount(workload, "fused_elements")
    )
    assert _amount(workload, "pixels") == workload.input[0] * workload.input[1]


def test_features__largest_network_has_most_of_everything_that_it_shares(
    workloads: dict[str, Workload],
) -> None:
    assert np.isfinite(latency_features(workloads["max"])).all()
    assert (latency_features(workloads["max"]) >= latency_features(workloads["min"])).all()


@st.composite
def _convolutions(draw: st.DrawFn) -> Layer:
    channels = st.integers(1, 70)
    groups, inputs, outputs = draw(st.integers(1, 4)), draw(channels), draw(channels)
    height, width, kernel = draw(channels), draw(channels), draw(st.sampled_from([1, 3]))
    return Layer(
        name="layer",
        kind="convolution",
        operators=("Conv", "Sigmoid", "Mul"),
        macs=height * width * groups * outputs * inputs * kernel**2,
        weights=groups * outputs * inputs * kernel**2,
        reads=groups * inputs * height * width,
        writes=groups * outputs * height * width,
        shape=(1, groups * outputs, height, width),
        kernel=(kernel, kernel),
        stride=draw(st.sampled_from([1, 2])),
        groups=groups,
        in_channels=inputs,
        out_channels=outputs,
    )


@given(st.lists(_convolutions(), min_size=1, max_size=3), st.lists(_convolutions(), max_size=3))
@settings(max_examples=30, deadline=None)
def test_features__are_amounts_that_add_up_over_layers(
    first: list[Layer], rest: list[Layer]
) -> None:
    def of(layers: list[Layer]) -> np.ndarray:
        return latency_features(Workload(tuple(layers), (0, 0)))

    np.testing.assert_allclose(of(first + rest), of(first) + of(rest))
    np.testing.assert_allclose(of(first), of(first[::-1]))


@given(_convolutions())
@settings(deadline=None)
def test_features__padding_never_saves_work(layer: Layer) -> None:
    workload = Workload((layer,), (64, 64))
    padded = _sum(workload, "_padded_macs")
    assert padded >= layer.macs * (1 - 1e-12)
    aligned = layer.in_channels % 16 == 0 and layer.out_channels % 16 == 0
    assert (padded == layer.macs) == aligned


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "convolution"),
        ({"stride": 2}, "strided_convolution"),
        ({"kernel": (1, 1)}, "pointwise_convolution"),
        ({"groups": 2}, "depthwise"),
    ],
)
def test_features__convolutions_are_told_apart(change: dict[str, object], kind: str) -> None:
    layer = Layer(
        name="layer",
        kind="convolution",
        operators=("Conv",),
        macs=9,
        shape=(1, 16, 4, 4),
        kernel=(3, 3),
        in_channels=8,
        out_channels=8,
    )
    workload = Workload((dataclasses.replace(layer, **change),), (8, 8))
    assert _amount(workload, f"{kind}_launches") == 1
    assert _sum(workload, "_launches") == 1


def test_features__digest_changes_with_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before = features_digest()
    monkeypatch.setattr("nas.latency.features.FEATURES", FEATURES[::-1])
    assert features_digest() != before
    assert len(set(FEATURES)) == len(FEATURES)
