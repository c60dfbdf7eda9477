from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import field_value, read_recipe, recipe_fields, with_fields
from nas.errors import InputError, UnknownNameError


def _file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_read_recipe__every_field_comes_back(tmp_path: Path):
    recipe = Recipe(
        iterations=7, flip=True, amp="off", peak_lr=0.25, teacher="a teacher", accumulate=3
    )
    recipe = with_fields(
        recipe, {"loss.box": 4.0, "stages.fine_tuning": 0.25, "curriculum.count": 1}
    )
    data = dataclasses.asdict(recipe)
    del data["seed"]
    values = read_recipe(_file(tmp_path, yaml.safe_dump(data)))
    assert set(values) == set(recipe_fields()) - {"seed"}
    assert with_fields(Recipe(), values) == recipe


def test_read_recipe__names_what_differs_only(tmp_path: Path):
    path = _file(tmp_path, "amp: off\ndistillation: {logits: 1}\n")
    assert read_recipe(path) == {"amp": "off", "distillation.logits": 1.0}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("peak_lr: 0.1\npeak_rl: 1\n", r"line 2: Unknown recipe field 'peak_rl'"),
        ("loss:\n  bok: 1\n", r"line 2: Unknown recipe field 'loss\.bok'"),
        ("batch_size: 4\npeak_lr: fast\n", r"line 2: The recipe's 'peak_lr' is a number"),
        (
            "zoom: [1, 2]\n",
            r"line 1: Unknown recipe field|line 1: The recipe's 'zoom' has one value",
        ),
        ("teacher:\n", r"line 1: The recipe's 'teacher' has one value, got None"),
        ("flip: true\n\npeak_lr: 7\n", r"line 3: .* ramp are above 0, got peak_lr: 7\.0\."),
        ("iterations: -3\n", r"line 1: Iterations, .* at least 1, got iterations: -3\."),
        ("lookahead: true\n", r"line 1: The recipe's 'lookahead' is a mapping of fields, got True"),
        ("pseudo_labels: {threshold: 0.5}\n", r"line 1: Pseudo-labels need images"),
        ("amp: fp8\n", r"line 1: Unknown value of 'amp' 'fp8'"),
        ("seed: 3\n", r"line 1: The seed is not part of a recipe file"),
        ("distillation: {features: 1}\naccumulate: 2\n", r"recipe.yaml: Features are distilled"),
        ("- 1\n", "must hold a mapping"),
        ("peak_lr: 1\npeak_lr: 2\n", "stands twice"),
    ],
)
def test_read_recipe__what_cannot_be(tmp_path: Path, text: str, match: str):
    with pytest.raises(InputError, match=match) as error:
        read_recipe(_file(tmp_path, text))
    assert "Recipe(" not in str(error.value)


def test_read_recipe__a_near_name_is_proposed(tmp_path: Path):
    with pytest.raises(UnknownNameError, match=r"Did you mean 'lookahead\.steps'"):
        read_recipe(_file(tmp_path, "lookahead: {step: 5}\n"))


@pytest.mark.parametrize("name", sorted(set(recipe_fields()) - {"checkpoint_every"}))
def test_digest__changes_with_every_field(name: str):
    company = {"pseudo_labels.threshold": {"pseudo_labels.hidden": 0.5}}
    company |= {each: {"rule": "sandwich"} for each in ("in_place", "shared_assignment")}
    other = {"amp": "off", "rule": "sandwich", "teacher": "x", "pseudo_labels.images": "x"}
    base = with_fields(Recipe(), company.get(name, {}))
    kind = recipe_fields()[name]
    value = other.get(name, {int: 3, float: 0.123}.get(kind))
    if kind is bool:
        value = not field_value(base, name)
    assert with_fields(base, {name: value}).digest != base.digest


def test_fine_tuning__needs_no_teacher_and_hides_what_was_hidden():
    values = {"distillation.logits": 1.0, "pseudo_labels.threshold": 0.5, "lookahead.steps": 5}
    recipe = with_fields(Recipe(), {**values, "pseudo_labels.hidden": 0.5, "curriculum.count": 1.0})
    assert recipe.needs_teacher
    tuned = recipe.fine_tuning()
    assert not tuned.needs_teacher
    assert not tuned.curriculum.on
    assert (tuned.pseudo_labels.hidden, tuned.lookahead.steps) == (0.5, 5)
