from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.accuracy.augment import Augmentation
from nas.accuracy.dataset import Annotations
from nas.errors import InputError

STILL = Augmentation(zoom=0, shift=0, light=0, contrast=0)


def _square(box: tuple[int, int, int, int], size: int = 64) -> tuple[torch.Tensor, Annotations]:
    """A white box on black, and where it is."""
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    image[..., box[1] : box[3], box[0] : box[2]] = 255
    return image, Annotations(np.array([box], np.float32), np.array([4]))


def _bright(image: torch.Tensor) -> list[float]:
    rows, columns = (image[1] > 0.5).nonzero(as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def test_augmentation__nothing_to_do_only_scales_to_one() -> None:
    image, objects = _square((10, 20, 40, 30))
    changed, moved = STILL(image, [objects], np.random.default_rng(0))
    assert torch.equal(changed, image / 255)
    assert moved[0].boxes.tolist() == [[10, 20, 40, 30]]


@given(seed=st.integers(0, 1000), flip=st.booleans())
@settings(deadline=None, max_examples=60)
def test_augmentation__boxes_follow_the_pixels(seed: int, flip: bool) -> None:
    image, objects = _square((22, 26, 44, 38))
    augment = Augmentation(zoom=0.3, shift=0.15, light=0, contrast=0, flip=flip)
    changed, moved = augment(image, [objects], np.random.default_rng(seed))
    assert _bright(changed[0]) == pytest.approx(moved[0].boxes[0].tolist(), abs=1.01)
    assert moved[0].labels.tolist() == [4]


def test_augmentation__flip_is_off_unless_asked_for() -> None:
    image, objects = _square((2, 10, 12, 20))
    both = [image.expand(32, -1, -1, -1), [objects] * 32]
    lefts = {}
    for flip in (False, True):
        augment = Augmentation(zoom=0, shift=0, light=0, contrast=0, flip=flip)
        _, moved = augment(*both, np.random.default_rng(0))  # type: ignore[arg-type]
        lefts[flip] = {float(each.boxes[0, 0]) for each in moved}
    assert lefts == {False: {2.0}, True: {2.0, 52.0}}


def test_augmentation__objects_that_leave_are_dropped() -> None:
    image, objects = _square((0, 0, 8, 8))
    augment = Augmentation(zoom=0, shift=0.9, light=0, contrast=0)
    batch = image.expand(64, -1, -1, -1)
    _, moved = augment(batch, [objects] * 64, np.random.default_rng(1))
    kept = [each.boxes for each in moved if len(each.boxes)]
    assert 0 < len(kept) < 64
    for box in np.concatenate(kept):
        assert (box >= 0).all()
        assert (box <= 64).all()
        assert (box[2:] - box[:2]).prod() >= 0.35 * 64 * 0.99


def test_augmentation__light_and_contrast_stay_in_range() -> None:
    image, objects = _square((8, 8, 56, 40))
    augment = Augmentation(zoom=0, shift=0, light=0.5, contrast=0.5)
    changed, _ = augment(
        (image // 2).expand(16, -1, -1, -1), [objects] * 16, np.random.default_rng(2)
    )
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len({float(each.mean()) for each in changed}) == 16


def test_augmentation__is_a_function_of_the_generator() -> None:
    image, objects = _square((8, 8, 56, 40))
    augment = Augmentation()
    first, second, third = (
        augment(image, [objects], np.random.default_rng(seed))[0] for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_augmentation__images_without_objects() -> None:
    empty = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    _, moved = Augmentation()(
        torch.zeros(2, 3, 32, 48, dtype=torch.uint8), [empty] * 2, np.random.default_rng(0)
    )
    assert [each.boxes.shape for each in moved] == [(0, 4), (0, 4)]


@pytest.mark.parametrize("options", [{"zoom": 1.0}, {"light": -0.1}, {"shift": 2.0}])
def test_augmentation__senseless_amounts(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"in 0\.\.0\.9"):
        Augmentation(**options)  # type: ignore[arg-type]
