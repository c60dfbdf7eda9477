"""How accurate a network is: mAP of a torch module or an engine on one split.

- Both are a callable from a batch of uint8 images to boxes and scores, so that the accuracy and the
  latency of a candidate can come from one artifact.
- mAP is COCO's, on boxes mapped back to the original images, so that candidates with different
  input sizes are judged on the same objects. It is computed here, from the matches that the
  interval needs anyway: that costs a third of faster-coco-eval beside them, which is the reference
  of the tests and says how accurate single classes are.
- The interval comes from a bootstrap over images (`bootstrap`): which images happened to be in the
  split is the largest part of the uncertainty that can be computed from one network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from nas.accuracy.bootstrap import average_precision, bootstrap_interval
from nas.accuracy.dataset import ResizedSplit, Split, SplitName
from nas.accuracy.detections import Detections, box_areas, detect_batch
from nas.accuracy.matching import THRESHOLDS, Matches, match_by_size
from nas.errors import DatasetError

__all__ = [
    "Accuracy",
    "Agreement",
    "Artifact",
    "Predict",
    "Weights",
    "detections_on",
    "evaluate",
    "per_class_ap",
    "score",
]

Weights = Literal["inherited", "fine-tuned", "trained"]
Artifact = Literal["torch", "engine", "graph"]
Predict = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Images (B, 3, H, W) uint8 -> boxes (B, A, 4) in network pixels, scores (B, A, classes)."""


@dataclass(frozen=True)
class Agreement:
    """How far an engine finds what its network finds in fp32.

    Args:
        share: of the detections of both, those that the other has too (`match_detections`); None if
            neither found anything.
        images: that were compared.
        reference: what computed the network in fp32, such as `"torch fp32"`.
    """

    share: float | None
    images: int
    reference: str

    def __str__(self) -> str:
        if self.share is None:
            return f"nothing found to compare with {self.reference} on {self.images} images"
        return f"{self.share:.1%} of detections as by {self.reference}, on {self.images} images"


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one network, with everything needed to compare it.

    Args:
        map50_95: mean average precision over classes and IoU 0.50 to 0.95, in 0..1 as the others.
        map50: at IoU 0.50.
        map_small: of objects below 32x32 original pixels; None where the split has none.
        map_medium: of objects from 32x32 to 96x96.
        map_large: of objects from 96x96.
        images: how many images were scored.
        split: which split.
        weights: where the weights come from.
        artifact: what produced the boxes.
        low: lower bound of the 95 % bootstrap interval of `map50_95`; None where not asked for.
        high: upper bound.
        agreement: of the engine with its network in fp32; None where that was not compared.
    """

    map50_95: float
    map50: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    images: int
    split: SplitName
    weights: Weights
    artifact: Artifact
    low: float | None = None
    high: float | None = None
    agreement: Agreement | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, SQL or YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Accuracy:
        """Read what `as_dict` returned."""
        agreement = values.get("agreement")
        return cls(**{**values, "agreement": Agreement(**agreement) if agreement else None})


def evaluate(
    predict: Predict,
    split: ResizedSplit,
    *,
    weights: Weights,
    artifact: Artifact = "torch",
    batch_size: int = 32,
    nms: bool = True,
    interval: bool = True,
    seed: int = 0,
) -> tuple[Accuracy, list[Detections]]:
    """Run `predict` over `split` and score what it finds.

    Args:
        predict: see `Predict`; called with at most `batch_size` images, in order.
        split: images at the network's input size.
        weights: recorded in the result.
        artifact: recorded in the result.
        batch_size: 1 for an engine built for one image.
        nms: remove duplicates; without for a network that finds each object once.
        interval: also compute the bootstrap interval (`low`, `high`).
        seed: of the bootstrap.

    Returns:
        The accuracy, and the detections of each image in pixels of the original images.

    Raises:
        DatasetError: the split has no object to find.
    """
    detections = detections_on(predict, split, range(len(split)), batch_size=batch_size, nms=nms)
    accuracy = score(
        detections,
        split.split,
        weights=weights,
        artifact=artifact,
        seed=seed if interval else None,
    )
    return accuracy, detections


def detections_on(
    predict: Predict, split: ResizedSplit, images: range, *, batch_size: int = 32, nms: bool = True
) -> list[Detections]:
    """Return what `predict` finds in some images of `split`, in pixels of the original images."""
    found: list[Detections] = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        pixels = split.images[part.start : part.stop : part.step]
        found += detect_batch(*predict(pixels), nms=nms)
    return [
        replace(each, boxes=split.to_original(index, each.boxes))
        for index, each in zip(images, found, strict=True)
    ]


def score(
    detections: Sequence[Detections],
    split: Split,
    *,
    weights: Weights,
    artifact: Artifact,
    seed: int | None = None,
) -> Accuracy:
    """Score the detections of each image of `split`, in pixels of the original images.

    Classes of which the split has no object are left out of the means, as COCO does.

    Args:
        detections: of each image, best first, at most 100.
        split: what there was to find.
        weights: recorded in the result.
        artifact: recorded in the result.
        seed: of the bootstrap interval; None computes none.

    Raises:
        DatasetError: the split has no object to find.
    """
    _require_objects(split)
    matches = match_by_size(detections, split.annotations)
    every, small, medium, large = (_precisions(one, len(split)) for one in matches)
    low, high = (None, None) if seed is None else bootstrap_interval(matches[0], len(split), seed)
    return Accuracy(
        map50_95=float(every.mean()),
        map50=float(every[:, 0].mean()),
        map_small=_mean(small),
        map_medium=_mean(medium),
        map_large=_mean(large),
        images=len(split),
        split=split.name,
        weights=weights,
        artifact=artifact,
        low=low,
        high=high,
    )


def per_class_ap(
    detections: Sequence[Detections], split: Split, classes: Sequence[str]
) -> dict[str, float | None]:
    """Return AP50-95 of each class; None where `split` has no object of it."""
    precision = _precision(detections, split)[:, :, :, 0]
    evaluated = dict(zip(_labels(split), np.moveaxis(precision, 2, 0), strict=True))
    return {
        name: _mean(found[found > -1]) if (found := evaluated.get(label)) is not None else None
        for label, name in enumerate(classes)
    }


def _precision(detections: Sequence[Detections], split: Split) -> NDArray[np.float64]:
    """Return precision (10 IoU thresholds, 101 recalls, classes, 4 areas); -1: nothing to find."""
    _require_objects(split)
    frame = {
        "images": [{"id": index} for index in range(len(split))],
        # Detections of further classes have no effect: there is nothing of them to find.
        "categories": [{"id": label, "name": str(label)} for label in _labels(split)],
    }
    evaluation = COCOeval_faster(
        COCO({**frame, "annotations": _coco_objects(split)}),
        COCO({**frame, "annotations": _coco_detections(detections)}),
        iouType="bbox",
    )
    evaluation.evaluate()
    evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"][..., -1]
    return precision


def _labels(split: Split) -> list[int]:
    """Classes with an object in `split`."""
    return sorted({int(label) for objects in split.annotations for label in objects.labels})


def _coco_objects(split: Split) -> list[dict[str, Any]]:
    return _coco_entries(
        (index, each.boxes, each.labels, {"area": each.areas, "iscrowd": each.crowd.astype(int)})
        for index, each in enumerate(split.annotations)
    )


def _coco_detections(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    return _coco_entries(
        (index, each.boxes, each.labels, {"area": box_areas(each.boxes), "score": each.scores})
        for index, each in enumerate(detections)
    )


def _coco_entries(
    images: Iterable[tuple[int, NDArray[np.float32], NDArray[np.int64], dict[str, NDArray[Any]]]],
) -> list[dict[str, Any]]:
    """Write boxes as COCO's dictionaries; ids count from 1, because 0 means unmatched there."""
    entries: list[dict[str, Any]] = []
    for image, boxes, labels, columns in images:
        corners = boxes.astype(np.float64)
        corners[:, 2:] -= corners[:, :2]
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        entries += [
            {
                "id": len(entries) + number,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                **dict(zip(columns, rest, strict=True)),
            }
            for number, (box, label, rest) in enumerate(
                zip(corners.tolist(), labels.tolist(), values, strict=True), start=1
            )
        ]
    return entries


def _precisions(matches: Matches, images: int) -> NDArray[np.float64]:
    """Return the average precision (classes, 10) of each class at each IoU threshold."""
    once = np.ones((1, images), np.int64)
    found = [average_precision(each, once)[:, 0] for each in matches.values()]
    return np.reshape(found, (-1, len(THRESHOLDS)))


def _require_objects(split: Split) -> None:
    if not any((~objects.crowd).any() for objects in split.annotations):
        raise DatasetError(f"The {split.name} split has no object to find in {len(split)} images.")


def _mean(precision: NDArray[np.float64]) -> float | None:
    return float(precision.mean()) if precision.size else None
