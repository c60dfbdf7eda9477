from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_architecture
from torch import Tensor

from nas.accuracy.assigner import Objects
from nas.accuracy.dataset import Dataset
from nas.accuracy.loss import DetectionLoss
from nas.accuracy.step import Step
from nas.model.detector import Predictions
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

LARGEST, SMALLEST = tiny_architecture(), tiny_architecture(hidden=4)


@pytest.fixture
def supernet() -> Supernet:
    torch.set_num_threads(1)
    return Supernet([LARGEST]).train()


@pytest.fixture(scope="session")
def batch(few_digits: Dataset) -> tuple[Tensor, Objects]:
    images, annotations = few_digits.train.resized(64, 64).batch(range(4))
    return images.float() / 255, Objects.of(annotations)


def _gradients(
    supernet: Supernet,
    batch: tuple[Tensor, Objects],
    step: Step | None = None,
    architectures: tuple[Architecture, ...] = (LARGEST, SMALLEST),
    in_place: float = 0.0,
) -> tuple[dict[str, float], list[Tensor]]:
    supernet.zero_grad()
    step = step or Step(DetectionLoss(), torch.device("cpu"), "fp32")
    parts = step.gradients(
        architectures, *batch, lambda one, images: supernet(images, one), in_place
    )
    return parts, [p.grad.clone() for p in supernet.parameters() if p.grad is not None]


def test_gradients__are_the_mean_of_the_subnets(
    supernet: Supernet, batch: tuple[Tensor, Objects]
) -> None:
    parts, both = _gradients(supernet, batch)
    alone = [_gradients(supernet, batch, architectures=(one,)) for one in (LARGEST, SMALLEST)]
    assert sum(parts.values()) == pytest.approx(
        sum(sum(one.values()) for one, _ in alone) / 2, rel=1e-5
    )
    mean = [(a + b) / 2 for a, b in zip(alone[0][1], alone[1][1], strict=True)]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(both, mean, strict=True))


def test_gradients__in_place_only_the_smaller_learn(
    supernet: Supernet, batch: tuple[Tensor, Objects]
) -> None:
    hard, without = _gradients(supernet, batch)
    taught, with_teacher = _gradients(supernet, batch, in_place=1.0)
    assert {name: taught[name] for name in hard} == pytest.approx(hard)
    assert taught.keys() - hard.keys() == {"taught_classes", "taught_boxes"}
    assert not all(torch.equal(a, b) for a, b in zip(without, with_teacher, strict=True))
    single = _gradients(supernet, batch, architectures=(LARGEST,), in_place=1.0)
    assert single[0].keys() == hard.keys()


def test_gradients__in_place_counts_as_much_as_it_is_told(
    supernet: Supernet, batch: tuple[Tensor, Objects]
) -> None:
    once, twice = (_gradients(supernet, batch, in_place=weight)[0] for weight in (1.0, 2.0))
    assert twice["taught_classes"] == pytest.approx(2 * once["taught_classes"])


class _Counting(DetectionLoss):
    def assign(self, predictions: Predictions, objects: Objects) -> Any:
        _assigned.append(1)
        return super().assign(predictions, objects)


_assigned: list[int] = []


@pytest.mark.parametrize(("shared", "expected"), [(True, 1), (False, 2)])
def test_gradients__one_assignment_for_all(
    supernet: Supernet, batch: tuple[Tensor, Objects], shared: bool, expected: int
) -> None:
    _assigned.clear()
    step = Step(_Counting(), torch.device("cpu"), "fp32", shared_assignment=shared)
    _gradients(supernet, batch, step)
    assert len(_assigned) == expected


def test_gradients__shared_assignment_changes_what_the_smaller_learn(
    supernet: Supernet, batch: tuple[Tensor, Objects]
) -> None:
    shared = Step(DetectionLoss(), torch.device("cpu"), "fp32", shared_assignment=True)
    first = _gradients(supernet, batch, shared, architectures=(LARGEST,))[0]
    assert first == _gradients(supernet, batch, architectures=(LARGEST,))[0]
    assert _gradients(supernet, batch, shared)[0] != _gradients(supernet, batch)[0]


def test_gradients__hooks_see_every_subnet(
    supernet: Supernet, batch: tuple[Tensor, Objects]
) -> None:
    def brighter(images: Tensor, loss: Any) -> Tensor:
        assert float(loss(images).detach()) > 0
        return images + 0.1

    def term(images: Tensor, predictions: Predictions, objects: Objects) -> dict[str, Tensor]:
        seen.append(float(images.mean()))
        return {"extra": 0 * predictions.logits.sum() + len(objects.labels)}

    seen: list[float] = []
    device = torch.device("cpu")
    step = Step(DetectionLoss(), device, "fp32", perturb=brighter, terms=(term,))
    parts, _ = _gradients(supernet, batch, step, in_place=1.0)
    assert seen == pytest.approx([float(batch[0].mean()) + 0.1] * 2)
    assert parts["extra"] == len(batch[0])
