"""Which detections find an object, by COCO's rules, for objects of all sizes and of each size.

Best detection first, each takes the free object of its class that it overlaps most, if by at least
the threshold. What does not count, such as a crowd region or an object of another size, is taken
only where nothing that counts is left, and then the detection counts neither for nor against. So
does a detection of another size that found nothing.

All thresholds and sizes are matched in one pass, which is most of what a mAP costs. Figures from it
equal faster-coco-eval's; tests compare them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.dataset import Annotations
from nas.accuracy.detections import Detections, box_areas, paired_iou

__all__ = ["AREAS", "THRESHOLDS", "ClassMatches", "Matches", "match_by_size", "match_objects"]

AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""Sizes of objects in square pixels, both ends included: all, small, medium, large."""

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU from which a detection finds an object."""

_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class over a whole split, best first, and whether each is right.

    Args:
        images: (n,) image of each detection.
        hits: (10, n) found an object at each IoU threshold.
        ignored: (10, n) counts neither for nor against.
        objects: (m,) image of each object that there is to find.
    """

    images: NDArray[np.int64]
    hits: _Flags
    ignored: _Flags
    objects: NDArray[np.int64]


Matches = dict[int, ClassMatches]
"""Class -> its matches, of the classes that have an object to find."""


def match_objects(detections: Sequence[Detections], annotations: Sequence[Annotations]) -> Matches:
    """Match the detections of each image to its objects, of whatever size.

    Args:
        detections: of each image, best first, in pixels of the original images.
        annotations: of each image, in the same pixels.
    """
    return match_by_size(detections, annotations, AREAS[:1])[0]


def match_by_size(
    detections: Sequence[Detections],
    annotations: Sequence[Annotations],
    areas: Sequence[tuple[float, float]] = AREAS,
) -> tuple[Matches, ...]:
    """Match the detections of each image to its objects of each of the sizes.

    Args:
        detections: of each image, best first, in pixels of the original images.
        annotations: of each image, in the same pixels.
        areas: the sizes.
    """
    wanted = [_sized(objects.areas, areas) & ~objects.crowd for objects in annotations]
    there = np.any([one.any(axis=1) for one in wanted], axis=0)
    matched = [
        _match_image(found, objects, counted[there])
        for found, objects, counted in zip(detections, annotations, wanted, strict=True)
    ]
    hits, taken = (np.concatenate(part, axis=2) for part in zip(*matched, strict=True))
    boxes = np.concatenate([found.boxes for found in detections])
    outside = ~_sized(box_areas(boxes), areas)[there, None]
    ignored = (taken & ~hits) | (~taken & outside)
    ranked = _ranked(detections, annotations)
    of_size = iter(zip(hits, ignored, strict=True))
    labels = np.concatenate([objects.labels for objects in annotations])
    where = np.repeat(np.arange(len(annotations)), [len(objects) for objects in annotations])
    return tuple(
        _by_class(ranked, *next(of_size), labels[flags], where[flags]) if flags.any() else {}
        for flags in np.concatenate(wanted, axis=1)
    )


@dataclass(frozen=True, eq=False)
class _Ranked:
    """The detections of a split: image by image, and best first in each class.

    Args:
        images: (n,) image of each detection.
        of_class: class -> the places of its detections, best first.
    """

    images: NDArray[np.int64]
    of_class: dict[int, NDArray[np.int64]]


def _ranked(detections: Sequence[Detections], annotations: Sequence[Annotations]) -> _Ranked:
    images = np.repeat(np.arange(len(detections)), [len(found) for found in detections])
    labels = np.concatenate([found.labels for found in detections])
    order = np.argsort(-np.concatenate([found.scores for found in detections]), kind="stable")
    labels = labels[order]
    classes = np.unique(np.concatenate([objects.labels for objects in annotations]))
    return _Ranked(images, {int(label): order[labels == label] for label in classes})


def _by_class(
    ranked: _Ranked,
    hits: _Flags,
    ignored: _Flags,
    labels: NDArray[np.int64],
    where: NDArray[np.int64],
) -> Matches:
    """Tell matches (10, n) apart by class; objects have a label and an image each."""
    return {
        int(label): ClassMatches(
            ranked.images[chosen], hits[:, chosen], ignored[:, chosen], where[labels == label]
        )
        for label in np.unique(labels)
        for chosen in [ranked.of_class[int(label)]]
    }


def _sized(square_pixels: NDArray[np.float32], areas: Sequence[tuple[float, float]]) -> _Flags:
    low, high = np.reshape(areas, (-1, 2)).T[:, :, None]
    return np.asarray((square_pixels >= low) & (square_pixels <= high))


def _match_image(found: Detections, objects: Annotations, counted: _Flags) -> tuple[_Flags, _Flags]:
    """Say which detections of an image take an object that counts, and which take anything.

    Args:
        found: n, best first.
        objects: m.
        counted: (sizes, m) the object counts.

    Returns:
        (sizes, 10, n) each.
    """
    # Among equal overlaps the reference takes the last object: the first one backwards.
    overlap, counted = _overlap(found, objects)[:, ::-1], counted[:, ::-1]
    inexhaustible = objects.crowd[::-1]
    shape = (len(counted), len(THRESHOLDS), len(found))
    hits, taken = np.zeros(shape, bool), np.zeros(shape, bool)
    free = np.ones((*shape[:2], len(objects)), bool)
    reaching = np.flatnonzero((overlap >= THRESHOLDS[0]).any(axis=1))
    enough = overlap[reaching, None] >= THRESHOLDS[:, None]
    # What counts goes before what does not, however much either overlaps.
    worth = enough[:, None] * (overlap[reaching, None] + 2 * counted)[:, :, None]
    for index, value in zip(reaching, worth, strict=True):
        reachable = free * value
        best, most = reachable.argmax(axis=2), reachable.max(axis=2)
        hits[..., index], taken[..., index] = most >= 2, most > 0
        size, level = np.nonzero(most)
        chosen = best[size, level]
        free[size, level, chosen] = inexhaustible[chosen]
    return hits, taken


def _overlap(found: Detections, objects: Annotations) -> _Floats:
    """Return (n, m): IoU, and for a crowd the share of the detection inside; 0 across classes."""
    boxes = found.boxes.astype(np.float64)[:, None]
    regions = objects.boxes.astype(np.float64)
    overlap: _Floats = paired_iou(boxes, regions[None])
    if objects.crowd.any():
        sides = np.minimum(boxes[..., 2:], regions[:, 2:]) - np.maximum(
            boxes[..., :2], regions[:, :2]
        )
        area = (boxes[..., 2:] - boxes[..., :2]).prod(axis=2)
        share = sides.clip(0).prod(axis=2) / np.maximum(area, np.finfo(np.float64).tiny)
        overlap = np.where(objects.crowd, share, overlap)
    overlap[found.labels[:, None] != objects.labels] = 0
    return overlap
