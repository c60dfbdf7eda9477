"""Small architectures, and networks whose normalisation has statistics worth folding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nas.space.architecture import Architecture


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fusion() -> Callable[..., dict[str, Any]]:
    """Plain data of a block: `fusion(channels, hidden, depth, block=..., ...)`."""

    def build(channels: int, hidden: int, depth: int = 1, **options: Any) -> dict[str, Any]:
        options.setdefault("block", "qarepvgg_csp")
        return {"channels": channels, "hidden": hidden, "depth": depth, **options}

    return build


@pytest.fixture(scope="session")
def build_architecture(fusion: Callable[..., dict[str, Any]]) -> Callable[..., Architecture]:
    """A small architecture; `block` changes every block; other keywords replace fields."""

    def build(block: str = "qarepvgg_csp", **fields: Any) -> Architecture:
        data: dict[str, Any] = {
            "input": [64, 96],
            "classes": 3,
            "stem": {"channels": 6},
            "backbone": {
                "P2": fusion(8, 4, block=block),
                "P3": fusion(12, 6, 2, block=block),
                "P4": fusion(16, 8, 2, block=block),
                "P5": fusion(20, 8, block=block),
            },
            "pooling": {"hidden": 8},
            "attention": {"P4": {"tokens": 7}, "P5": {"kind": "dense"}},
            "neck": {
                "top_down": {
                    "P4": fusion(16, 8, block=block),
                    "P3": fusion(12, 6, block=block),
                },
                "bottom_up": {
                    "P4": fusion(16, 8, block=block),
                    "P5": fusion(20, 8, block=block),
                },
            },
            "head": {"channels": 10, "box_channels": 8},
        }
        return Architecture.parse({**data, **fields})

    return build


@pytest.fixture(scope="session")
def randomize() -> Callable[..., None]:
    """Give every normalisation and scale random values: fresh ones hide wrong algebra."""

    def apply(module: nn.Module, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
            with torch.no_grad():
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                uniform(layer.weight, -1.5, 1.5)
                uniform(layer.bias, -0.5, 0.5)
                uniform(layer.running_mean, -0.5, 0.5)
                uniform(layer.running_var, 0.3, 2.0)
            elif layer.__class__.__name__ == "Scale":
                uniform(layer.factor, 0.3, 1.2)

    return apply
