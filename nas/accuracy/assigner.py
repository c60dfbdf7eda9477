"""Which anchor is responsible for which object: task-aligned assignment.

An anchor's alignment with an object grows with both its score for the object's class and the
overlap of its box, so classification and localisation are taught by the same anchors (TOOD, Feng
et al., ICCV 2021, equations 3 to 5). Each object takes its best-aligned anchors among those whose
centre lies inside it.

Everything is batched: objects are padded to the largest number in the batch, and no Python loop
runs over images, objects or anchors. Shapes: B images, A anchors, M objects at most, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nas.accuracy.dataset import Annotations
from nas.errors import InputError

__all__ = ["Assignment", "Objects", "TaskAlignedAssigner", "pairwise_iou"]

_TINY = 1e-9


class Objects(NamedTuple):
    """The objects of a batch, padded.

    Attributes:
        boxes: (B, M, 4) xyxy in pixels; zeros where there is no object.
        labels: (B, M) int64; 0 where there is no object.
        present: (B, M) bool.
    """

    boxes: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    def of(cls, annotations: Sequence[Annotations]) -> Objects:
        """Pad the objects of each image to the largest number in the batch."""
        counts = np.array([len(each.labels) for each in annotations])
        present = np.arange(counts.max(initial=0)) < counts[:, None]
        boxes = np.zeros((*present.shape, 4), np.float32)
        labels = np.zeros(present.shape, np.int64)
        boxes[present] = np.concatenate([each.boxes for each in annotations])
        labels[present] = np.concatenate([each.labels for each in annotations])
        return cls(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(present))


class Assignment(NamedTuple):
    """What each anchor shall predict.

    Attributes:
        foreground: (B, A) bool: the anchor is responsible for an object.
        objects: (B, A) int64: which one, an index into M; 0 in the background.
        quality: (B, A): the score to reach, in 0..1; 0 in the background.
    """

    foreground: Tensor
    objects: Tensor
    quality: Tensor


@dataclass(frozen=True)
class TaskAlignedAssigner:
    """Assign anchors by alignment = score^alpha * IoU^beta.

    Args:
        alpha: how much the score counts.
        beta: how much the overlap counts.
        topk: anchors per object, at most.

    Raises:
        InputError: `topk` below 1, or a negative exponent.
    """

    alpha: float = 1.0
    beta: float = 6.0
    topk: int = 8

    def __post_init__(self) -> None:
        if self.topk < 1 or min(self.alpha, self.beta) < 0:
            raise InputError(f"An assigner needs topk >= 1 and alpha, beta >= 0, got {self}.")

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, boxes: Tensor, anchors: Tensor, objects: Objects
    ) -> Assignment:
        """Assign in single precision.

        Args:
            scores: (B, A, C) in 0..1.
            boxes: (B, A, 4) predicted, xyxy in pixels.
            anchors: (A, 2) centres in pixels.
            objects: what is in the images.
        """
        if objects.labels.shape[1] == 0:
            return _nothing(scores)
        iou = pairwise_iou(objects.boxes, boxes.float())
        wanted = objects.labels[:, :, None].expand(-1, -1, scores.shape[1])
        score = scores.float().transpose(1, 2).gather(1, wanted)
        alignment = score.pow(self.alpha) * iou.pow(self.beta)
        eligible = _eligible(anchors, objects)
        chosen = self._best(alignment, eligible)
        # An anchor that several objects want goes to the one it overlaps most.
        owner = iou.masked_fill(~chosen, -1.0).argmax(1, keepdim=True)
        chosen = torch.zeros_like(chosen).scatter_(1, owner, chosen.any(1, keepdim=True))
        quality = _normalised(alignment.masked_fill(~chosen, 0.0), iou.masked_fill(~chosen, 0.0))
        return Assignment(chosen.any(1), owner.squeeze(1), quality.sum(1))

    def _best(self, alignment: Tensor, eligible: Tensor) -> Tensor:
        """Choose the `topk` best eligible anchors of each object: bool (B, M, A)."""
        ranked = alignment.masked_fill(~eligible, -1.0)
        best = ranked.topk(min(self.topk, alignment.shape[-1]), -1).indices
        return torch.zeros_like(eligible).scatter_(2, best, value=True) & eligible


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU (B, M, A) of boxes (B, M, 4) and (B, A, 4), xyxy; 0 for empty boxes."""
    a, b = first[:, :, None], second[:, None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    shared = sides[..., 0] * sides[..., 1]
    return shared / (_area(a) + _area(b) - shared).clamp(_TINY)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _eligible(anchors: Tensor, objects: Objects) -> Tensor:
    """Return which centres lie inside which object (B, M, A).

    An object so small that it contains no centre gets the nearest one.
    """
    boxes = objects.boxes[:, :, None]
    inside = ((anchors > boxes[..., :2]) & (anchors < boxes[..., 2:])).all(-1)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    nearest = (anchors - centres).square().sum(-1).argmin(-1, keepdim=True)
    missed = ~inside.any(-1, keepdim=True)
    reached = inside.scatter(2, nearest, inside.gather(2, nearest) | missed)
    return reached & objects.present[..., None]


def _normalised(alignment: Tensor, iou: Tensor) -> Tensor:
    """Scale each object's alignments so that the largest becomes its largest IoU."""
    largest = alignment.amax(-1, keepdim=True).clamp(torch.finfo(torch.float32).tiny)
    return alignment / largest * iou.amax(-1, keepdim=True)


def _nothing(scores: Tensor) -> Assignment:
    quality = scores.new_zeros(scores.shape[:2], dtype=torch.float32)
    return Assignment(quality.bool(), quality.long(), quality)
