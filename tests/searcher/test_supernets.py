from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nas.accuracy.dataset import Dataset
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.distributed import ALONE
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress
from nas.model.supernet import Supernet
from nas.searcher.supernets import subnet_draws, train_afresh
from nas.searcher.team import Part
from nas.space.space import SearchSpace, load_space

APART = Recipe(iterations=3, batch_size=2, apart=1.0, fair=True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    recipe = DigitsRecipe(train=16, validation=8, test=8, size=96)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    """Two input sizes and one network at each of two widths."""
    fusion = "{block: conv_csp, channels: 8, hidden: $hidden}"
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(
        "name: tiny\ndescription: Tiny.\nchoices: {input: [32, 64], hidden: [4, 8]}\n"
        "architecture:\n  input: $input\n  stem: {channels: 8}\n"
        f"  backbone: {{P2: {fusion}, P3: {fusion}, P4: {fusion}, P5: {fusion}}}\n"
        f"  neck: {{top_down: {{P4: {fusion}, P3: {fusion}}}, "
        f"bottom_up: {{P4: {fusion}, P5: {fusion}}}}}\n  head: {{channels: 8}}\n"
    )
    return load_space(str(path))


def _run(
    space: SearchSpace,
    digits: Dataset,
    recipe: Recipe = APART,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Supernet:
    part = Part(ALONE, torch.device("cpu"), progress)
    return train_afresh(space, len(digits.classes), digits.train, recipe, checkpoint, part)


def _same(a: Supernet, b: Supernet) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_train_afresh__last_stage_has_weights_for_each_size(
    space: SearchSpace, digits: Dataset
) -> None:
    heard: list[tuple[int, int]] = []
    trained = _run(space, digits, progress=lambda at: heard.append((at.iteration, at.total)))
    assert trained.sizes == ((32, 32), (64, 64))
    assert [iteration for iteration, _ in heard] == list(range(1, 7))
    assert heard[-1] == (6, 6)
    widest = space.candidate(space.anchors["max"], 10).architecture
    weights = [
        torch.cat([p.reshape(-1) for p in trained.extract(widest.at_input(size)).parameters()])
        for size in trained.sizes
    ]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("apart", [0.0, 0.1])
def test_train_afresh__without_a_last_stage_all_share(
    space: SearchSpace, digits: Dataset, apart: float
) -> None:
    trained = _run(space, digits, dataclasses.replace(APART, iterations=2, apart=apart))
    assert trained.sizes == ()


@pytest.mark.parametrize("stop", [2, 5])
def test_train_afresh__resumed_equals_uninterrupted(
    space: SearchSpace, digits: Dataset, tmp_path: Path, stop: int
) -> None:
    checkpoint = tmp_path / "some.checkpoint"

    def interrupt(progress: Progress) -> None:
        if progress.iteration == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(space, digits, checkpoint=checkpoint, progress=interrupt)
    seen: list[int] = []
    resumed = _run(
        space, digits, checkpoint=checkpoint, progress=lambda at: seen.append(at.iteration)
    )
    assert seen == list(range(stop + 1, 7))
    assert _same(resumed, _run(space, digits))


def test_subnet_draws__follow_the_recipe(space: SearchSpace) -> None:
    draws = subnet_draws(space, 10, Recipe(fair=True, strata=2, seed=5))
    assert (draws.fair, draws.strata, draws.seed) == (True, 2, 5)
    architecture = space.candidate(space.anchors["max"], 10).architecture
    assert draws.cost is not None
    assert draws.cost(architecture) > 1e5
