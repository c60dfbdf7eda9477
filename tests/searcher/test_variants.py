from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import recipe_fields
from nas.errors import InputError, SpaceError, UnknownNameError
from nas.searcher.variants import (
    Changes,
    changed_recipe,
    find_subject,
    parted_recipe,
    plan,
)
from nas.space.architecture import Architecture
from nas.space.space import load_space

SPACE = load_space("digits")
POINT = SPACE.anchors["middle"]


def planned(changes, **options):
    values = {"classes": 10, "recipe": Recipe(), "seeds": [0, 1]} | options
    return plan(SPACE, POINT, changes, **values)


def test_plan__baseline_and_each_other_option_of_each_choice():
    found = planned(Changes({"p4_depth": [], "p3_attention": []}))
    assert [one.name for one in found.variants] == [
        "baseline",
        "p4_depth=1",
        "p3_attention=sparse-16",
        "p3_attention=sparse-64",
        "p3_attention=dense",
    ]
    depth = found.variants[1]
    assert (depth.kind, depth.changed, depth.before, depth.after) == (
        "choice",
        "p4_depth",
        "2",
        "1",
    )
    assert depth.candidate.architecture.backbone.P4.depth == 1


@given(st.sets(st.sampled_from(list(SPACE.choices)), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_plan__a_variant_differs_in_the_named_choice_only(choices):
    found = planned(Changes(dict.fromkeys(choices, ())))
    assert len(found.variants) == 1 + sum(len(SPACE.choices[name]) - 1 for name in choices)
    for one in found.variants[1:]:
        label = {str(known): known for known in SPACE.choices[one.changed]}[one.after]
        point = {**POINT, one.changed: label}
        assert one.candidate == SPACE.candidate(point, 10)
        assert one.before == str(POINT[one.changed])


def test_plan__only_the_named_options():
    found = planned(Changes.parse(["p3_attention=dense,sparse-16", "p4_depth=1"]))
    names = [one.name for one in found.variants[1:]]
    assert names == ["p3_attention=dense", "p3_attention=sparse-16", "p4_depth=1"]


def test_plan__fields_of_the_recipe_keep_the_network():
    found = planned(Changes.parse(recipe=["loss.box=1,5", "flip=true", "amp=off"]))
    assert len({one.candidate.digest for one in found.variants}) == 1
    box, _, flip, amp = (one.recipe for one in found.variants[1:])
    assert (box.loss.box, box.loss.identity) == (1.0, Recipe().loss.identity)
    assert (flip.flip, amp.amp) == (True, "off")
    assert [one.before for one in found.variants[1:]] == ["2.5", "2.5", "False", "auto"]


def test_plan__several_choices_at_once_have_a_name():
    edits = {"p3_attention": "dense", "p4_depth": 1}
    found = planned(Changes(extra={"dense at equal latency": edits}))
    (one,) = found.variants[1:]
    assert (one.name, one.kind) == ("dense at equal latency", "several")
    assert (one.changed, one.before, one.after) == ("p3_attention, p4_depth", "none, 2", "dense, 1")
    assert one.candidate == SPACE.candidate({**POINT, **edits}, 10)


def test_plan__equal_networks_are_trained_once_and_keep_their_names():
    changes = Changes.parse(["p4_depth"], ["loss.box=2.5"], {"shallow": {"p4_depth": "1"}})
    found = planned(changes)
    assert [one.name for one in found.distinct] == ["baseline", "p4_depth=1"]
    assert [one.name for one in found.same_as(found.variants[1])] == ["p4_depth=1", "shallow"]
    assert [one.name for one in found.same_as(found.baseline)] == ["baseline", "loss.box=2.5"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
@settings(max_examples=10, deadline=None)
def test_trainings__an_early_stop_leaves_a_balanced_table(seeds):
    found = planned(Changes({"p3_attention": []}), seeds=seeds)
    trained = [variant.name for variant, _ in found.trainings()]
    assert len(trained) == len(seeds) * 4
    for stop in range(1, len(trained) + 1):
        counts = Counter(trained[:stop])
        assert max(counts.values()) - min(counts[one.name] for one in found.variants) <= 1


def test_variant__the_seed_is_not_part_of_what_it_is():
    one, other = (planned(Changes({"p4_depth": []}), recipe=Recipe(seed=seed)) for seed in (0, 7))
    assert one.baseline.digest == other.baseline.digest
    assert one.baseline.seeded(3).digest != one.baseline.seeded(4).digest
    assert one.baseline.digest != one.variants[1].digest


def test_plan__precision_of_all_engines():
    found = planned(Changes({"p4_depth": []}), precision="bf16")
    assert {one.candidate.precision for one in found.variants} == {"bf16"}
    with pytest.raises(UnknownNameError, match="Did you mean 'fp32'"):
        planned(Changes({"p4_depth": []}), precision="fp33")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (Changes(), "something to change"),
        (Changes({"p4_dept": []}), "Did you mean 'p4_depth'"),
        (Changes({"p3_attention": ["denser"]}), "Did you mean 'dense'"),
        (Changes(extra={"x": {"p4_dept": 1}}), "Did you mean 'p4_depth'"),
        (Changes(extra={"x": {"p4_depth": 9}}), "option of 'p4_depth' '9'"),
        (Changes(extra={"baseline": {"p4_depth": 1}}), "Two variants are called 'baseline'"),
        (Changes(recipe={"peak_rl": ["1"]}), "Did you mean 'peak_lr'"),
        (Changes(recipe={"loss.bok": ["1"]}), r"Did you mean 'loss\.box'"),
        (Changes(recipe={"loss": ["1"]}), "Unknown recipe field 'loss'"),
        (Changes(recipe={"peak_lr": ["fast"]}), "'peak_lr' is a number, got 'fast'"),
        (Changes(recipe={"peak_lr": ["nan"]}), "'peak_lr' is a number, got 'nan'"),
        (Changes(recipe={"batch_size": ["2.5"]}), "'batch_size' is a whole number"),
        (Changes(recipe={"peak_lr": ["5"]}), r"cannot have peak_lr=5\. Learning rate"),
        (Changes(recipe={"loss.box": ["-1"]}), r"cannot have loss\.box=-1"),
        (Changes(recipe={"zoom": ["2"]}), r"cannot have zoom=2\. Amounts of augmentation"),
        (Changes(recipe={"topk": ["0"]}), r"cannot have topk=0\. An assigner"),
        (Changes(recipe={"amp": ["bf17"]}), "Did you mean 'bf16'"),
        (Changes(recipe={"flip": ["maybe"]}), "Unknown value of 'flip'"),
        (Changes(recipe={"seed": ["1"]}), "'seed' is not varied: every variant"),
        (Changes(recipe={"largest_only": ["0"]}), "supernets only"),
    ],
)
def test_plan__what_cannot_be(changes, match):
    with pytest.raises(InputError, match=match) as error:
        planned(changes)
    assert "Recipe(" not in str(error.value)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_plan__seeds_are_distinct(seeds):
    with pytest.raises(InputError, match="distinct seeds"):
        planned(Changes({"p4_depth": []}), seeds=seeds)


@pytest.mark.parametrize(
    ("texts", "match"), [({"vary": ["a", "a=1"]}, "twice"), ({"recipe": ["peak_lr"]}, "values")]
)
def test_changes__what_cannot_be_read(texts, match):
    with pytest.raises(InputError, match=match):
        Changes.parse(**texts)


ALONE = sorted(
    name
    for name, kind in recipe_fields().items()
    if kind is not str
    # supernets only, of no effect on the weights, or of no meaning alone
    and name not in {"rule", "largest_only", "fair", "strata", "apart", "in_place", "in_place_from"}
    and name not in {"shared_assignment", "seed", "checkpoint_every", "pseudo_labels.threshold"}
)


@given(st.sampled_from(ALONE), st.floats(0.01, 0.9), st.integers(1, 30))
def test_changed_recipe__changes_that_field_alone(name, share, count):
    kind = recipe_fields()[name]
    value = {float: share, int: count, bool: True}.get(kind, "off")
    recipe, parsed = changed_recipe(Recipe(), name, str(value))
    outer, _, inner = name.partition(".")
    flat = dataclasses.asdict(recipe)
    assert (flat[outer][inner] if inner else flat[outer]) == parsed == value
    for before, after in zip(
        dataclasses.asdict(Recipe()).items(), dataclasses.asdict(recipe).items(), strict=True
    ):
        assert before == after or before[0] == outer


@pytest.mark.parametrize(("subject", "space"), [("digits:middle", None), ("middle", "digits")])
def test_subject__an_anchor(subject, space):
    found, point = find_subject(subject, space)
    assert (found.digest, point) == (SPACE.digest, POINT)


def test_subject__an_architecture_of_any_number_of_classes(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE.candidate({**POINT, "p4_depth": 1}, 3).architecture.to_yaml())
    _, point = find_subject(str(path), "digits")
    assert SPACE.candidate(point, 3).architecture == Architecture.load(path)


def test_subject__outside_the_space(tmp_path: Path):
    architecture = SPACE.candidate(POINT, 3).architecture
    path = tmp_path / "mine.yaml"
    path.write_text(Architecture.parse({**architecture.canonical(), "input": 256}).to_yaml())
    with pytest.raises(SpaceError, match="outside the space 'digits'") as error:
        find_subject(str(path), "digits")
    assert "digits:middle" in error.value.remedy
    with pytest.raises(SpaceError, match="must be known"):
        find_subject(str(path))


@pytest.mark.parametrize(
    ("subject", "error", "match"),
    [
        ("digits:midle", UnknownNameError, "Did you mean 'middle'"),
        ("digit:middle", UnknownNameError, "Did you mean 'digits'"),
        ("middle", SpaceError, "names no space"),
    ],
)
def test_subject__that_does_not_exist(subject, error, match):
    with pytest.raises(error, match=match):
        find_subject(subject)


def test_parted_recipe__fields_and_one_file(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lookahead: {steps: 5}\n")
    assert parted_recipe(["peak_lr=0.1", str(path)]) == (["peak_lr=0.1"], {"lookahead.steps": 5})
    assert parted_recipe([]) == ([], {})
    with pytest.raises(InputError, match="one recipe file"):
        parted_recipe([str(path), str(path)])
