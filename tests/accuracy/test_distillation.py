from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.accuracy.assigner import Objects
from nas.accuracy.dataset import Annotations
from nas.accuracy.distillation import detached, distillation
from nas.errors import InputError
from nas.model.detector import Predictions

IMAGES, ANCHORS, CLASSES, BINS = 2, 5, 3, 4


def _predictions(seed: int, scale: float = 1.0, bins: int = BINS) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions(
        (scale * torch.randn(IMAGES, ANCHORS, CLASSES, generator=generator)).requires_grad_(),
        (scale * torch.randn(IMAGES, ANCHORS, 4, bins, generator=generator)).requires_grad_(),
        torch.zeros(ANCHORS, 2),
        torch.ones(ANCHORS),
    )


def _objects(count: int) -> Objects:
    boxes = np.tile(np.array([[1.0, 1.0, 4.0, 4.0]], np.float32), (count, 1))
    return Objects.of([Annotations(boxes, np.zeros(count, np.int64))] * IMAGES)


def _floats(parts: dict[str, Tensor]) -> list[float]:
    return [float(part.detach()) for part in parts.values()]


def test_distillation__anchors_one_by_one() -> None:
    student, teacher, objects = _predictions(0), _predictions(1), _objects(1)
    classes = boxes = total = 0.0
    for image, anchor in np.ndindex(IMAGES, ANCHORS):
        wanted = teacher.logits[image, anchor].sigmoid().tolist()
        scores = student.logits[image, anchor].sigmoid().tolist()
        weight = max(wanted)
        total += weight
        for p, q in zip(wanted, scores, strict=True):
            coins = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            classes += weight * coins
        p4, q4 = (one.bins[image, anchor].softmax(-1) for one in (teacher, student))
        boxes += weight * float((p4 * (p4 / q4).log()).sum(-1).mean().detach())
    expected = [classes / max(total, IMAGES), boxes / max(total, IMAGES)]
    assert _floats(distillation(student, teacher, objects)) == pytest.approx(expected, rel=1e-4)


def test_distillation__nothing_to_learn_from_an_equal() -> None:
    student = _predictions(0)
    parts = distillation(student, detached(student), _objects(1))
    torch.stack(list(parts.values())).sum().backward()
    assert _floats(parts) == pytest.approx([0, 0], abs=1e-6)
    for leaf in (student.logits, student.bins):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() < 1e-6


def test_distillation__descent_reaches_the_teacher_and_leaves_it_alone() -> None:
    student, teacher = _predictions(0), _predictions(1)
    optimizer = torch.optim.Adam([student.logits, student.bins], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        torch.stack(list(distillation(student, teacher, _objects(1)).values())).sum().backward()
        optimizer.step()
    assert torch.allclose(student.logits.sigmoid(), teacher.logits.sigmoid(), atol=0.02)
    assert torch.allclose(student.bins.softmax(-1), teacher.bins.softmax(-1), atol=0.02)
    assert teacher.logits.grad is None


@pytest.mark.parametrize("objects", [0, 1, 40])
def test_distillation__a_teacher_that_scores_nothing_teaches_nearly_nothing(objects: int) -> None:
    teacher = _predictions(1)
    silent = teacher._replace(logits=torch.full_like(teacher.logits, -20.0))
    parts = _floats(distillation(_predictions(0, scale=5.0), silent, _objects(objects)))
    assert all(0 <= part < 1e-5 for part in parts)


def test_distillation__the_other_branches_are_taught_too() -> None:
    many, once = _predictions(0), _predictions(1)
    teacher = _predictions(2)._replace(one_to_one=_predictions(3))
    both = distillation(many._replace(one_to_one=once), teacher, _objects(1))
    assert teacher.one_to_one is not None
    first = distillation(many, teacher._replace(one_to_one=None), _objects(1))
    second = distillation(once, teacher.one_to_one, _objects(1))
    expected = [a + b for a, b in zip(_floats(first), _floats(second), strict=True)]
    assert _floats(both) == pytest.approx(expected)


def test_distillation__of_other_bins_is_refused() -> None:
    with pytest.raises(InputError, match="bins"):
        distillation(_predictions(0, bins=8), _predictions(1), _objects(1))
