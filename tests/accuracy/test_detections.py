from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.accuracy.detections import (
    MOST_CANDIDATES,
    MOST_DETECTIONS,
    NMS_IOU,
    SCORE_THRESHOLD,
    Detections,
    detect,
    detect_batch,
    match_detections,
    paired_iou,
)
from nas.errors import DatasetError

_SEEDS = st.integers(0, 10_000)


def _outputs(
    seed: int, images: int = 1, anchors: int = 60, classes: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Random boxes in clumps, so that many overlap, and scores without ties."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 100, (images, 4, 2))[:, rng.integers(4, size=anchors)]
    centres = centres + rng.normal(0, 4, centres.shape)
    half = rng.uniform(8, 16, (images, anchors, 2))
    boxes = np.concatenate([centres - half, centres + half], axis=2)
    # Drawn at random, two of 200 float32 would be equal once in a thousand times.
    ranks = np.stack([rng.permutation(anchors * classes) for _ in range(images)]) + 0.5
    scores = (ranks / (anchors * classes)).reshape(images, anchors, classes)
    return boxes.astype(np.float32), scores.astype(np.float32)


def _greedy(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[int, int]]:
    """The textbook loop: (anchor, class) in the order in which it keeps them."""
    ranked = sorted(np.ndindex(scores.shape), key=lambda each: -scores[each])[:MOST_CANDIDATES]
    kept: list[tuple[int, int]] = []
    for anchor, label in ranked:
        rivals = [boxes[other] for other, same in kept if same == label]
        if not any(paired_iou(boxes[anchor], rival) > NMS_IOU for rival in rivals):
            kept.append((anchor, label))
    return kept[:MOST_DETECTIONS]


@pytest.mark.parametrize(("anchors", "classes"), [(60, 3), (40, 1), (200, 4), (1, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_detect__equals_the_greedy_loop(seed: int, anchors: int, classes: int) -> None:
    boxes, scores = _outputs(seed, 1, anchors, classes)
    expected = _greedy(boxes[0], scores[0])
    found = detect(boxes[0], scores[0])
    np.testing.assert_array_equal(found.boxes, [boxes[0, anchor] for anchor, _ in expected])
    np.testing.assert_array_equal(found.labels, [label for _, label in expected])
    np.testing.assert_array_equal(found.scores, [scores[0][each] for each in expected])


@settings(deadline=None, max_examples=40)
@given(seed=_SEEDS)
def test_detect__kept_boxes_of_a_class_do_not_overlap(seed: int) -> None:
    found = detect(*(part[0] for part in _outputs(seed)))
    overlap = paired_iou(found.boxes[:, None], found.boxes[None])
    np.fill_diagonal(overlap, 0)
    same = found.labels[:, None] == found.labels
    assert overlap[same].max(initial=0) <= NMS_IOU
    assert (np.diff(found.scores) <= 0).all()


@settings(deadline=None, max_examples=40)
@given(seed=_SEEDS)
def test_detect__twice_changes_nothing(seed: int) -> None:
    once = detect(*(part[0] for part in _outputs(seed)))
    scores = np.zeros((len(once), 3), np.float32)
    scores[np.arange(len(once)), once.labels] = once.scores
    again = detect(once.boxes, scores)
    np.testing.assert_array_equal(again.boxes, once.boxes)
    np.testing.assert_array_equal(again.scores, once.scores)


@settings(deadline=None, max_examples=40)
@given(seed=_SEEDS, anchors=st.integers(1, 70))
def test_detect__without_suppression_the_best_pairs_stand_for_themselves(
    seed: int, anchors: int
) -> None:
    boxes, scores = (part[0] for part in _outputs(seed, anchors=anchors))
    ranked = sorted(np.ndindex(scores.shape), key=lambda each: -scores[each])
    expected = [pair for pair in ranked if scores[pair] >= SCORE_THRESHOLD][:MOST_DETECTIONS]
    found = detect(boxes, scores, nms=False)
    np.testing.assert_array_equal(found.boxes, [boxes[anchor] for anchor, _ in expected])
    np.testing.assert_array_equal(found.labels, [label for _, label in expected])
    np.testing.assert_array_equal(found.scores, [scores[each] for each in expected])


def test_detect_batch__without_suppression_images_do_not_touch_each_other() -> None:
    boxes, scores = _outputs(0, images=5)
    for index, found in enumerate(detect_batch(boxes, scores, nms=False)):
        alone = detect(boxes[index], scores[index], nms=False)
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.scores, alone.scores)


def test_detect_batch__images_do_not_touch_each_other() -> None:
    boxes, scores = _outputs(0, images=5)
    for index, found in enumerate(detect_batch(boxes, scores)):
        alone = detect(boxes[index], scores[index])
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.labels, alone.labels)


def test_detect__low_scores_are_dropped() -> None:
    boxes, scores = _outputs(0)
    assert len(detect(boxes[0], scores[0] * SCORE_THRESHOLD * 0.99)) == 0
    assert len(detect(boxes[0], np.full_like(scores[0], SCORE_THRESHOLD))) > 0


def test_detect__what_is_not_finite_or_has_no_area_is_no_detection() -> None:
    boxes, scores = _outputs(0)
    boxes[0, :30, 2] = np.inf
    boxes[0, 30, 0] = np.nan
    scores[0, 31] = np.nan
    boxes[0, 32] = boxes[0, 32, ::-1]
    found = detect(boxes[0], scores[0])
    assert len(found)
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def test_detect__bounded_even_if_every_score_is_equal() -> None:
    boxes = np.zeros((2000, 4), np.float32)
    boxes[:, 0] = np.arange(2000) * 20
    boxes[:, 2:] = boxes[:, :2] + 10
    assert len(detect(boxes, np.full((2000, 5), 0.5, np.float32))) == MOST_DETECTIONS


def test_detect__no_anchor_no_detection() -> None:
    assert len(detect(np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32))) == 0


def test_detect__shapes_that_disagree() -> None:
    with pytest.raises(DatasetError, match=r"got \(1, 5, 4\) and \(1, 6, 3\)"):
        detect(np.zeros((5, 4), np.float32), np.zeros((6, 3), np.float32))


@pytest.mark.parametrize(
    ("other", "expected"),
    [([0, 0, 10, 10], 1), ([0, 0, 10, 5], 0.5), ([5, 5, 15, 15], 25 / 175), ([20, 0, 30, 10], 0)],
)
def test_paired_iou__by_hand(other: list[float], expected: float) -> None:
    box = np.array([0, 0, 10, 10], np.float32)
    assert paired_iou(box, np.array(other, np.float32)) == pytest.approx(expected)
    assert paired_iou(box, np.zeros(4, np.float32)) == 0


def _found(*rows: tuple[list[float], float, int]) -> list[Detections]:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return [
        Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            np.array(labels, np.int64),
        )
    ]


_BOX = [0, 0, 100, 100]


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ((_BOX, 0.8, 1), 1),
        (([0, 0, 100, 91], 0.84, 1), 1),
        (([0, 0, 100, 89], 0.8, 1), 0),
        ((_BOX, 0.7, 1), 0),
        ((_BOX, 0.8, 2), 0),
    ],
)
def test_match_detections__same_class_place_and_score(
    other: tuple[list[float], float, int], share: float
) -> None:
    weak = ([50, 50, 90, 90], 0.2, 0)
    found, others = _found((_BOX, 0.8, 1), weak), _found(other)
    assert match_detections(found, others) == match_detections(others, found) == share


def test_match_detections__counts_what_either_has() -> None:
    far = ([200, 200, 300, 300], 0.8, 1)
    one, both = _found((_BOX, 0.8, 1)), _found((_BOX, 0.8, 1), far)
    assert match_detections(one, both) == pytest.approx(2 / 3)
    assert match_detections([*one, *both], [*both, *both]) == pytest.approx(6 / 7)
    assert match_detections(one, _found()) == match_detections(_found(), one) == 0


@pytest.mark.parametrize(("score", "other", "share"), [(0.1, 0.109, 1), (0.1, 0.112, 0)])
def test_match_detections__of_a_network_that_is_sure_of_nothing(
    score: float, other: float, share: float
) -> None:
    weak = ([50, 50, 90, 90], 0.04, 0)
    assert match_detections(_found((_BOX, score, 1), weak), _found((_BOX, other, 1))) == share


def test_match_detections__nothing_to_compare_is_nan() -> None:
    untrained = _found((_BOX, 0.01, 1))
    for a, b in (([], []), (_found(), _found()), (untrained, _found())):
        assert math.isnan(match_detections(a, b))
