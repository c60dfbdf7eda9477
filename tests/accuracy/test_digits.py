from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nas.accuracy import digits
from nas.accuracy.dataset import Dataset
from nas.accuracy.detections import paired_iou
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.errors import DatasetError

_SMALL = DigitsRecipe(train=6, validation=3, test=2, size=96)


def _pixels(data: Dataset) -> np.ndarray:
    return np.concatenate([split.images for split in (data.train, data.validation, data.test)])


def test_pools__every_digit_is_in_one_split_and_classes_are_balanced() -> None:
    pools = digits._digit_pools(seed=0)
    assert [len(labels) for _, labels in pools.values()] == [1400, 200, 197]
    ink = np.concatenate([ink.reshape(-1, 64) for ink, _ in pools.values()])
    assert len(np.unique(ink, axis=0)) == 1797
    for _, labels in pools.values():
        shares = np.bincount(labels, minlength=10) / len(labels)
        np.testing.assert_allclose(shares, 0.1, atol=0.006)


def test_scenes__bit_identical_across_folders_and_runs(tmp_path: Path) -> None:
    first = digits_dataset(_SMALL, tmp_path / "a")
    again = digits_dataset(_SMALL, tmp_path / "b")
    cached = digits_dataset(_SMALL, tmp_path / "a")
    np.testing.assert_array_equal(_pixels(first), _pixels(again))
    assert first.digest == again.digest == cached.digest


def test_scenes__other_seed_other_scenes(tmp_path: Path) -> None:
    other = DigitsRecipe(6, 3, 2, 96, seed=1)
    assert digits_dataset(other, tmp_path).digest != digits_dataset(_SMALL, tmp_path).digest


def test_scenes__fewer_are_a_prefix(tmp_path: Path) -> None:
    more = digits_dataset(_SMALL, tmp_path).train
    fewer = digits_dataset(DigitsRecipe(2, 1, 1, 96), tmp_path).train
    np.testing.assert_array_equal(fewer.images[1], more.images[1])


def test_scenes__objects_are_one_to_six_and_hardly_overlap(few_digits: Dataset) -> None:
    for objects in few_digits.train.annotations:
        assert 1 <= len(objects) <= 6
        overlap = paired_iou(objects.boxes[:, None], objects.boxes[None])
        np.fill_diagonal(overlap, 0)
        assert overlap.max() <= 0.1
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).max(axis=1)
        assert (sides >= 0.6 * 26 - 2).all()
        assert (sides <= 0.6 * 80 * 1.1 + 2).all()


def test_scenes__ink_reaches_all_four_sides_of_its_box() -> None:
    rng = np.random.default_rng(0)
    ink, _ = digits._digit_pools(seed=0)["train"]
    for digit in ink[:20]:
        visible = digits._glyph(digit, 1.0, rng) > 0.35
        for side in (visible[0], visible[-1], visible[:, 0], visible[:, -1]):
            assert side.any()


def test_scenes__digits_are_brighter_than_what_surrounds_them() -> None:
    rng = np.random.default_rng(0)
    ink, _ = digits._digit_pools(seed=0)["train"]
    for digit in ink[:20]:
        scene = np.full((160, 160, 3), 60, np.float32)
        digits._paste(scene, digit, [], rng)
        assert scene.min() >= 60
        assert scene.max() >= 60 + 50


@pytest.mark.parametrize("file", ["train.npy", "train.npz", "test.npz"])
@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_cache__damaged_or_absent_file_is_composed_again(
    file: str, damage: bytes | None, tmp_path: Path
) -> None:
    expected = digits_dataset(_SMALL, tmp_path).digest
    damaged = tmp_path / f"digits-{_SMALL.digest}" / file
    damaged.unlink()
    if damage is not None:
        damaged.write_bytes(damage)
    assert digits_dataset(_SMALL, tmp_path).digest == expected


def test_cache__second_call_composes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits_dataset(_SMALL, tmp_path)
    monkeypatch.delattr(digits, "_compose_scene")
    assert len(digits_dataset(_SMALL, tmp_path).train) == 6


def test_dataset__ten_classes_and_a_note(few_digits: Dataset) -> None:
    assert few_digits.classes == tuple("0123456789")
    assert few_digits.train.images[0].shape == (96, 96, 3)
    assert "24/16/8 scenes of 96 px" in str(few_digits.report)


@pytest.mark.parametrize("change", [{"train": 0}, {"test": -1}, {"size": 32}, {"size": 5000}])
def test_recipe__impossible_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match="at least one scene per split"):
        DigitsRecipe(**change)
