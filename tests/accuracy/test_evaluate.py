from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from nas.accuracy.bootstrap import average_precision
from nas.accuracy.dataset import Annotations, Dataset, ResizedSplit, Split
from nas.accuracy.detections import Detections
from nas.accuracy.evaluate import Accuracy, Agreement, evaluate, per_class_ap, score
from nas.accuracy.matching import match_objects
from nas.errors import DatasetError

Sample = tuple[list[Detections], list[Annotations]]
_TORCH = {"weights": "trained", "artifact": "torch"}


def _split(annotations: Sequence[Annotations], side: int = 512) -> Split:
    count = len(annotations)
    images = np.zeros((count, 8, 8, 3), np.uint8)
    sizes = np.full((count, 2), side)
    return Split("validation", images, tuple(annotations), sizes, ("",) * count)


def _objects(*rows: tuple[list[float], int]) -> Annotations:
    return Annotations(np.array([box for box, _ in rows]), np.array([label for _, label in rows]))


def _found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )


def _echo(
    split: ResizedSplit, classes: int
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A network that finds everything: it knows the objects of the next images."""
    position = 0
    most = max(len(each) for each in split.annotations)

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal position
        boxes = np.zeros((len(images), most, 4), np.float32)
        scores = np.zeros((len(images), most, classes), np.float32)
        for index, objects in enumerate(split.annotations[position : position + len(images)]):
            boxes[index, : len(objects)] = objects.boxes
            scores[index, np.arange(len(objects)), objects.labels] = 0.9
        position += len(images)
        return boxes, scores

    return predict


_A, _B = [0, 0, 40, 40], [100, 100, 140, 140]


@pytest.mark.parametrize(
    ("objects", "found", "map50_95", "map50"),
    [
        # One object, found exactly.
        ([(_A, 0)], [(_A, 0.9, 0)], 1, 1),
        # IoU 0.9 reaches the thresholds 0.50 to 0.90: 9 of 10.
        ([(_A, 0)], [([0, 0, 40, 36], 0.9, 0)], 0.9, 1),
        # IoU 0.6 reaches 0.50, 0.55 and 0.60.
        ([(_A, 0)], [([0, 0, 40, 24.01], 0.9, 0)], 0.3, 1),
        # Wrong place, right place: precision is 1/2 at every recall.
        ([(_A, 0)], [(_B, 0.9, 0), (_A, 0.8, 0)], 0.5, 0.5),
        # A second detection of the same object comes after it and costs nothing.
        ([(_A, 0)], [(_A, 0.9, 0), (_A, 0.8, 0)], 1, 1),
        # One of two objects: precision 1 up to recall 0.5, which are 51 of 101 points.
        ([(_A, 0), (_B, 0)], [(_A, 0.9, 0)], 51 / 101, 51 / 101),
        # Two classes, one of them not found.
        ([(_A, 0), (_B, 1)], [(_A, 0.9, 0)], 0.5, 0.5),
        # Right place, wrong class.
        ([(_A, 0)], [(_A, 0.9, 1)], 0, 0),
    ],
)
def test_score__by_hand(
    objects: list[tuple[list[float], int]],
    found: list[tuple[list[float], float, int]],
    map50_95: float,
    map50: float,
) -> None:
    accuracy = score([_found(*found)], _split([_objects(*objects)]), **_TORCH)
    assert accuracy.map50_95 == pytest.approx(map50_95)
    assert accuracy.map50 == pytest.approx(map50)


def test_score__sizes_without_objects_are_none() -> None:
    small, large = [0, 0, 20, 20], [100, 100, 300, 300]
    split = _split([_objects((small, 0), (large, 0))])
    accuracy = score([_found((small, 0.9, 0))], split, **_TORCH)
    assert (accuracy.map_small, accuracy.map_medium, accuracy.map_large) == (1, None, 0)


def test_score__nothing_found_is_zero() -> None:
    accuracy = score([_found()], _split([_objects((_A, 0))]), **_TORCH)
    assert (accuracy.map50_95, accuracy.map50, accuracy.map_medium) == (0, 0, 0)


def test_score__split_without_objects_is_an_error() -> None:
    with pytest.raises(DatasetError, match="validation split has no object to find in 1 images"):
        score([_found()], _split([_objects()]), **_TORCH)


def test_score__detections_in_a_crowd_do_not_count() -> None:
    crowd = Annotations(np.array([_A, _B]), np.array([0, 0]), np.array([False, True]))
    found = _found((_B, 0.95, 0), ([101, 101, 120, 120], 0.95, 0), (_A, 0.9, 0))
    assert score([found], _split([crowd]), **_TORCH).map50_95 == pytest.approx(1)


def test_score__equals_faster_coco_eval_on_files(noisy_sample: Sample) -> None:
    detections, annotations = noisy_sample
    accuracy = score(detections, _split(annotations), **_TORCH)
    expected = _reference(detections, annotations)
    found = (accuracy.map50_95, accuracy.map50)
    found += (accuracy.map_small, accuracy.map_medium, accuracy.map_large)
    keys = ("AP_all", "AP_50", "AP_small", "AP_medium", "AP_large")
    assert found == pytest.approx([expected[key] for key in keys], abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_score__equals_faster_coco_eval_where_everything_overlaps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [_crowded_image(rng) for _ in range(20)]
    detections, annotations = [found for found, _ in pairs], [objects for _, objects in pairs]
    accuracy = score(detections, _split(annotations), **_TORCH)
    expected = _reference(detections, annotations)
    found = (accuracy.map50_95, accuracy.map50)
    found += (accuracy.map_small, accuracy.map_medium, accuracy.map_large)
    keys = ("AP_all", "AP_50", "AP_small", "AP_medium", "AP_large")
    assert found == pytest.approx([expected[key] for key in keys], abs=1e-9)


def _crowded_image(rng: np.random.Generator) -> tuple[Detections, Annotations]:
    """Objects and detections on a coarse grid: equal overlaps, equal scores, borders of sizes."""

    def boxes(count: int) -> np.ndarray:
        corners = rng.integers(0, 4, (count, 2)) * 16
        return np.concatenate([corners, corners + rng.choice([16, 32, 48, 96, 112], (count, 2))], 1)

    objects = Annotations(boxes(6), rng.integers(0, 4, 6), rng.random(6) < 0.2)
    scores = np.sort(rng.random(12).round(1).astype(np.float32))[::-1]
    found = Detections(boxes(12).astype(np.float32), scores, rng.integers(0, 4, 12))
    return found, objects


def _reference(detections: list[Detections], annotations: list[Annotations]) -> dict[str, float]:
    """The library's own way: COCO JSON and its reader of results."""
    truth = {
        "images": [{"id": i} for i in range(len(annotations))],
        "categories": [{"id": label, "name": str(label)} for label in range(4)],
        "annotations": [
            {"image_id": i, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for i, each in enumerate(annotations)
            for box, label, area, crowd in zip(
                _xywh(each.boxes),
                each.labels.tolist(),
                each.areas.tolist(),
                each.crowd,
                strict=True,
            )
        ],
    }
    for number, annotation in enumerate(truth["annotations"], start=1):
        annotation["id"] = number
    results = [
        {"image_id": i, "category_id": label, "bbox": box, "score": value}
        for i, each in enumerate(detections)
        for box, label, value in zip(
            _xywh(each.boxes), each.labels.tolist(), each.scores.tolist(), strict=True
        )
    ]
    coco = COCO(json.loads(json.dumps(truth)))
    evaluation = COCOeval_faster(coco, coco.loadRes(results), "bbox")
    evaluation.run()
    return evaluation.stats_as_dict


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    return [[x, y, right - x, bottom - y] for x, y, right, bottom in boxes.tolist()]


@pytest.mark.parametrize("crowds", [True, False])
def test_bootstrap_accumulation__equals_faster_coco_eval(
    crowds: bool, noisy_sample: Sample
) -> None:
    detections, annotations = noisy_sample
    if not crowds:
        annotations = [each.select(~each.crowd) for each in annotations]
    matches = match_objects(detections, annotations)
    weights = np.ones((1, len(annotations)), np.int64)
    own = {label: average_precision(each, weights)[:, 0].mean() for label, each in matches.items()}
    reference = per_class_ap(detections, _split(annotations), "abcd")
    assert list(own.values()) == pytest.approx(list(reference.values()), abs=1e-6)


def test_per_class_ap__absent_classes_are_none() -> None:
    split = _split([_objects((_A, 0), (_B, 2))])
    found = [_found((_A, 0.9, 0), (_A, 0.9, 1))]
    assert per_class_ap(found, split, ["a", "b", "c"]) == {"a": 1, "b": None, "c": 0}


@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_evaluate__perfect_network_at_any_input_size(
    size: tuple[int, int], batch_size: int, few_digits: Dataset
) -> None:
    split = few_digits.validation.resized(*size)
    predict = _echo(split, 10)
    accuracy, detections = evaluate(predict, split, weights="trained", batch_size=batch_size)
    assert accuracy.map50_95 == pytest.approx(1)
    assert (accuracy.low, accuracy.high) == pytest.approx((1, 1))
    assert accuracy.images == len(detections) == 16
    original = few_digits.validation.annotations[0].boxes
    found = detections[0].boxes
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(original, axis=0), atol=0.01)


def test_evaluate__records_what_was_scored(few_digits: Dataset) -> None:
    split = few_digits.validation.resized(96, 96)
    accuracy, _ = evaluate(
        _echo(split, 10), split, weights="inherited", artifact="engine", interval=False
    )
    assert (accuracy.split, accuracy.weights, accuracy.artifact) == (
        "validation",
        "inherited",
        "engine",
    )
    assert (accuracy.low, accuracy.high) == (None, None)


def test_evaluate__silent_network_scores_zero(few_digits: Dataset) -> None:
    def silent(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(images), 7, 4), np.float32), np.zeros((len(images), 7, 10), np.float32)

    accuracy, detections = evaluate(silent, few_digits.test.resized(96, 96), weights="trained")
    assert (accuracy.map50_95, accuracy.low, accuracy.high) == (0, 0, 0)
    assert sum(map(len, detections)) == 0


def test_evaluate__prints_nothing(few_digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    split = few_digits.test.resized(96, 96)
    evaluate(_echo(split, 10), split, weights="trained")
    assert capsys.readouterr() == ("", "")


def test_accuracy__travels_as_plain_values() -> None:
    accuracy = Accuracy(0.5, 0.8, None, 0.4, 0.6, 300, "test", "fine-tuned", "engine", 0.45, 0.55)
    compared = replace(accuracy, agreement=Agreement(None, 16, "torch fp32"))
    assert Accuracy.from_dict(json.loads(json.dumps(compared.as_dict()))) == compared
    assert Accuracy.from_dict(json.loads(json.dumps(accuracy.as_dict()))) == accuracy
