from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas import plugins
from nas.model.description import Description, describe
from nas.model.detector import Detector, profile
from nas.space.architecture import Architecture
from nas.space.layers import layers
from nas.space.space import load_space, shipped_spaces

Build = Callable[..., Architecture]
YOLO_NAS = {"reduce": True, "three_inputs": True, "halve": True, "upsample": "transposed"}
YOLOV8_HEAD = {"channels": 24, "box_channels": 16, "depth": 2, "bins": 16}


def _check_sums(description: Description) -> None:
    architecture = description.architecture
    with torch.device("meta"):
        detector = Detector(architecture)
    counted = profile(architecture)
    assert description.parameters == sum(p.numel() for p in detector.parameters())
    assert (description.deployed, description.macs) == (counted.parameters, counted.macs)
    assert tuple(cost.layer for cost in description.layers) == layers(architecture)


@pytest.mark.parametrize(
    "options",
    [
        *({"block": name} for name in plugins.names("blocks")),
        {"block": "c2f", "activation": "silu", "head": YOLOV8_HEAD, "attention": {}},
        {"neck": YOLO_NAS, "pooling": {"kind": "spp", "hidden": 8, "kernels": [5, 9, 13]}},
        {"input": [72, 104], "neck": YOLO_NAS, "attention": {"P3": {"tokens": 9}}},
        {"pooling": None, "stem": {"channels": 6, "convolution": "repvgg"}},
        {"head": {"channels": 12, "stem": True, "depth": 2, "bins": 17}},
    ],
    ids=str,
)
def test_describe__layers_add_up_to_the_network(
    options: dict[str, Any], build_architecture: Build
) -> None:
    if "neck" in options:
        plain = build_architecture().neck.model_dump(mode="json")
        options = {**options, "neck": plain | options["neck"]}
    description = describe(build_architecture(**options))
    _check_sums(description)
    deployed = Detector(description.architecture).deploy()
    assert description.deployed == sum(p.numel() for p in deployed.parameters())


@pytest.mark.parametrize("name", shipped_spaces())
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 90))
def test_describe__layers_add_up_at_every_point_of_a_shipped_space(
    name: str, seed: int, classes: int
) -> None:
    space = load_space(name)
    candidate = space.candidate(space.sample(np.random.default_rng(seed)), classes)
    _check_sums(describe(candidate.architecture))


def test_describe__a_convolution_costs_what_the_formula_says(build_architecture: Build) -> None:
    stem = describe(build_architecture(stem={"channels": 6, "kernel": 6})).layers[0]
    weights = 3 * 6 * 6 * 6
    assert stem.parameters == weights + 2 * 6
    assert stem.deployed == weights + 6
    assert stem.macs == weights * 32 * 48


def test_describe__joining_costs_nothing_and_the_head_decodes(build_architecture: Build) -> None:
    architecture = build_architecture()
    description = describe(architecture)
    joins = [c for c in description.layers if c.layer.module in ("Concat", "nn.Upsample")]
    assert len(joins) == 6
    assert all((c.parameters, c.deployed, c.macs) == (0, 0, 0) for c in joins)
    more_bins = architecture.head.model_dump(mode="json") | {"bins": 9}
    wider = describe(build_architecture(head=more_bins))
    # One more bin: an output channel for each of four sides at each anchor, and its expectation.
    per_anchor = 4 * (8 + 1)
    grown = wider.layers[-1].macs - description.layers[-1].macs
    assert grown == per_anchor * description.anchors
    assert wider.macs - description.macs == grown


def test_describe__totals_of_the_whole_network(build_architecture: Build) -> None:
    description = describe(build_architecture())
    assert description.anchors == 8 * 12 + 4 * 6 + 2 * 3
    assert description.gflops == pytest.approx(2 * description.macs / 1e9)
