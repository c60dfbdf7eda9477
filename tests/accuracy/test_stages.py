from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from nas.accuracy.dataset import Dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.stages import Stages, gates
from nas.accuracy.training import Progress, train_detector
from nas.errors import InputError
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

THREE = Stages(gate_warmup=0.5, fine_tuning=0.25)


def test_gates__of_a_detector_and_of_a_supernet(tiny: Callable[..., Architecture]):
    detector = Detector(tiny(tokens=2))
    (gate,) = gates(detector)
    assert gate.item() == 0
    assert len(gates(Supernet([tiny(tokens=2)]))) == 1
    assert gates(Detector(tiny())) == []


def test_stages__gates_stay_at_zero_in_the_warm_up(
    few_digits: Dataset, tiny: Callable[..., Architecture]
):
    detector = Detector(tiny(tokens=2))
    (gate,) = gates(detector)
    seen: list[float] = []

    def hear(_: Progress) -> None:
        seen.append(gate.item())

    recipe = Recipe(iterations=8, batch_size=2, stages=THREE)
    train_detector(detector, few_digits.train, recipe, progress=hear)
    assert seen[:4] == [0] * 4
    assert all(value != 0 for value in seen[4:])


def test_learning_rate__holds_falls_and_holds():
    recipe = Recipe(iterations=100, warmup=0.05, stages=Stages(0.1, 0.2), final_lr=0.01)
    rates = [recipe.learning_rate(step) for step in range(100)]
    assert rates[5:11] == pytest.approx([recipe.peak_lr] * 6)
    assert all(np.diff(rates[10:81]) < 0)
    assert rates[80:] == pytest.approx([0.01 * recipe.peak_lr] * 20)


def test_learning_rate__without_stages_is_one_cosine():
    recipe = Recipe(iterations=100, warmup=0.0, final_lr=0.0)
    assert recipe.learning_rate(50) == pytest.approx(recipe.peak_lr / 2)


def test_stages__the_last_steps_see_images_as_they_are(
    few_digits: Dataset, tiny: Callable[..., Architecture]
):
    recipe = Recipe(iterations=4, batch_size=4, zoom=0.5, light=0.5, stages=Stages(0.0, 0.5))

    class Watched(Detector):
        def forward(self, images: torch.Tensor):
            batches.append(images.clone())
            return super().forward(images)

    batches: list[torch.Tensor] = []
    split = few_digits.train
    train_detector(Watched(tiny()), split, recipe)
    resized = torch.from_numpy(split.resized(32, 32).images).float() / 255
    known = {tuple(image.flatten().tolist()) for image in resized}
    unchanged = [
        all(tuple(image.flatten().tolist()) in known for image in batch) for batch in batches[:4]
    ]
    assert unchanged == [False, False, True, True]


@pytest.mark.parametrize("wrong", [(-0.1, 0.0), (0.5, 0.5)])
def test_stages__what_cannot_be(wrong: tuple[float, float]):
    with pytest.raises(InputError, match="Stages are shares"):
        dataclasses.replace(THREE, gate_warmup=wrong[0], fine_tuning=wrong[1])
