from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nas.accuracy.dataset import Dataset
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.errors import InputError, StorageError
from nas.model.detector import Detector
from nas.searcher import room
from nas.searcher.inherited import MOST_EARLY_BYTES
from nas.searcher.room import Need, Planned, require_room, room_for
from nas.searcher.supernets import planned_supernet
from nas.searcher.team import planned_detector
from nas.space.architecture import Architecture
from nas.space.space import load_space

RECIPE = Recipe(iterations=10, batch_size=8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    recipe = DigitsRecipe(train=32, validation=8, test=8, size=64)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    space = load_space("digits")
    return space.candidate(space.anchors["min"], 10).architecture


@pytest.fixture
def planned(dataset: Dataset, architecture: Architecture) -> Callable[..., Planned]:
    torch.set_num_threads(1)

    def plan(recipe: Recipe = RECIPE, side: int = 64) -> Planned:
        return planned_detector(architecture.at_input((side, side)), dataset, recipe)

    return plan


def test_room__disk_is_that_of_real_checkpoints(
    planned: Callable[..., Planned], architecture: Architecture, tmp_path: Path
) -> None:
    found = room_for(planned(), tmp_path)
    weights = 4 * sum(p.numel() for p in Detector(architecture).parameters())
    assert 4 * weights < found.checkpoint < 4.5 * weights  # weights, their average, two moments
    assert found.disk.needed == 3 * found.checkpoint
    assert found.resized == 0
    assert found.memory.is_met
    assert found.disk.is_met
    assert list(tmp_path.iterdir()) == []


def test_room__memory_follows_the_batch_and_its_parts(
    planned: Callable[..., Planned], tmp_path: Path
) -> None:
    # Peaks depend on what the allocator kept of the tests before: one of a few rounds is enough.
    rounds = (_memory_by_batch(planned, tmp_path) for _ in range(4))
    assert any(0.5 < many < 3 and parts < 0.5 * many for many, parts in rounds)


def _memory_by_batch(planned: Callable[..., Planned], path: Path) -> tuple[float, float]:
    """Return the memory said for 16 images at once and in 4 parts, beyond that for 4 images.

    In units of what a real step takes beyond one with 4: by the peaks of the process, or by the
    tensors kept, where memory that it has held from before hides them.
    """
    few, many, parts = (
        room_for(planned(Recipe(batch_size=size, accumulate=accumulate), side=160), path)
        for size, accumulate in [(4, 1), (16, 1), (16, 4)]
    )
    plan = planned(side=160)
    small, large = (room._peak(plan, images, path / "at") for images in (4, 16))
    taken = max(high - low for low, high in zip(small, large, strict=True))
    whole, split = ((one.memory.needed - few.memory.needed) / taken for one in (many, parts))
    return whole, split


def test_require_room__memory_that_no_machine_has(
    planned: Callable[..., Planned], tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=10_000_000)
    with pytest.raises(InputError, match=r"must fit into memory: it takes .* GiB of .* free") as at:
        require_room(planned(recipe, side=128), tmp_path)
    assert "batches of 10000000 images at up to 128 x 128" in at.value.message
    assert "accumulate" in at.value.remedy


def test_require_room__disk_that_no_machine_has(
    planned: Callable[..., Planned], tmp_path: Path
) -> None:
    vast = dataclasses.replace(planned(), sizes=((64, 64), (2_000_000, 2_000_000)))
    with pytest.raises(StorageError, match="must fit on the disk") as error:
        require_room(vast, tmp_path)
    assert "workspace" in error.value.remedy


def test_room__several_processes_need_as_much_each(
    planned: Callable[..., Planned], tmp_path: Path
) -> None:
    one = room_for(planned(), tmp_path)
    two = room_for(dataclasses.replace(planned(), processes=2), tmp_path)
    assert two.memory.needed > 1.5 * one.memory.needed


def test_require_room__what_is_kept_later_must_fit_too(
    planned: Callable[..., Planned], tmp_path: Path
) -> None:
    more = dataclasses.replace(planned(), kept_later=2**50, processes=2)
    assert 0 < room_for(more, tmp_path).memory.needed - 2**50 < 2**40  # once, not by each process
    with pytest.raises(InputError, match="must fit into memory"):
        require_room(more, tmp_path)


def test_room__beginnings_of_candidates_count_for_a_supernet(dataset: Dataset) -> None:
    space = load_space("digits")
    assert planned_supernet(space, dataset, RECIPE).kept_later == MOST_EARLY_BYTES


def test_need__unknown_is_no_reason_to_refuse() -> None:
    assert Need(10, None).is_met
    assert not Need(10, 9).is_met
    assert str(Need(1536, None)) == "1.5 KiB of unknown free"
