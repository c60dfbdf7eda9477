from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.accuracy import dataset
from nas.accuracy.dataset import (
    Annotations,
    DataReport,
    Dataset,
    Problem,
    Split,
    fingerprint,
)
from nas.errors import DatasetError

_BOXES = np.array([[0, 0, 10, 10], [5, 5, 20, 30]], np.float32)


def _split(
    size: tuple[int, int] = (40, 60),
    boxes: np.ndarray = _BOXES,
    *,
    images: int = 3,
    cache_dir: Path | None = None,
) -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (images, *size, 3), dtype=np.uint8)
    objects = Annotations(boxes, np.zeros(len(boxes), np.int64))
    sizes = np.tile(np.array(size), (images, 1))
    contents = tuple(fingerprint(image.tolist()) for image in pixels)
    return Split("train", pixels, (objects,) * images, sizes, contents, cache_dir)


def test_annotations__areas_and_crowds_default_to_the_boxes() -> None:
    objects = Annotations(_BOXES, np.array([1, 0]))
    assert objects.areas.tolist() == [100, 375]
    assert not objects.crowd.any()
    assert len(Annotations(np.zeros((0, 4)), np.zeros(0))) == 0


def test_annotations__unequal_lengths_are_refused() -> None:
    with pytest.raises(DatasetError, match="got 2, 1, 2 and 2"):
        Annotations(_BOXES, np.array([1]))


def test_annotations__select_keeps_every_column() -> None:
    objects = Annotations(_BOXES, np.array([1, 0]), np.array([True, False]), np.array([7, 8]))
    chosen = objects.select(np.array([False, True]))
    assert (chosen.labels[0], chosen.crowd[0], chosen.areas[0]) == (0, False, 8)


def test_report__counts_all_and_shows_three() -> None:
    report = DataReport()
    for number in range(5):
        report.add(Problem.MISSING_IMAGE, f"{number}.png")
    report.note("A note.")
    assert report.counts == {Problem.MISSING_IMAGE: 5}
    assert str(report) == "A note.\n5 x missing image (left out): 0.png; 1.png; 2.png"
    assert str(DataReport()) == "No problem found."


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    into=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_resized__boxes_return_to_within_half_a_pixel(
    size: tuple[int, int], into: tuple[int, int], corners: list[float]
) -> None:
    height, width = size
    box = np.sort(np.array(corners).reshape(2, 2), axis=0) * [width, height]
    resized = _split(size, box.reshape(1, 4).astype(np.float32), images=1).resized(*into)
    inside = resized.annotations[0].boxes[0]
    assert (inside >= 0).all()
    assert (inside <= [into[1], into[0]] * 2 + np.float32(1e-3)).all()
    back = resized.to_original(0, resized.annotations[0].boxes)
    np.testing.assert_allclose(back, box.reshape(1, 4), atol=0.5)


def test_resized__pixels_and_boxes_shrink_together() -> None:
    resized = _split((40, 80)).resized(20, 20)
    assert resized.images.shape == (3, 3, 20, 20)
    assert (resized.height, resized.width) == (20, 20)
    assert (resized.images[:, :, 10:] == 114).all()
    np.testing.assert_allclose(resized.annotations[0].boxes, _BOXES / 4)
    assert resized.annotations[0].areas.tolist() == [100 / 16, 375 / 16]


def test_resized__made_once_per_size() -> None:
    split = _split()
    assert split.resized(32, 32) is split.resized(32, 32)
    assert split.resized(32, 32) is not split.resized(32, 48)


def test_resized__large_copy_is_a_file_with_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _split().resized(32, 48).images
    monkeypatch.setattr(dataset, "MEMORY_LIMIT", 0)
    split = _split(cache_dir=tmp_path)
    images = split.resized(32, 48).images
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, expected)
    assert [file.name for file in tmp_path.iterdir()] == [f"resized-{split.digest}-32x48.npy"]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"nonsense"])
def test_resized__damaged_file_is_made_again(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MEMORY_LIMIT", 0)
    expected = np.array(_split(cache_dir=tmp_path).resized(32, 32).images)
    next(tmp_path.iterdir()).write_bytes(damage)
    np.testing.assert_array_equal(_split(cache_dir=tmp_path).resized(32, 32).images, expected)


def test_resized__file_is_read_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MEMORY_LIMIT", 0)
    _split(cache_dir=tmp_path).resized(32, 32)
    written = next(tmp_path.iterdir()).stat().st_mtime_ns
    _split(cache_dir=tmp_path).resized(32, 32)
    assert next(tmp_path.iterdir()).stat().st_mtime_ns == written


def test_resized__image_that_changed_since_the_check_is_an_error() -> None:
    split = _split((40, 60))
    changed = Split("train", split.images, split.annotations, split.sizes + 1, split.contents)
    with pytest.raises(DatasetError, match="when it was checked"):
        changed.resized(32, 32)


def test_resized__impossible_size_is_an_error() -> None:
    with pytest.raises(DatasetError, match="got 0x32"):
        _split().resized(0, 32)


def test_digest__follows_contents_and_objects_only() -> None:
    split = _split()
    other_boxes = _split(boxes=_BOXES + 1)
    other_pixels = _split(images=2)
    assert split.subset("test", range(3)).digest == split.digest
    assert len({split.digest, other_boxes.digest, other_pixels.digest}) == 3


def test_dataset_digest__follows_classes_and_splits() -> None:
    def digest(classes: tuple[str, ...], test: Split | None) -> str:
        return Dataset("any", classes, _split(), _split(), test, DataReport()).digest

    assert len({digest(("a",), None), digest(("b",), None), digest(("a",), _split())}) == 3
    assert digest(("a",), None) == digest(("a",), None)


def test_split__travels_to_a_worker_without_its_copies() -> None:
    split = _split()
    split.resized(64, 64)
    copy = pickle.loads(pickle.dumps(split))
    assert copy.digest == split.digest
    assert not copy._resized


def test_subset__is_a_view_in_the_given_order() -> None:
    split = _split()
    chosen = split.subset("validation", [2, 0])
    assert (len(chosen), chosen.name) == (2, "validation")
    np.testing.assert_array_equal(chosen.images[0], split.images[2])
