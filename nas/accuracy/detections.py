"""From a network's raw outputs to detections: score threshold, greedy suppression, at most 100.

Networks that learned to find each object once need no suppression: their best 100 pairs of anchor
and class are their detections.

Written for batches on a CPU, without torchvision: all pairs of candidates of one image and class
are compared at once, and the greedy result is recovered by a fixed-point iteration over the few
pairs that overlap. One image of 525 anchors and 10 classes costs about 0.2 ms of one core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nas.errors import DatasetError

__all__ = [
    "MOST_CANDIDATES",
    "MOST_DETECTIONS",
    "NMS_IOU",
    "SCORE_THRESHOLD",
    "Detections",
    "box_areas",
    "detect",
    "detect_batch",
    "match_detections",
    "paired_iou",
]

SCORE_THRESHOLD = 0.001
"""Detections below it are dropped: low, because mAP rewards every further object that is found."""

NMS_IOU = 0.65
"""Two detections of a class that overlap more than this are taken for the same object."""

MOST_DETECTIONS = 100
"""Detections per image: the COCO metric looks at no more."""

MOST_CANDIDATES = 300
"""Best class-anchor pairs of an image that enter the suppression.

It bounds the cost whatever the network says. Objects of which all pairs rank below are lost, which
can only matter in scenes with well over 50 objects.
"""

_LEAST_COUNTED = 0.02  # twice what an untrained head says of everything
_SURELY_COUNTED = 0.25

_Floats = NDArray[np.float32]
_Indices = NDArray[np.int64]
_Real = TypeVar("_Real", np.float32, np.float64)


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, best first.

    Args:
        boxes: (n, 4) xyxy in pixels, float32.
        scores: (n,) in 0..1, float32.
        labels: (n,) int64.
    """

    boxes: _Floats
    scores: _Floats
    labels: _Indices

    def __len__(self) -> int:
        return len(self.boxes)


def detect(boxes: _Floats, scores: _Floats, *, nms: bool = True) -> Detections:
    """Turn one image's boxes (A, 4) and scores (A, classes) into detections; see `detect_batch`."""
    return detect_batch(boxes[None], scores[None], nms=nms)[0]


def detect_batch(boxes: _Floats, scores: _Floats, *, nms: bool = True) -> list[Detections]:
    """Turn boxes (B, A, 4) and scores (B, A, classes) into the detections of each image.

    A box without area, or that is not finite (an overflow of half precision), is no detection.

    Args:
        boxes: xyxy in pixels.
        scores: in 0..1.
        nms: remove duplicates; without, every pair of anchor and class stands for itself.

    Raises:
        DatasetError: the shapes do not belong together.
    """
    if boxes.shape != (*scores.shape[:2], 4):
        raise DatasetError(
            f"Boxes (B, A, 4) and scores (B, A, classes) must agree, got {boxes.shape} and "
            f"{scores.shape}."
        )
    most = MOST_CANDIDATES if nms else MOST_DETECTIONS
    images, anchors, labels, best = _candidates(boxes, scores, most)
    chosen = boxes[images, anchors]
    kept = np.arange(len(images))
    if nms:
        groups = images * scores.shape[2] + labels
        # Candidates come best first, so a stable sort leaves them so within each group.
        order = np.argsort(groups, kind="stable")
        kept = np.sort(order[_unsuppressed(chosen[order], groups[order])])
    starts = np.searchsorted(images[kept], np.arange(len(boxes) + 1))
    ranges = zip(starts, np.minimum(starts[1:], starts[:-1] + MOST_DETECTIONS), strict=False)
    return [
        Detections(chosen[part], best[part], labels[part])
        for part in (kept[start:stop] for start, stop in ranges)
    ]


def match_detections(a: Sequence[Detections], b: Sequence[Detections]) -> float:
    """Return the share of the detections of `a` and `b` that the other has too.

    Those with a score above t count, and one is matched by a detection of the same class with IoU
    of at least 0.9 and a score within t / 5. t is 0.25, or half the best score of the image where
    that is less, so that a network that is sure of nothing is compared by what it is surest of; but
    never below 0.02. NaN if neither has any, so that no comparison passes for want of anything to
    compare.

    Args:
        a: of one network, image by image.
        b: of another, on the same images.
    """
    shares = [_matched(*order) for pair in zip(a, b, strict=True) for order in (pair, pair[::-1])]
    found = np.concatenate(shares) if shares else np.zeros(0, bool)
    return float(found.mean()) if len(found) else math.nan


def paired_iou(a: NDArray[_Real], b: NDArray[_Real]) -> NDArray[_Real]:
    """Return the IoU of boxes xyxy (..., 4), broadcast against each other; 0 for empty boxes."""
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    union = box_areas(a) + box_areas(b) - shared
    iou: NDArray[_Real] = shared / np.maximum(union, np.finfo(np.float32).tiny)
    return iou


def box_areas(boxes: NDArray[_Real]) -> NDArray[_Real]:
    """Return the areas of boxes xyxy (..., 4)."""
    area: NDArray[_Real] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return area


def _matched(a: Detections, b: Detections) -> NDArray[np.bool_]:
    best = max(one.scores.max(initial=0) for one in (a, b))
    least = np.clip(best / 2, _LEAST_COUNTED, _SURELY_COUNTED)
    counted = a.scores > least
    same_class = np.equal.outer(a.labels[counted], b.labels)
    same_place = paired_iou(a.boxes[counted, None], b.boxes[None]) >= 0.9
    same_score = np.abs(np.subtract.outer(a.scores[counted], b.scores)) <= least / 5
    return np.asarray((same_class & same_place & same_score).any(axis=1))


def _candidates(
    boxes: _Floats, scores: _Floats, most: int
) -> tuple[_Indices, _Indices, _Indices, _Floats]:
    """Return image, anchor, class and score of the best pairs, by image and best first."""
    finite = np.isfinite(boxes).all(axis=2)
    solid = (boxes[:, :, 2:] > boxes[:, :, :2]).all(axis=2)
    usable = np.where(
        (scores >= SCORE_THRESHOLD) & np.asarray(finite & solid)[:, :, None], scores, 0
    )
    flat = torch.from_numpy(usable.reshape(len(boxes), -1))
    top, where = (part.numpy() for part in flat.topk(min(most, flat.shape[1])))
    images, ranks = np.nonzero(top > 0)
    anchors, labels = np.divmod(where[images, ranks], scores.shape[2])
    return images, anchors, labels, top[images, ranks]


def _unsuppressed(boxes: _Floats, groups: _Indices) -> NDArray[np.bool_]:
    """Return which boxes greedy suppression keeps; groups are contiguous and best first.

    Box j is dropped if a kept box before it in its group overlaps it. Starting from "all kept" and
    applying that rule until nothing changes gives the greedy answer: after k rounds the first k
    boxes of each group are final.
    """
    better, worse = _overlapping_pairs(boxes, groups)
    kept: NDArray[np.bool_] = np.ones(len(boxes), bool)
    while True:
        updated: NDArray[np.bool_] = np.ones(len(boxes), bool)
        updated[worse[kept[better]]] = False
        if np.array_equal(updated, kept):
            return kept
        kept = updated


def _overlapping_pairs(boxes: _Floats, groups: _Indices) -> tuple[_Indices, _Indices]:
    """Return the index pairs i < j of one group with an IoU above `NMS_IOU`."""
    own = np.arange(len(groups))
    partners = np.searchsorted(groups, groups, side="right") - own - 1
    starts = np.cumsum(partners) - partners
    second = np.arange(partners.sum()) + np.repeat(own + 1 - starts, partners)
    # An IoU never exceeds the ratio of the shared to the larger width: this test on two coordinates
    # leaves few pairs for the whole formula. It is a little looser, for the sake of rounding.
    left, right = np.ascontiguousarray(boxes[:, 0]), np.ascontiguousarray(boxes[:, 2])
    shared = np.minimum(np.repeat(right, partners), right[second])
    shared -= np.maximum(np.repeat(left, partners), left[second])
    width = (right - left) * np.float32(NMS_IOU - 0.01)
    near = np.flatnonzero(shared >= np.maximum(np.repeat(width, partners), width[second]))
    first, second = np.repeat(own, partners)[near], second[near]
    overlapping = paired_iou(boxes[first], boxes[second]) > NMS_IOU
    return first[overlapping], second[overlapping]
