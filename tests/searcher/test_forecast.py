from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_space

from nas import api
from nas.accuracy.dataset import Dataset
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.errors import StudyError
from nas.results.forecast import duration_text, forecast_table
from nas.searcher import request as requests
from nas.searcher.forecast import Stage, stages_after_training
from nas.searcher.progress import Silent
from nas.searcher.request import Confirmation, Parent, Request
from nas.searcher.unit_costs import UnitCosts
from nas.units import Budget

TINY = tiny_space(
    "input: [64, 96]",
    "hidden: [4, 8]",
    size="$input",
)
COSTS = UnitCosts(step=2.0, preparation=1.0, image=0.125, start=5.0, measurement=3.0)
USUAL = Request(budget=Budget(10.0), confirmation=Confirmation(candidates=3, seeds=2, jobs=1))


class _Stops(Silent):
    """Interrupts a training at its third step."""

    def advance(self, done: int, note: str = "") -> None:
        if note.startswith("loss") and done == 3:
            raise KeyboardInterrupt


@pytest.fixture
def space(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """8 validation images and 4 test images: scoring takes 2 s and 1.5 s."""
    recipe = DigitsRecipe(train=8, validation=8, test=4, size=64)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits"))


def counted(dataset: Dataset, **changes: Any) -> dict[str, Stage]:
    """Return the stages of the usual search, with changes to its confirmation or to itself."""
    names = {field.name for field in dataclasses.fields(Confirmation)}
    of_confirmation = {name: value for name, value in changes.items() if name in names}
    confirmation = dataclasses.replace(USUAL.confirmation, **of_confirmation)
    others = {name: value for name, value in changes.items() if name not in names}
    request = dataclasses.replace(USUAL, **others, confirmation=confirmation)
    return {stage.name: stage for stage in stages_after_training(request, COSTS, dataset)}


def test_forecast__says_what_will_be_done_and_stores_nothing(space: str, tmp_path: Path) -> None:
    request = api.search_request("50ms", space=space, quick=True, workspace=tmp_path)
    found = api.forecast(request)
    names = [stage.name for stage in found.stages]
    assert names == [
        "Resize the images",
        "Measure the space",
        "Train the supernet",
        "Score candidates",
        "Check the ranking",
        "Follow plain rules",
        "Measure fresh builds",
        "Fine-tune networks",
    ]
    assert all(stage.seconds > 0 for stage in found.stages)
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    steps = request.recipe().supernet_iterations
    assert "10 networks" in found.stages[1].note
    assert f"{steps} steps of 8 images" in found.stages[2].note
    assert "8 measured" in found.stages[3].note
    assert found.room.memory.is_met
    assert list((tmp_path / "cache" / "supernets").iterdir()) == []
    with pytest.raises(StudyError, match="no study"):
        api.stored_request(None, None, tmp_path)
    *_, time, memory, disk, _ = (str(cell) for cell in forecast_table(found).columns[0].cells)
    assert [time, memory, disk] == ["Time", "Memory", "Disk"]
    assert "over the budget" in str(list(forecast_table(found).columns[2].cells)[-4])


def test_forecast__of_trainings_without_shared_weights(space: str, tmp_path: Path) -> None:
    request = api.search_request(
        "50ms", space=space, quick=True, accuracy="training", workspace=tmp_path
    )
    names = [stage.name for stage in api.forecast(request).stages]
    assert "Train candidates" in names
    assert not {"Train the supernet", "Check the ranking"} & set(names)


def test_forecast__of_one_training(tmp_path: Path) -> None:
    found = api.forecast_training("digits:min", quick=True, iterations=7, workspace=tmp_path)
    assert [stage.name for stage in found.stages] == [
        "Resize the images",
        "Train",
        "Score",
        "Measure",
    ]
    assert "7 steps" in found.stages[1].note
    assert all(stage.seconds > 0 for stage in found.stages[1:])
    assert not list(tmp_path.glob("trained-*"))
    assert "A training takes about" in str(forecast_table(found).title)


def test_stages__candidates_are_measured_and_scored(dataset: Dataset) -> None:
    stage = counted(dataset, evaluations=10)["Score candidates"]
    assert stage.seconds == 10 * (3.0 + 2.0)
    assert counted(dataset, evaluations=20)["Score candidates"].seconds == 2 * stage.seconds


def test_stages__landmarks_are_trained_from_scratch_for_a_quarter(dataset: Dataset) -> None:
    stage = counted(dataset)["Check the ranking"]
    quarter = USUAL.recipe().iterations // 4
    one_or_two_at_a_time = {rounds * (quarter * 2.0 + 2.0) for rounds in (4, 8)}
    assert stage.seconds in one_or_two_at_a_time


@pytest.mark.parametrize(
    "change", [{"trust": False}, {"parent": Parent("s", "w")}, {"accuracy": "training"}]
)
def test_stages__without_a_check_there_are_no_landmarks(
    dataset: Dataset, change: dict[str, Any]
) -> None:
    usual, without = counted(dataset), counted(dataset, **change)
    assert usual.keys() - without.keys() >= {"Check the ranking"}


def test_stages__fine_tunings_are_scored_on_validation_and_test(dataset: Dataset) -> None:
    networks = USUAL.confirmation.networks
    steps = USUAL.recipe().fine_tuning().iterations
    stage = counted(dataset)["Fine-tune networks"]
    assert stage.seconds == 2 * networks * (steps * 2.0 + 2.0 + 1.5)
    assert stage.note.startswith(f"at most {2 * networks} times {steps} steps")
    untested = dataclasses.replace(dataset, test=None)
    assert counted(untested)["Fine-tune networks"].seconds == stage.seconds - 2 * networks * 1.5


@pytest.mark.parametrize(
    ("change", "factor"), [({"seeds": 4}, 2.0), ({"seeds": 1}, 0.5), ({"jobs": 2}, 0.5)]
)
def test_stages__fine_tunings_follow_seeds_and_jobs(
    dataset: Dataset, change: dict[str, int], factor: float
) -> None:
    untested = dataclasses.replace(dataset, test=None)
    usual, other = (counted(untested, **one)["Fine-tune networks"] for one in ({}, change))
    assert other.seconds == factor * usual.seconds


def test_stages__every_network_that_is_confirmed_counts(dataset: Dataset) -> None:
    usual, more = counted(dataset), counted(dataset, candidates=5)
    steps = USUAL.recipe().fine_tuning().iterations
    added = more["Fine-tune networks"].seconds - usual["Fine-tune networks"].seconds
    assert added == 2 * 2 * (steps * 2.0 + 2.0 + 1.5)
    builds = more["Measure fresh builds"].seconds - usual["Measure fresh builds"].seconds
    assert builds == 2 * 6 * 3.0
    none = counted(dataset, baselines="none")["Fine-tune networks"]
    assert none.note.startswith("at most 10 times")  # of the front 3, largest 2; 2 seeds


def test_stages__a_named_network_may_be_trained_wholly(dataset: Dataset) -> None:
    usual, named = counted(dataset), counted(dataset, against=("yolo_nas:S",))
    steps = USUAL.recipe().iterations
    added = named["Fine-tune networks"].seconds - usual["Fine-tune networks"].seconds
    assert added == 2 * (steps * 2.0 + 2.0 + 1.5)


@pytest.mark.parametrize("baselines", ["cheap", "all"])
def test_stages__plain_rules_draw_as_many_as_are_scored(dataset: Dataset, baselines: str) -> None:
    stage = counted(dataset, baselines=baselines, evaluations=10)["Follow plain rules"]
    assert stage.seconds == (10 + 2) * 3.0 + 2 * 2.0  # two scalings, and a score of each
    assert "Follow plain rules" not in counted(dataset, baselines="none")


def test_stages__plain_rules_need_no_score_where_nothing_is_shared(dataset: Dataset) -> None:
    stages = counted(dataset, baselines="all", accuracy="training", evaluations=10)
    assert stages["Follow plain rules"].seconds == (10 + 1) * 3.0
    assert "Search at random" not in stages


def test_stages__random_search_scores_what_plain_rules_drew(dataset: Dataset) -> None:
    assert "Search at random" not in counted(dataset)
    stage = counted(dataset, baselines="all", evaluations=10)["Search at random"]
    assert stage.seconds == 10 * 2.0


def test_resume__with_another_recipe_is_refused(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        api.search("50ms", space=space, quick=True, workspace=tmp_path, listener=_Stops())
    assert len(list(tmp_path.rglob("*.checkpoint"))) == 1
    quick = requests.Recipe.quick
    monkeypatch.setattr(requests.Recipe, "quick", lambda: quick().fine_tuning())
    with pytest.raises(StudyError, match="share their supernet, and so the recipe"):
        api.resume(workspace=tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(40.2, "40 s"), (600, "10 min"), (9000, "2.5 h")])
def test_duration__as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
