from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from heard import Heard

from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.lessons import Distillation
from nas.accuracy.lookahead import Lookahead
from nas.accuracy.pseudo_labels import PseudoLabels
from nas.accuracy.recipe import Recipe
from nas.errors import InputError
from nas.searcher.progress import Silent
from nas.searcher.request import Workspace
from nas.searcher.teachers import find_teacher, load_teacher, plain_recipe
from nas.space.space import load_space

RECIPE = Recipe(iterations=2, batch_size=2, distillation=Distillation(logits=1.0))


@pytest.fixture(scope="module")
def find(tmp_path_factory) -> Callable[[Recipe], tuple[Path | None, list[str]]]:
    folder = tmp_path_factory.mktemp("teachers")
    dataset = digits_dataset(DigitsRecipe(train=24, validation=4, test=4, size=64), folder)
    space = load_space("digits")
    smallest = space.candidate(space.anchors["min"], 10).architecture.at_input((32, 32))

    def run(recipe: Recipe) -> tuple[Path | None, list[str]]:
        listener = Heard()
        path = find_teacher(recipe, smallest, dataset, Workspace(folder), listener)
        if path is not None and path.exists():
            teacher = load_teacher(recipe, smallest, dataset, Workspace(folder), listener)
            assert teacher is not None
            assert teacher.architecture == smallest
        return path, listener.stages

    return run


def test_find_teacher__is_trained_once_for_all_seeds_and_switches(find):
    path, stages = find(RECIPE)
    assert stages == ["Train the teacher"]
    assert not list(path.parent.glob("*.checkpoint"))
    others = (
        dataclasses.replace(RECIPE, seed=3),
        dataclasses.replace(RECIPE, distillation=Distillation(features=1.0)),
        dataclasses.replace(RECIPE, lookahead=Lookahead(5)),
    )
    assert all(find(each) == (path, []) for each in others)


def test_find_teacher__does_not_see_hidden_labels(find):
    hidden = PseudoLabels(threshold=0.5, hidden=0.5)
    path, stages = find(dataclasses.replace(RECIPE, pseudo_labels=hidden))
    assert stages == ["Train the teacher"]
    assert path != find(RECIPE)[0]


def test_find_teacher__where_none_is_needed_or_one_is_named(find):
    assert find(Recipe()) == (None, [])
    named = dataclasses.replace(RECIPE, teacher="/a/bundle")
    assert find(named) == (Path("/a/bundle"), [])


def test_find_teacher__without_a_space(tmp_path: Path):
    dataset = digits_dataset(DigitsRecipe(train=4, validation=4, test=4, size=64), tmp_path)
    with pytest.raises(InputError, match="names none"):
        find_teacher(RECIPE, None, dataset, Workspace(tmp_path), Silent())


def test_plain_recipe__has_every_switch_off():
    plain = plain_recipe(dataclasses.replace(RECIPE, seed=4, lookahead=Lookahead(5), peak_lr=0.5))
    assert plain == Recipe(iterations=2, batch_size=2, peak_lr=0.5)
    assert not plain.needs_teacher
