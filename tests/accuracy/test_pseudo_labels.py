from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.pseudo_labels import PseudoLabels, examples, labelled_part
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher, save_detector
from nas.accuracy.training import train_detector
from nas.errors import DatasetError, InputError
from nas.model.detector import Detector
from nas.space.architecture import Architecture

HALF = PseudoLabels(threshold=0.003, hidden=0.5)


@pytest.fixture(scope="module")
def train(few_digits: Dataset) -> Split:
    return few_digits.train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, train: Split, tiny: Callable[..., Architecture]) -> Teacher:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    detector = Detector(tiny(side=64))
    train_detector(detector, train, Recipe(iterations=3, batch_size=4))
    save_detector(detector, path)
    return Teacher.load(path, train, 10)


def test_labelled_part__is_the_same_whatever_the_seed(train: Split):
    part = labelled_part(train, HALF)
    assert len(part) == len(train) / 2
    assert set(part.contents) < set(train.contents)
    assert labelled_part(train, HALF).digest == part.digest
    assert labelled_part(train, PseudoLabels()) is train


def test_examples__labelled_images_first_then_what_the_teacher_says(train: Split, teacher: Teacher):
    joined, part = examples(train, HALF, teacher), labelled_part(train, HALF)
    count = len(part)
    assert joined.contents[:count] == part.contents
    assert set(joined.contents[count:]) <= set(train.contents) - set(part.contents)
    assert len(joined) > count
    for index in range(count, len(joined)):
        objects, (height, width) = joined.annotations[index], joined.sizes[index]
        assert len(objects)
        assert (objects.boxes >= 0).all()
        assert (objects.boxes <= [width, height, width, height]).all()
    original = train.contents.index(joined.contents[-1])
    assert np.array_equal(joined.images[len(joined) - 1], train.images[original])


def test_examples__hidden_labels_are_not_looked_at(train: Split, teacher: Teacher):
    part = labelled_part(train, HALF)
    wrong = tuple(
        objects if content in part.contents else objects.select(np.zeros(len(objects), bool))
        for content, objects in zip(train.contents, train.annotations, strict=True)
    )
    blind = dataclasses.replace(train, annotations=wrong)
    assert examples(blind, HALF, teacher).digest == examples(train, HALF, teacher).digest


def test_examples__a_higher_threshold_believes_less(train: Split, teacher: Teacher):
    low, high = (
        examples(train, dataclasses.replace(HALF, threshold=threshold), teacher)
        for threshold in (0.002, 0.004)
    )
    assert sum(map(len, low.annotations)) > sum(map(len, high.annotations))


def test_examples__of_a_folder(tmp_path: Path, train: Split, teacher: Teacher):
    for index in range(3):
        Image.fromarray(train.images[index]).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image either")
    joined = examples(train, PseudoLabels(threshold=0.002, images=str(tmp_path)), teacher)
    assert len(train) < len(joined) <= len(train) + 3
    assert np.array_equal(joined.images[len(train)], train.images[0])


def test_examples__what_cannot_be(tmp_path: Path, train: Split, teacher: Teacher):
    with pytest.raises(InputError, match="need a teacher"):
        examples(train, HALF, None)
    with pytest.raises(DatasetError, match=r"sure of nothing.*at least 0\.999"):
        examples(train, dataclasses.replace(HALF, threshold=0.999), teacher)
    with pytest.raises(DatasetError, match="no readable image"):
        examples(train, PseudoLabels(threshold=0.1, images=str(tmp_path)), teacher)


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"hidden": 1.0}, {"threshold": 0.5}])
def test_pseudo_labels__what_cannot_be(wrong: dict[str, float]):
    with pytest.raises(InputError, match="Pseudo-labels"):
        PseudoLabels(**wrong)


def test_train_detector__learns_from_both(train, teacher, tiny: Callable[..., Architecture]):
    recipe = Recipe(iterations=2, batch_size=4, pseudo_labels=HALF)
    networks = [Detector(tiny()) for _ in range(2)]
    train_detector(networks[0], train, recipe, teacher=teacher)
    alone = dataclasses.replace(recipe, pseudo_labels=PseudoLabels(hidden=0.5))
    train_detector(networks[1], train, alone)
    first, second = (network.head.levels["P3"].box_predictor.weight for network in networks)
    assert not (first == second).all()
