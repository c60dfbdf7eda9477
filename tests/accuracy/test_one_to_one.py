"""What the one-to-one head is for: a network that learned to find each object once.

The one-to-many branches of the very same network are the control. On 24 scenes of digits, over
seeds 0, 1, 2: suppression removes 3, 9, 1 % of what the one-to-one branches find above a score of
0.05, and 19, 25, 15 % of what the one-to-many branches do; mAP without suppression is 0.750, 0.717,
0.777 and with it 0.750, 0.717, 0.776 (one-to-many with suppression: 0.822, 0.781, 0.819).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_architecture

from nas.accuracy.dataset import Dataset, ResizedSplit
from nas.accuracy.detections import detect_batch
from nas.accuracy.evaluate import Predict, evaluate
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_detector
from nas.model.detector import Detector

RECIPE = Recipe(
    iterations=200, batch_size=8, zoom=0, shift=0, light=0, contrast=0, amp="off", seed=0
)


ONCE, MANY = (
    tiny_architecture(block="c2f", hidden=4, side=96, kind=kind, activation="silu")
    for kind in ("one_to_one", "decoupled")
)


def _predictor(detector: Detector) -> Predict:
    deployed = detector.deploy()

    def predict(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            boxes, scores = deployed(torch.from_numpy(np.ascontiguousarray(images)).float() / 255)
        return boxes.numpy(), scores.numpy()

    return predict


@pytest.fixture(scope="module")
def scenes(few_digits: Dataset) -> ResizedSplit:
    return few_digits.train.resized(96, 96)


@pytest.fixture(scope="module")
def trained(few_digits: Dataset) -> dict[str, Predict]:
    """One trained network: its one-to-one branches, and its one-to-many branches."""
    torch.set_num_threads(1)
    once, many = (Detector(architecture) for architecture in (ONCE, MANY))
    train_detector(once, few_digits.train, RECIPE)
    kept = {name: t for name, t in once.state_dict().items() if "one_to_one" not in name}
    many.load_state_dict(kept)
    return {"once": _predictor(once), "many": _predictor(many)}


def _map(predict: Predict, scenes: ResizedSplit, *, nms: bool) -> float:
    accuracy, _ = evaluate(predict, scenes, weights="trained", nms=nms, interval=False)
    return accuracy.map50_95


def _duplicates(predict: Predict, scenes: ResizedSplit) -> float:
    """Share of the detections above 0.05 that suppression removes."""
    outputs = predict(scenes.images)
    kept, found = (
        sum(int((one.scores > 0.05).sum()) for one in detect_batch(*outputs, nms=nms))
        for nms in (True, False)
    )
    return 1 - kept / found


def test_one_to_one__training_suppresses_duplicates(
    trained: dict[str, Predict], scenes: ResizedSplit
) -> None:
    once, many = (_duplicates(trained[name], scenes) for name in ("once", "many"))
    assert many > 0.08  # else there was nothing to suppress
    assert once < many / 2


def test_one_to_one__is_as_accurate_without_suppression(
    trained: dict[str, Predict], scenes: ResizedSplit
) -> None:
    without = _map(trained["once"], scenes, nms=False)
    assert without > _map(trained["once"], scenes, nms=True) - 0.01
    assert without > 0.8 * _map(trained["many"], scenes, nms=True)
    assert without > 0.5
