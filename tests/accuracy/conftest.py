from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_architecture

from nas.accuracy.dataset import Annotations, Dataset
from nas.accuracy.detections import Detections
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.formats import load_dataset
from nas.space.architecture import Architecture


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    recipe = DigitsRecipe(train=24, validation=16, test=8, size=96)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Architecture]:
    """`tiny(side, neck, tokens)` describes a network of ten classes that trains in milliseconds."""

    def make(side: int = 32, neck: int = 16, tokens: int | None = None) -> Architecture:
        return tiny_architecture(hidden=4, side=side, neck=neck, tokens=tokens)

    return make


@pytest.fixture
def shapes(tmp_path: Path, make_shapes: Callable[..., Path]) -> Callable[..., Dataset]:
    """`shapes(format, **sizes)` writes the shapes, lets `damage` change them, and reads them."""

    def load(
        format: str,  # noqa: A002
        damage: Callable[[Path], object] = Path.exists,
        **sizes: int,
    ) -> Dataset:
        path = make_shapes(tmp_path / "shapes", format, **sizes)
        damage(tmp_path / "shapes")
        return load_dataset(path, tmp_path / "cache")

    return load


@pytest.fixture(scope="session")
def noisy_sample() -> tuple[list[Detections], list[Annotations]]:
    """40 images: objects of 4 classes and all sizes, crowds, detections of mixed quality."""
    rng = np.random.default_rng(0)
    pairs = [_noisy_image(rng) for _ in range(40)]
    return [found for found, _ in pairs], [objects for _, objects in pairs]


def _noisy_image(rng: np.random.Generator) -> tuple[Detections, Annotations]:
    objects = int(rng.integers(0, 7))
    corners = rng.uniform(0, 300, (objects, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 150, (objects, 2))], axis=1)
    labels = rng.integers(0, 4, objects)
    annotations = Annotations(boxes, labels, rng.random(objects) < 0.1)
    repeats = np.repeat(np.arange(objects), rng.integers(0, 4, objects))
    moved = boxes[repeats] + rng.normal(0, 2.5, (len(repeats), 4)).clip(-4, 4)
    stray = rng.uniform(0, 200, (3, 4)) + np.array([0, 0, 210, 210])
    found = np.concatenate([moved, stray]).astype(np.float32)
    # Scores with few digits, so that ties occur, within and between images.
    scores = np.sort(rng.random(len(found)).round(2).astype(np.float32))[::-1]
    guesses = np.concatenate([labels[repeats], rng.integers(0, 4, 3)])
    return Detections(found, scores, guesses), annotations
