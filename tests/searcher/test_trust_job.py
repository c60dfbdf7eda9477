"""Real checks of a small study whose supernet was never trained: landmarks of a few steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from heard import Heard
from tiny import tiny_space

from nas.errors import InputError, NasError, StudyError, TrainingError
from nas.model.supernet import Supernet
from nas.searcher import ablation_job
from nas.searcher.loop import search
from nas.searcher.opening import open_storage
from nas.searcher.progress import Silent
from nas.searcher.request import Request, Workspace
from nas.searcher.result import StudyResult, find_trust
from nas.searcher.setting import Setting, open_setting
from nas.searcher.supernets import supernet_digest
from nas.searcher.trust_job import PURPOSE, Effort, check_trust
from nas.units import Budget

SPACE = tiny_space(
    "hidden: [8, 12, 16, 20]",
    "depth: [1, 2, 3]",
    name="small",
    p3="block: c2f, hidden: $hidden, depth: $depth",
)
EFFORT = Effort(landmarks=5, seeds=1, iterations=2, jobs=1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("trust")
    (folder / "small.yaml").write_text(SPACE)
    request = Request(
        budget=Budget(1000.0),
        space=str(folder / "small.yaml"),
        sampler="random",
        evaluations=3,
        study="s",
        quick=True,
        workspace=Workspace(folder / "studies"),
    )
    with open_setting(request, Silent()) as setting:
        digest = supernet_digest(setting.space, setting.dataset, request.recipe())
        path = request.workspace.supernet(digest)
        path.parent.mkdir(parents=True)
        Supernet(setting.space.covering(setting.classes)).save(path)
        yield setting


@pytest.fixture(scope="module")
def result(setting: Setting) -> StudyResult:
    return search(setting, Silent())


def trained(setting: Setting) -> list[str]:
    return [row.name for row in setting.database.trainings("s", PURPOSE)]


def checkpoints(setting: Setting) -> list[Path]:
    return list((setting.request.workspace.cache / "landmarks").glob("*"))


@pytest.fixture(scope="module")
def stopped(setting: Setting, result: StudyResult) -> Heard:
    """The first check, interrupted in the second landmark."""
    listener = Heard(interrupt_at=("Train landmarks", 3))
    with pytest.raises(KeyboardInterrupt):
        check_trust(setting, result, EFFORT, listener)
    return listener


def test_check__stopped_is_continued_and_trains_nothing_twice(setting, result, stopped):
    assert len(trained(setting)) == 1
    assert len(checkpoints(setting)) == 1
    assert setting.database.runs("s")[-1].status == "interrupted"
    assert find_trust(setting.database, "s") is None

    listener = Heard()
    trust = check_trust(setting, result, EFFORT, listener)
    assert "1 of 5 landmarks are trained already." in listener.lines
    assert sum(one.startswith("trial") for one in trained(setting)) == 3
    assert sum(one.startswith("sampled") for one in trained(setting)) == 2
    assert not checkpoints(setting)
    assert trust.references.shape == (5, 1)

    before = [row.created for row in setting.database.trainings("s", PURPOSE)]
    again = Heard()
    assert check_trust(setting, result, EFFORT, again).as_dict() == trust.as_dict()
    assert [row.created for row in setting.database.trainings("s", PURPOSE)] == before
    assert again.lines == ["5 of 5 landmarks are trained already."]


def test_check__says_what_it_will_cost(stopped):
    (cost,) = [text for text in stopped.lines if "CPU" in text]
    assert "5 trainings from scratch of 2 steps" in cost


def test_check__stores_trainings_report_and_verdict(setting, result, stopped):
    trust = check_trust(setting, result, EFFORT, Silent())
    rows = setting.database.trainings("s", PURPOSE)
    assert {(row.start, row.seed, row.split, row.artifact) for row in rows} == {
        ("scratch", 0, "validation", "engine")
    }
    assert {row.iterations for row in rows} == {2}
    assert find_trust(setting.database, "s") == trust.as_dict()
    assert (
        StudyResult.load(setting.database, "s", result.budget, result.score).trust
        == trust.as_dict()
    )
    with open_storage(setting.database) as storage:
        attributes = storage.get_study_user_attrs(storage.get_study_id_from_name("s"))
    assert attributes["trust"] == trust.verdict.text
    assert setting.database.runs("s")[-1].command == "trust"
    # What was trained for a check is no run of a search.
    assert setting.database.latest_run("s").command == "search"


def test_check__scores_and_latencies_are_those_of_the_search(setting, result, stopped):
    table = check_trust(setting, result, EFFORT, Silent()).table
    both = table.merge(result.scored, on="architecture", suffixes=("", "_searched"))
    assert len(both) == 3
    assert both["score"].tolist() == both["map50_95"].tolist()
    assert both["latency_ms"].tolist() == both["latency_ms_searched"].tolist()
    assert result.row()["architecture"] in set(table["architecture"])


def test_check__a_landmark_that_fails_is_left_out(setting, result, stopped, monkeypatch):
    real, failing = ablation_job.train_and_score, []

    def train_and_score(job, dataset, hear):
        if not failing:
            failing.append(job.name)
            raise TrainingError("The loss was not finite.")
        return real(job, dataset, hear)

    monkeypatch.setattr(ablation_job, "train_and_score", train_and_score)
    listener = Heard()
    other = dataclasses.replace(EFFORT, iterations=1)
    trust = check_trust(setting, result, other, listener)
    assert [f"{name}, seed 0" for name in trust.failed] == failing
    assert len(trust.landmarks) == 4
    assert f"{failing[0]} is left out: The loss was not finite." in listener.lines


def test_check__fewer_than_four_is_an_error(setting, result, stopped, monkeypatch):
    def fail(*_):
        raise TrainingError("The loss was not finite.")

    monkeypatch.setattr(ablation_job, "train_and_score", fail)
    other = dataclasses.replace(EFFORT, iterations=3, landmarks=4)
    with pytest.raises(TrainingError, match=r"At least 4 landmarks.*0 of 4.*not finite"):
        check_trust(setting, result, other, Silent())


def test_check__a_budget_that_admits_too_few_is_an_error(setting, result):
    fastest = Budget(float(result.scored["latency_ms"].min()))
    request = dataclasses.replace(setting.request, budget=fastest)
    tight = dataclasses.replace(result, budget=fastest)
    with pytest.raises(StudyError, match="at least 4 networks"):
        check_trust(dataclasses.replace(setting, request=request), tight, EFFORT, Silent())


@pytest.mark.parametrize(
    "wrong",
    [{"landmarks": 3}, {"seeds": 0}, {"jobs": 0}, {"iterations": 0}, {"threshold": 1.0}],
)
def test_effort__refuses_what_cannot_be(wrong):
    with pytest.raises(InputError) as error:
        Effort(**wrong)
    assert isinstance(error.value, NasError)


def test_effort__of_a_search_is_a_quarter_of_its_recipe():
    request = Request(budget=Budget(1.0))
    short = Effort.short(request)
    assert (short.landmarks, short.seeds) == (8, 1)
    assert short.iterations == request.recipe().iterations // 4
    assert Effort.short(dataclasses.replace(request, quick=True)).iterations <= 10
