"""The detection loss: what a network's predictions cost, given the objects of a batch.

Four parts, each divided by the sum of target scores (at least the number of objects, so that early
batches, in which nothing overlaps yet, cannot blow it up):

- classification: binary cross-entropy on the soft targets of the task-aligned assignment;
- box: complete IoU;
- distribution: Distribution Focal Loss;
- identity: softmax cross-entropy over the classes of assigned anchors, divided by their number.
  The first part alone teaches "how much of an object is here" long before "which one": with ten
  classes, nine of ten gradients on an assigned anchor say no. This part compares classes with each
  other only, and ends that plateau within a few hundred iterations.

A head that finds each object once has two sets of predictions; their losses are added. The second
set is assigned by the same metric with one anchor for each object, so what the two learn to rank
highest agrees: consistent dual assignments (Wang et al., YOLOv10, NeurIPS 2024, section 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.accuracy.assigner import Assignment, Objects, TaskAlignedAssigner
from nas.accuracy.distributed import ALONE, Processes
from nas.errors import InputError
from nas.model.detector import Predictions, decode

__all__ = ["DetectionLoss", "LossParts", "LossWeights", "complete_iou", "distribution_focal"]

_TINY = 1e-9


@dataclass(frozen=True)
class LossWeights:
    """What each part of the loss counts.

    Raises:
        InputError: a weight is negative or not finite.
    """

    classification: float = 1.0
    box: float = 2.5
    distribution: float = 0.5
    identity: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.classification, self.box, self.distribution, self.identity)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise InputError(f"Loss weights must be finite and at least 0, got {self}.")


class LossParts(NamedTuple):
    """The weighted parts of a loss, scalars; what is minimised is their sum, `total`."""

    classification: Tensor
    box: Tensor
    distribution: Tensor
    identity: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the parts."""
        return self.classification + self.box + self.distribution + self.identity


@dataclass(frozen=True)
class DetectionLoss:
    """Assign anchors to objects, then add up what each anchor got wrong.

    Args:
        weights: of the parts.
        assigner: chooses the anchors; of predictions that find each object once, the best alone.
        processes: that hold the parts of one batch: they divide by the means of their divisors.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    assigner: TaskAlignedAssigner = field(default_factory=TaskAlignedAssigner)
    processes: Processes = ALONE

    def __call__(
        self,
        predictions: Predictions,
        objects: Objects,
        assigned: tuple[Assignment, ...] | None = None,
    ) -> LossParts:
        """Return the loss of a batch, computed in single precision.

        Args:
            predictions: of B images with A anchors.
            objects: of the same images.
            assigned: what `assign` gave for these images; None assigns by `predictions`.
        """
        assigned = assigned or self.assign(predictions, objects)
        first, *rest = (
            self._of(branch, objects, one)
            for branch, one in zip(_branches(predictions), assigned, strict=True)
        )
        for other in rest:
            first = LossParts(*(a + b for a, b in zip(first, other, strict=True)))
        return first

    @torch.no_grad()
    def assign(self, predictions: Predictions, objects: Objects) -> tuple[Assignment, ...]:
        """Assign by what a network predicts, in single precision, for each set of predictions."""
        return tuple(
            assigner(
                branch.logits.float().sigmoid(),
                decode(branch._replace(bins=branch.bins.float())),
                branch.anchors,
                objects,
            )
            for branch, assigner in zip(
                _branches(predictions),
                (self.assigner, replace(self.assigner, topk=1)),
                strict=False,
            )
        )

    def _of(self, predictions: Predictions, objects: Objects, assignment: Assignment) -> LossParts:
        logits, bins = predictions.logits.float(), predictions.bins.float()
        predictions = predictions._replace(logits=logits, bins=bins)
        boxes = decode(predictions)
        labels, targets = _wanted(assignment, objects)
        found = assignment.foreground
        normaliser, assigned = self._divisors(assignment, objects)
        quality = assignment.quality[found]
        image, anchor = found.nonzero(as_tuple=True)
        scores = torch.zeros_like(logits)
        scores[image, anchor, labels] = quality
        classification = F.binary_cross_entropy_with_logits(logits, scores, reduction="sum")
        overlap = complete_iou(boxes[image, anchor], targets)
        distances = _distances(predictions, anchor, targets)
        focal = distribution_focal(bins[image, anchor], distances)
        identity = F.cross_entropy(logits[image, anchor], labels, reduction="sum")
        return LossParts(
            self.weights.classification * classification / normaliser,
            self.weights.box * ((1 - overlap) * quality).sum() / normaliser,
            self.weights.distribution * (focal * quality).sum() / normaliser,
            self.weights.identity * identity / assigned,
        )

    def _divisors(self, assignment: Assignment, objects: Objects) -> tuple[Tensor, Tensor]:
        """Return the sum of target scores, at least the number of objects, and of anchors."""
        sums = (assignment.quality.sum(), objects.present.sum(), assignment.foreground.sum())
        quality, count, assigned = self.processes.mean(torch.stack([one.float() for one in sums]))
        least = 1 / self.processes.count
        return torch.maximum(quality, count).clamp(least), assigned.clamp(least)


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the complete IoU (n,) of paired boxes (n, 4), xyxy.

    IoU - d^2 / c^2 - a * v, with d the distance of the centres, c the diagonal of the enclosing
    box, v = 4 / pi^2 * (difference of arctan(width / height))^2 and a = v / (1 - IoU + v), which
    takes no gradient (Zheng et al., AAAI 2020, equations 10 and 11).
    """
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    inner = (low[:, 2:] - high[:, :2]).clamp(0).prod(-1)
    size, other = first[:, 2:] - first[:, :2], second[:, 2:] - second[:, :2]
    iou = inner / (size.prod(-1) + other.prod(-1) - inner).clamp(_TINY)
    diagonal = (high[:, 2:] - low[:, :2]).square().sum(-1).clamp(_TINY)
    shift = (first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]).square().sum(-1) / 4
    angle = torch.atan2(size[:, 0], size[:, 1]) - torch.atan2(other[:, 0], other[:, 1])
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        share = aspect / (1 - iou + aspect).clamp(_TINY)
    return iou - shift / diagonal - share * aspect


def distribution_focal(bins: Tensor, distances: Tensor) -> Tensor:
    """Return the Distribution Focal Loss (n,) of logits (n, 4, bins), mean over the four sides.

    The cross-entropies of the two bins around a distance, weighted by nearness (Li et al., NeurIPS
    2020, equation 6). Distances (n, 4), in strides, beyond the last bin count as the last one.
    """
    last = bins.shape[-1] - 1
    distances = distances.clamp(0, last)
    lower = distances.floor().clamp(max=last - 1)
    above = distances - lower
    log = bins.log_softmax(-1)
    index = lower.long()[..., None]
    near = log.gather(-1, index).squeeze(-1)
    far = log.gather(-1, index + 1).squeeze(-1)
    return -((1 - above) * near + above * far).mean(-1)


def _branches(predictions: Predictions) -> tuple[Predictions, ...]:
    """List the sets of predictions: what several anchors say, and what one says of each object."""
    once = predictions.one_to_one
    return (predictions,) if once is None else (predictions, once)


def _wanted(assignment: Assignment, objects: Objects) -> tuple[Tensor, Tensor]:
    """Return the labels (n,) and boxes (n, 4) of the n foreground anchors."""
    found = assignment.foreground
    image = found.nonzero(as_tuple=True)[0]
    which = assignment.objects[found]
    if objects.labels.shape[1] == 0:
        return which, objects.boxes.new_zeros(0, 4)
    return objects.labels[image, which], objects.boxes[image, which]


def _distances(predictions: Predictions, anchor: Tensor, targets: Tensor) -> Tensor:
    """Return the distances (n, 4), in strides, from n anchors to the sides of their targets."""
    centres = predictions.anchors[anchor]
    sides = torch.cat([centres - targets[:, :2], targets[:, 2:] - centres], -1)
    return sides / predictions.strides[anchor, None]
