from __future__ import annotations

import dataclasses

import pytest

from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import parse_field, with_fields
from nas.errors import UnknownNameError
from nas.searcher.switches import SWITCHES, compared_with, find_switches
from nas.searcher.variants import Changes, plan
from nas.space.space import load_space

SPACE = load_space("digits")


@pytest.mark.parametrize("name", SWITCHES)
def test_switch__changes_the_recipe_and_its_digest(name: str):
    values = SWITCHES[name].values
    assert all(parse_field(field, str(value)) == value for field, value in values.items())
    changed = with_fields(Recipe(), values)
    assert changed.digest != Recipe().digest
    groups = {field.partition(".")[0] for field in values}
    for field in dataclasses.fields(Recipe):
        same = getattr(changed, field.name) == getattr(Recipe(), field.name)
        assert same == (field.name not in groups)


def test_find_switches__each_after_what_it_is_compared_with():
    assert find_switches(["pseudo_labels", "lookahead"]) == (
        "labelled_part",
        "pseudo_labels",
        "lookahead",
    )
    assert find_switches(["all"]) == tuple(SWITCHES)
    assert find_switches(["labelled_part", "pseudo_labels"]) == ("labelled_part", "pseudo_labels")


def test_find_switches__of_no_such_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'lookahead'"):
        find_switches(["lookahed"])


def test_compared_with__the_baseline_unless_a_switch_says_otherwise():
    assert compared_with("pseudo_labels", "baseline") == "labelled_part"
    assert compared_with("lookahead", "baseline") == "baseline"
    assert compared_with("p3_attention=dense", "baseline") == "baseline"


def test_plan__every_switch_by_itself():
    changes = Changes.parse(switches=find_switches(["all"]))
    found = plan(SPACE, SPACE.anchors["middle"], changes, classes=10, recipe=Recipe(), seeds=[0])
    assert [one.name for one in found.variants] == ["baseline", *SWITCHES]
    assert len(found.distinct) == len(found.variants)
    assert {one.candidate.digest for one in found.variants} == {found.baseline.candidate.digest}
    stages = next(one for one in found.variants if one.name == "three_stages")
    assert (stages.kind, stages.changed) == (
        "switch",
        "stages.gate_warmup, stages.fine_tuning, final_lr",
    )
    assert (stages.before, stages.after) == ("0.0, 0.0, 0.02", "0.1, 0.2, 0.01")
