from __future__ import annotations

import numpy as np

from nas.accuracy.dataset import Annotations
from nas.accuracy.detections import Detections
from nas.accuracy.matching import match_by_size, match_objects

_SMALL, _MEDIUM, _AWAY = [0, 0, 30, 30], [0, 0, 34, 34], [200, 200, 230, 230]


def _found(*boxes: list[float]) -> Detections:
    count = len(boxes)
    scores = np.linspace(0.9, 0.1, count, dtype=np.float32)
    return Detections(np.array(boxes, np.float32), scores, np.zeros(count, np.int64))


def test_match__a_detection_of_an_object_of_another_size_does_not_count() -> None:
    every, small, medium, large = match_by_size(
        [_found(_SMALL)], [Annotations(np.array([_MEDIUM]), np.array([0]))]
    )
    assert every[0].hits[0].tolist() == [True]
    assert medium[0].hits[0].tolist() == [True]
    assert (small, large) == ({}, {})


def test_match__an_object_of_the_size_is_taken_before_a_better_one_of_another() -> None:
    objects = Annotations(np.array([_MEDIUM, _SMALL]), np.array([0, 0]))
    every, small, medium, _ = match_by_size([_found(_MEDIUM, _MEDIUM)], [objects])
    assert every[0].hits[0].tolist() == [True, True]
    assert small[0].hits[0].tolist() == [True, False]
    assert small[0].ignored[0].tolist() == [False, True]
    assert medium[0].hits[0].tolist() == [True, False]


def test_match__strays_count_against_their_own_size_only() -> None:
    objects = Annotations(np.array([_SMALL, [0, 0, 90, 90]]), np.array([0, 0]))
    every, small, medium, _ = match_by_size([_found(_AWAY)], [objects])
    ignored = [sizes[0].ignored[0].tolist() for sizes in (every, small, medium)]
    assert ignored == [[False], [False], [True]]


def test_match__a_crowd_takes_any_number_and_an_object_one() -> None:
    crowd = Annotations(np.array([_AWAY, _SMALL]), np.array([0, 0]), crowd=np.array([True, False]))
    matches = match_objects([_found(_AWAY, _AWAY, _SMALL, _SMALL)], [crowd])[0]
    assert matches.hits[0].tolist() == [False, False, True, False]
    assert matches.ignored[0].tolist() == [True, True, False, False]
    assert matches.objects.tolist() == [0]
