from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nas.model.blocks.neck import PathAggregation
from nas.space.architecture import Architecture

Build = Callable[..., Architecture]
NECKS: list[dict[str, Any]] = [
    {},
    {"upsample": "transposed"},
    {"halve": True, "convolution": "qarepvgg"},
    {"reduce": True},
    {"reduce": True, "three_inputs": True, "halve": True, "upsample": "transposed"},
]


def _features(architecture: Architecture) -> tuple[torch.Tensor, ...]:
    stages = architecture.backbone
    return tuple(
        torch.rand(1, getattr(stages, level).channels, *architecture.feature_size(level))
        for level in ("P2", "P3", "P4", "P5")
    )


@pytest.mark.parametrize("size", [[64, 96], [72, 104], [1080, 1920]], ids=str)
@pytest.mark.parametrize("options", NECKS, ids=str)
def test_neck__keeps_the_size_of_every_level(
    options: dict[str, Any], size: list[int], build_architecture: Build
) -> None:
    plain = build_architecture(attention={}, input=size)
    neck = plain.neck.model_dump() | options
    architecture = build_architecture(attention={}, input=size, neck=neck)
    with torch.no_grad():
        outputs = PathAggregation(architecture)(_features(architecture))
    fusions = (architecture.neck.top_down.P3, architecture.neck.bottom_up.P4)
    for level, output in zip(("P3", "P4", "P5"), outputs, strict=True):
        assert tuple(output.shape[2:]) == architecture.feature_size(level)
    assert [o.shape[1] for o in outputs[:2]] == [spec.channels for spec in fusions]


def test_neck__upsampled_positions_lie_where_a_stride_2_convolution_saw_them(
    build_architecture: Build,
) -> None:
    neck = PathAggregation(build_architecture(input=[72, 104], attention={}))
    step = neck.top_down["P3"]
    coarse = torch.rand(1, 16, 5, 7)
    assert torch.equal(step.upsample(coarse)[:, :, ::2, ::2], coarse)


def test_neck__attends_where_the_architecture_says(build_architecture: Build) -> None:
    points = {"P3": {"tokens": 4}, "P5": {"kind": "dense"}}
    neck = PathAggregation(build_architecture(attention=points))
    assert {name: block.tokens for name, block in neck.attention.items()} == {"P3": 4, "P5": None}


def test_neck__reduced_bottom_up_meets_the_first_1x1_output_again(
    build_architecture: Build,
) -> None:
    options = build_architecture().neck.model_dump() | {"reduce": True, "halve": True}
    architecture = build_architecture(neck=options)
    neck = PathAggregation(architecture)
    block = neck.bottom_up["P5"].block.qarepvgg_csp
    half = architecture.neck.bottom_up.P5.channels // 2
    assert block.conv1.conv.in_layout == (half, architecture.neck.top_down.P4.channels)
