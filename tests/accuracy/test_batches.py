from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.accuracy.batches import BatchSampler, batches
from nas.accuracy.dataset import Annotations, Split
from nas.errors import DatasetError

_BOXES = np.array([[0, 0, 10, 10], [5, 5, 20, 30]], np.float32)


def _split(objects: Annotations, images: int = 1) -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 40, 60, 3), dtype=np.uint8)
    sizes = np.tile(np.array([40, 60]), (images, 1))
    return Split("train", pixels, (objects,) * images, sizes, ("",) * images)


@given(images=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 9))
def test_sampler__every_epoch_has_every_image_once(images: int, batch_size: int, seed: int) -> None:
    sampler = BatchSampler(images, batch_size, seed)
    steps = 3 * images // batch_size + 1
    drawn = np.concatenate([sampler(step) for step in range(steps)])[: 3 * images]
    for epoch in drawn.reshape(3, images):
        assert sorted(epoch) == list(range(images))


def test_sampler__resumes_without_what_came_before() -> None:
    whole = BatchSampler(10, 4, seed=1)
    expected = [whole(step).tolist() for step in range(9)]
    assert [BatchSampler(10, 4, seed=1)(step).tolist() for step in range(9)] == expected
    assert [BatchSampler(10, 4, seed=2)(step).tolist() for step in range(9)] != expected


@pytest.mark.parametrize(("images", "batch_size"), [(0, 4), (4, 0)])
def test_sampler__needs_images(images: int, batch_size: int) -> None:
    with pytest.raises(DatasetError, match="at least one image"):
        BatchSampler(images, batch_size, seed=0)


def test_batches__start_where_they_are_told() -> None:
    resized = _split(Annotations(_BOXES, np.array([0, 0])), images=5).resized(32, 32)
    expected = list(islice(batches(resized, 2, seed=3), 6))[4:]
    resumed = list(islice(batches(resized, 2, seed=3, start=4), 2))
    for (images, objects), (other_images, _) in zip(expected, resumed, strict=True):
        assert images.shape == (2, 3, 32, 32)
        assert len(objects) == 2
        np.testing.assert_array_equal(images.numpy(), other_images.numpy())


def test_batches__leave_crowds_out() -> None:
    objects = Annotations(_BOXES, np.array([0, 0]), np.array([True, False]))
    _, (found,) = next(batches(_split(objects).resized(40, 60), 1, seed=0))
    np.testing.assert_array_equal(found.boxes, _BOXES[1:])
