from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_architecture
from torch import Tensor, nn

from nas.accuracy.assigner import Objects
from nas.accuracy.dataset import Dataset
from nas.accuracy.loss import DetectionLoss
from nas.accuracy.memory import in_parts
from nas.accuracy.step import Step
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

CPU = torch.device("cpu")
BLOCK = "qarepvgg_csp"
SUBNETS = tuple(tiny_architecture(block=BLOCK, hidden=hidden) for hidden in (8, 4))


@pytest.fixture(scope="session")
def batch(few_digits: Dataset) -> tuple[Tensor, Objects]:
    """Images with 0 to 7 objects each, so that parts of them have different divisors."""
    images, objects = few_digits.train.resized(64, 64).batch(torch.arange(6).numpy())
    objects[0] = objects[0].select(objects[0].labels < 0)
    return images.float() / 255, Objects.of(objects)


def _gradients(
    network: nn.Module, batch: tuple[Tensor, Objects], forward: Any, subnets: Any
) -> dict[str, Tensor | None]:
    network.zero_grad()
    Step(DetectionLoss(), CPU, "fp32").gradients(subnets, *batch, forward)
    return {name: p.grad for name, p in network.named_parameters()}


def _assert_equal(first: dict[str, Tensor | None], second: dict[str, Tensor | None]) -> None:
    assert first.keys() == second.keys()
    assert any(gradient is not None and gradient.any() for gradient in first.values())
    for name, gradient in first.items():
        other = second[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["decoupled", "one_to_one"])
@pytest.mark.parametrize("parts", [2, 4])
def test_in_parts__gradients_are_those_of_the_whole_batch(
    batch: tuple[Tensor, Objects], kind: str, parts: int
) -> None:
    architecture = tiny_architecture(block=BLOCK, kind=kind)
    # Fixed statistics: those of a batch are the one thing that parts do not share.
    detector = Detector(architecture).eval()

    def forward(_: Architecture, images: Tensor) -> Any:
        return detector(images)

    whole = _gradients(detector, batch, forward, (architecture,))
    _assert_equal(whole, _gradients(detector, batch, in_parts(forward, parts), (architecture,)))


def test_in_parts__of_several_subnets(batch: tuple[Tensor, Objects]) -> None:
    subnets = SUBNETS
    supernet = Supernet([subnets[0]]).eval()

    def forward(architecture: Architecture, images: Tensor) -> Any:
        return supernet(images, architecture)

    whole = _gradients(supernet, batch, forward, subnets)
    _assert_equal(whole, _gradients(supernet, batch, in_parts(forward, 3), subnets))


def test_in_parts__batch_statistics_are_those_of_a_part(batch: tuple[Tensor, Objects]) -> None:
    architecture = SUBNETS[0]
    supernet = Supernet([architecture])

    def forward(architecture: Architecture, images: Tensor) -> Any:
        return supernet(images, architecture)

    whole = _gradients(supernet, batch, forward, (architecture,))
    parts = _gradients(supernet, batch, in_parts(forward, 2), (architecture,))
    name = "shared.backbone/P2/block/qarepvgg_csp/bottlenecks/0/unit1/conv/weight"
    first, second = whole[name], parts[name]
    assert first is not None
    assert second is not None
    assert not torch.allclose(first, second, rtol=1e-2)


@pytest.mark.parametrize("parts", [1, 2])
def test_recompute__gradients_are_the_same(batch: tuple[Tensor, Objects], parts: int) -> None:
    subnets = SUBNETS
    supernet = Supernet([subnets[0]])

    def forward(architecture: Architecture, images: Tensor) -> Any:
        return supernet(images, architecture)

    kept = _gradients(supernet, batch, in_parts(forward, parts), subnets)
    supernet.recompute = True
    _assert_equal(kept, _gradients(supernet, batch, in_parts(forward, parts), subnets))


def test_recompute__keeps_less_for_the_backward_pass(batch: tuple[Tensor, Objects]) -> None:
    detector = Detector(SUBNETS[0]).eval()
    kept = []
    for recompute in (False, True):
        detector.backbone.recompute = recompute
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            detector.backbone(batch[0])
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
