from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from nas.latency.features import latency_features
from nas.latency.onnx_export import export_onnx
from nas.latency.parts import KnownParts
from nas.latency.workload import Workload
from nas.model.detector import Detector
from nas.space.architecture import Architecture
from nas.space.space import load_space


def _architecture(space: str, **changes: object) -> Architecture:
    found = load_space(space)
    architecture = found.candidate({**found.anchors["min"], **changes}, 10).architecture
    return architecture.at_input((64, 64))


@functools.cache
def _workload(architecture: Architecture) -> Workload:
    return Workload.from_onnx(export_onnx(Detector(architecture).deploy(), *architecture.input))


# Two choices that do not meet: who saw both knows the network that makes both.
CHANGES = [
    ("digits", {"p2_hidden": 16}, {"p5_block": "qarepvgg_csp"}),
    ("digits", {"p3_attention": "sparse-16"}, {"p5_depth": 2}),
]


@pytest.mark.parametrize(("space", "first", "second"), CHANGES)
def test_parts__network_of_known_parts_needs_no_export(
    space: str, first: dict[str, object], second: dict[str, object]
) -> None:
    parts = KnownParts()
    both = _architecture(space, **first, **second)
    for changes in ({}, first, second):
        assert parts.find(both) is None
        architecture = _architecture(space, **changes)
        learnt = parts.learn(architecture, _workload(architecture))
        np.testing.assert_array_equal(learnt, latency_features(_workload(architecture)))
    found = parts.find(both)
    assert found is not None
    np.testing.assert_allclose(found, latency_features(_workload(both)))


@pytest.mark.parametrize("space", ["digits", "hsv_det", "yolo_nas"])
def test_parts__every_layer_of_a_shipped_space_belongs_to_one(space: str) -> None:
    parts, architecture = KnownParts(), _architecture(space)
    parts.learn(architecture, _workload(architecture))
    assert len(parts) > 15
    found = parts.find(architecture)
    assert found is not None
    np.testing.assert_allclose(found, latency_features(_workload(architecture)))


def test_parts__other_input_is_another_network() -> None:
    parts, architecture = KnownParts(), _architecture("digits")
    parts.learn(architecture, _workload(architecture))
    assert parts.find(architecture.at_input((96, 96))) is None


def test_parts__what_two_graphs_disagree_about_is_never_used() -> None:
    parts, architecture = KnownParts(), _architecture("digits")
    workload = _workload(architecture)
    first, *rest = workload.layers
    odd = Workload((dataclasses.replace(first, writes=first.writes + 1), *rest), workload.input)
    parts.learn(architecture, workload)
    parts.learn(architecture, odd)
    parts.learn(architecture, workload)
    assert parts.find(architecture) is None


def test_parts__graph_with_a_layer_of_no_part_teaches_nothing() -> None:
    parts, architecture = KnownParts(), _architecture("digits")
    workload = _workload(architecture)
    first, *rest = workload.layers
    odd = Workload((dataclasses.replace(first, name="/tail/Conv"), *rest), workload.input)
    np.testing.assert_array_equal(parts.learn(architecture, odd), latency_features(odd))
    assert len(parts) == 0
    assert parts.find(architecture) is None
