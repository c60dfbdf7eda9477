from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler

from nas.errors import StudyError
from nas.searcher.points import encode, suggest

PARAMETERS = {
    "width": (16, 24, 32),
    "depth": (1, 2, 4),
    "ratio": (0.25, 0.5, 1.0),
    "block": ("csp", "repvgg"),
    "attention": (False, True),
    "input": (640,),
}
LABELS = st.one_of(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.floats(0.01, 10), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.text("abcdef", min_size=1), min_size=1, max_size=5, unique=True),
    st.just([False, True]),
)


def new_study(seed=0):
    return optuna.create_study(sampler=RandomSampler(seed=seed))


def test_suggest__orders_what_has_an_order():
    trial = new_study().ask()
    point = suggest(trial, PARAMETERS)
    assert {name: type(d).__name__ for name, d in trial.distributions.items()} == {
        "width": "IntDistribution",
        "depth (index)": "IntDistribution",
        "ratio (index)": "IntDistribution",
        "block": "CategoricalDistribution",
        "attention": "CategoricalDistribution",
    }
    assert trial.distributions["width"].step == 8
    assert point["input"] == 640


def test_suggest__reaches_every_option():
    study = new_study()
    points = [suggest(study.ask(), PARAMETERS) for _ in range(60)]
    assert {name: {point[name] for point in points} for name in PARAMETERS} == {
        name: set(labels) for name, labels in PARAMETERS.items()
    }


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_encode__a_point_comes_back_as_it_was(data):
    parameters = data.draw(st.dictionaries(st.text("xyz", min_size=1), LABELS, min_size=1))
    point = {name: data.draw(st.sampled_from(labels)) for name, labels in parameters.items()}
    study = new_study()
    study.enqueue_trial(encode(point, parameters))
    found = suggest(study.ask(), parameters)
    assert [*map(repr, found.values())] == [*map(repr, point.values())]


@pytest.mark.parametrize(
    "change", [{"depth": 3}, {"block": "none"}, {"unknown": 1}, {"attention": "yes"}]
)
def test_encode__a_point_outside_the_space(change):
    point = {name: labels[0] for name, labels in PARAMETERS.items()}
    with pytest.raises(StudyError, match=next(iter(change))):
        encode(point | change, PARAMETERS)


def test_encode__a_choice_that_is_missing():
    with pytest.raises(StudyError, match="width"):
        encode({"depth": 1}, {"depth": (1, 2), "width": (1, 2)})
