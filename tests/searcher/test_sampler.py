from __future__ import annotations

from importlib.metadata import EntryPoint

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler

from nas import plugins
from nas.errors import MissingPackageError, UnknownNameError
from nas.searcher.autonac import AutoNACSampler
from nas.searcher.sampler import derive_seed, make_sampler, sampler_names

NAMES = ("autonac", "gp", "nsga2", "random", "tpe")
SPACE = {"x": IntDistribution(0, 9), "y": IntDistribution(0, 9)}


def study_of(name, seed, n_existing=0):
    sampler = make_sampler(name, seed, n_existing)
    return optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)


def points(study, n_trials):
    """Ask, and tell: accuracy and latency grow with x and y, the budget is 10."""
    found = []
    for _ in range(n_trials):
        trial = study.ask(SPACE)
        x, y = trial.params["x"], trial.params["y"]
        found.append((x, y))
        trial.set_constraint("latency", x + y - 10)
        study.tell(trial, [(x + y) / 18 if x + y <= 10 else 0.0, float(x + y)])
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("autonac", AutoNACSampler),
        ("gp", GPSampler),
        ("nsga2", NSGAIISampler),
        ("random", RandomSampler),
        ("tpe", TPESampler),
    ],
)
def test_make_sampler__by_name(name, kind):
    assert isinstance(make_sampler(name, seed=0), kind)
    assert set(NAMES) <= set(sampler_names())


def test_make_sampler__an_unknown_name_lists_the_known():
    with pytest.raises(
        UnknownNameError, match=r"Unknown sampler 'nsga'.*nsga2.*autonac.*gp.*random.*tpe"
    ):
        make_sampler("nsga", seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_make_sampler__a_seed_repeats_itself(name):
    assert points(study_of(name, 3), 12) == points(study_of(name, 3), 12)
    assert points(study_of(name, 3), 8) != points(study_of(name, 4), 8)


@pytest.mark.parametrize("name", NAMES)
def test_make_sampler__a_resumed_study_goes_on_instead_of_repeating(name):
    study = study_of(name, 0)
    first = points(study, 8)
    study.sampler = make_sampler(name, 0, len(study.trials))
    assert points(study, 8) != first


def test_derive_seed__depends_on_both_and_fits_in_32_bits():
    seeds = {derive_seed(seed, n) for seed in range(20) for n in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("name", ["nsga2", "tpe"])
def test_make_sampler__learns_the_budget(name):
    late = [point for seed in range(4) for point in points(study_of(name, seed), 80)[-40:]]
    infeasible = sum(x + y > 10 for x, y in late) / len(late)
    by_chance = sum(x + y > 10 for x in range(10) for y in range(10)) / 100
    assert infeasible < 0.75 * by_chance


def plug_in(monkeypatch, value):
    point = EntryPoint("theirs", value, "nas.samplers")
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [point])


def test_make_sampler__of_another_distribution(monkeypatch):
    plug_in(monkeypatch, "nas.searcher.sampler:_random")
    assert sampler_names() == ("autonac", "gp", "nsga2", "random", "theirs", "tpe")
    assert isinstance(make_sampler("theirs", seed=0), RandomSampler)


def test_make_sampler__of_another_distribution_without_its_package(monkeypatch):
    plug_in(monkeypatch, "not_installed:Sampler")
    with pytest.raises(MissingPackageError, match="not_installed"):
        make_sampler("theirs", seed=0)
