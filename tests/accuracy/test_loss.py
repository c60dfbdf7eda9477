from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.accuracy.assigner import Objects, TaskAlignedAssigner
from nas.accuracy.dataset import Annotations
from nas.accuracy.loss import DetectionLoss, LossWeights, complete_iou, distribution_focal
from nas.errors import InputError
from nas.model.detector import Predictions, decode


def _predictions(images: int, seed: int = 0, classes: int = 3, bins: int = 8) -> Predictions:
    y, x = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    anchors = (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * 8
    generator = torch.Generator().manual_seed(seed)
    return Predictions(
        torch.randn(images, 36, classes, generator=generator).requires_grad_(),
        torch.randn(images, 36, 4, bins, generator=generator).requires_grad_(),
        anchors,
        torch.full((36,), 8.0),
    )


def _detached(predictions: Predictions) -> Predictions:
    return predictions._replace(logits=predictions.logits.detach(), bins=predictions.bins.detach())


def _objects(*images: list[tuple[int, list[float]]]) -> Objects:
    return Objects.of(
        [
            Annotations(
                np.array([box for _, box in image], np.float32).reshape(-1, 4),
                np.array([label for label, _ in image], np.int64),
            )
            for image in images
        ]
    )


TWO = [(0, [3.0, 2.0, 30.0, 25.0]), (2, [20.0, 20.0, 45.0, 44.0])]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0.0, 0.0, 10.0, 10.0], 1.0),
        # Half covered: IoU 1/2, centres 2.5 apart, diagonal^2 125, one aspect 1, the other 2.
        ([0.0, 0.0, 5.0, 10.0], None),
        # Apart: IoU 0, centres 20 apart, diagonal^2 900 + 100, equal aspect.
        ([20.0, 0.0, 30.0, 10.0], -400 / 1000),
    ],
)
def test_complete_iou__by_hand(other: list[float], expected: float | None) -> None:
    if expected is None:
        v = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
        expected = 0.5 - 2.5**2 / 200 - v * v / (0.5 + v)
    found = complete_iou(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([other]))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_complete_iou__gradient_pulls_a_distant_box_closer() -> None:
    box = torch.tensor([[20.0, 0.0, 30.0, 10.0]], requires_grad=True)
    complete_iou(box, torch.tensor([[0.0, 0.0, 10.0, 10.0]])).sum().backward()
    assert box.grad is not None
    assert box.grad[0, 0] + box.grad[0, 2] < 0  # moving left raises it


@pytest.mark.parametrize("empty", [[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 9.0]])
def test_complete_iou__finite_for_empty_boxes(empty: list[float]) -> None:
    box = torch.tensor([empty], requires_grad=True)
    complete_iou(box, torch.tensor([[0.0, 0.0, 10.0, 10.0]])).sum().backward()
    assert box.grad is not None
    assert box.grad.isfinite().all()


@pytest.mark.parametrize(
    ("distance", "weights"),
    [
        (2.25, {2: 0.75, 3: 0.25}),
        (0.0, {0: 1.0}),
        (7.0, {7: 1.0}),
        (99.0, {7: 1.0}),
        (-1.0, {0: 1.0}),
    ],
)
def test_distribution_focal__weights_the_two_bins_around(
    distance: float, weights: dict[int, float]
) -> None:
    bins = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    log = bins.log_softmax(-1)
    expected = -sum(w * log[0, :, index].mean() for index, w in weights.items())
    found = distribution_focal(bins, torch.full((1, 4), distance))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_detection_loss__anchors_one_by_one() -> None:
    predictions, objects = _detached(_predictions(2)), _objects(TWO, TWO[:1])
    weights = LossWeights(1.0, 2.0, 0.5, 3.0)
    parts = DetectionLoss(weights)(predictions, objects)
    boxes = decode(predictions)
    found = TaskAlignedAssigner()(predictions.logits.sigmoid(), boxes, predictions.anchors, objects)
    normaliser = max(float(found.quality.sum()), 3.0)
    sums = torch.zeros(4)
    for image, anchor in np.ndindex(2, 36):
        target = torch.zeros(3)
        logits = predictions.logits[image, anchor]
        if found.foreground[image, anchor]:
            which = int(found.objects[image, anchor])
            label, box = objects.labels[image, which], objects.boxes[image, which]
            quality = float(found.quality[image, anchor])
            target[label] = quality
            x, y = predictions.anchors[anchor]
            sides = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]) / 8
            sums[1] += quality * (1 - complete_iou(boxes[image, anchor][None], box[None])[0])
            bins = predictions.bins[image, anchor][None]
            sums[2] += quality * distribution_focal(bins, sides[None])[0]
            sums[3] += F.cross_entropy(logits, label)
        sums[0] += F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    divisors = torch.tensor([normaliser] * 3 + [float(found.foreground.sum())])
    expected = sums / divisors * torch.tensor([1.0, 2.0, 0.5, 3.0])
    assert torch.allclose(torch.stack(list(parts)), expected, rtol=1e-4)
    assert float(parts.total) == pytest.approx(float(expected.sum()), rel=1e-4)


def test_detection_loss__adds_the_one_to_one_branches_assigned_to_the_best_anchor() -> None:
    many, once, objects = _predictions(2), _predictions(2, seed=1), _objects(TWO, TWO[:1])
    both = DetectionLoss()(many._replace(one_to_one=once), objects)
    first = DetectionLoss()(many, objects)
    second = DetectionLoss(assigner=TaskAlignedAssigner(topk=1))(once, objects)
    for total, a, b in zip(both, first, second, strict=True):
        assert float(total.detach()) == pytest.approx(float((a + b).detach()), rel=1e-6)


def test_detection_loss__nothing_to_find_teaches_only_the_background() -> None:
    predictions = _predictions(2)
    parts = DetectionLoss()(predictions, _objects([], []))
    parts.total.backward()
    assert [float(part.detach()) for part in parts[1:]] == [0, 0, 0]
    assert predictions.logits.grad is not None
    assert (predictions.logits.grad > 0).all()


def test_detection_loss__image_without_objects_beside_one_with() -> None:
    parts = DetectionLoss()(_predictions(2), _objects(TWO, []))
    assert all(float(part.detach()) > 0 for part in parts)


def test_detection_loss__normaliser_is_at_least_the_number_of_objects() -> None:
    predictions = _predictions(1)
    far = predictions._replace(anchors=predictions.anchors + 1000)
    parts = DetectionLoss()(far, _objects(TWO))
    background = F.softplus(predictions.logits.detach()).sum()
    assert float(parts.classification.detach()) == pytest.approx(float(background) / 2, rel=1e-4)


def test_detection_loss__half_precision_predictions() -> None:
    full = _predictions(1)
    half = full._replace(logits=full.logits.bfloat16(), bins=full.bins.bfloat16())
    objects = _objects(TWO)
    parts = DetectionLoss()(half, objects)
    assert parts.total.dtype == torch.float32
    assert float(parts.total.detach()) == pytest.approx(
        float(DetectionLoss()(full, objects).total.detach()), rel=0.02
    )


def test_detection_loss__descent_finds_the_objects() -> None:
    predictions, objects = _predictions(1), _objects(TWO)
    leaves: list[Tensor] = [predictions.logits, predictions.bins]
    optimizer = torch.optim.Adam(leaves, lr=0.1)
    loss = DetectionLoss()
    first = float(loss(predictions, objects).total.detach())
    for _ in range(200):
        optimizer.zero_grad()
        loss(predictions, objects).total.backward()
        optimizer.step()
    assert float(loss(predictions, objects).total.detach()) < first / 5
    best = predictions.logits[0].amax(0).sigmoid()
    assert (best[[0, 2]] > 0.8).all()
    assert best[1] < 0.1


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_loss_weights__senseless(value: float) -> None:
    with pytest.raises(InputError, match="Loss weights"):
        LossWeights(box=value)
