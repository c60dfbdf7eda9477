from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nas.model.blocks.head import ClassPredictor, Head, distances
from nas.space.architecture import Architecture

Build = Callable[..., Architecture]


@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_head__concatenates_levels(stem: bool, depth: int, build_architecture: Build) -> None:
    head = {"channels": [10, 12, 14], "box_channels": [6, 8, 9], "depth": depth, "stem": stem}
    architecture = build_architecture(head={**head, "bins": 5})
    features = [
        torch.rand(2, channels, *architecture.feature_size(level))
        for channels, level in ((12, "P3"), (16, "P4"), (20, "P5"))
    ]
    module = Head(architecture)
    logits, bins = module(features)
    anchors = sum(architecture.tokens_at(level) for level in ("P3", "P4", "P5"))
    assert logits.shape == (2, 3, anchors)
    assert bins.shape == (2, 4, 5, anchors)
    pixel = module.levels["P3"](features[0])[0][..., 12 + 3]  # row 1, column 3 of 12
    torch.testing.assert_close(logits[..., 15], pixel)


def test_head__starts_near_its_prior(build_architecture: Build) -> None:
    architecture = build_architecture()
    head = Head(architecture)
    shapes = ((12, "P3"), (16, "P4"), (20, "P5"))
    features = [torch.rand(2, c, *architecture.feature_size(level)) for c, level in shapes]
    scores = head(features)[0].sigmoid()
    assert scores.min() > 0.001
    assert scores.max() < 0.02


def test_class_predictor__folds_its_scale() -> None:
    predictor = ClassPredictor((6,), 3, 0.01)
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(predictor.fuse()(x), predictor(x))


def test_distances__are_expectations() -> None:
    steps = torch.arange(4.0)[None]
    certain = torch.full((1, 4, 4, 7), -1e4)
    certain[:, :, 2] = 0.0
    assert torch.equal(distances(certain, steps), torch.full((1, 4, 7), 2.0))
    assert torch.allclose(distances(torch.zeros(1, 4, 4, 7), steps), torch.tensor(1.5))
