"""Re-targeting real studies, on an untrained supernet and devices that are estimated."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from heard import Heard
from tiny import tiny_space

from nas.errors import BudgetError, SpaceError, StudyError, UnknownNameError
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.model.supernet import Supernet
from nas.searcher.connection import exclusive
from nas.searcher.database import Database
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.loop import search
from nas.searcher.opening import open_study
from nas.searcher.progress import Silent
from nas.searcher.request import Request, Workspace
from nas.searcher.result import StudyResult
from nas.searcher.retarget import find_search, inherit, retargeted
from nas.searcher.setting import Setting, open_setting
from nas.searcher.supernets import supernet_of, weights_of
from nas.units import Budget

SPACE = tiny_space(
    "hidden: [8, 16]",
    "depth: [1, 2]",
    "coarse: [8, 16]",
    name="small",
    p3="block: c2f, hidden: $hidden, depth: $depth",
    p5="hidden: $coarse",
)
WIDE = Budget(100.0)
_RUN = ("command", "space", "data", "recipe", "hardware", "runtime", "seed", "versions")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space and a workspace, where the study S was searched for an L4."""
    root = tmp_path_factory.mktemp("searched")
    (root / "small.yaml").write_text(SPACE)
    request = _request(root)
    with open_setting(request, Silent()) as setting:
        path = request.workspace.supernet(weights_of(setting))
        path.parent.mkdir(parents=True)
        Supernet(setting.space.covering(setting.classes)).save(path)
        search(setting, Silent())
    return root


@pytest.fixture
def folder(searched: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to change; the space keeps its path."""
    shutil.copytree(searched / "studies", tmp_path / "studies")
    return tmp_path


def _request(root: Path, **fields: Any) -> Request:
    given: dict[str, Any] = {
        "hardware": "l4",
        "budget": WIDE,
        "space": str(root / "small.yaml"),
        "sampler": "random",
        "evaluations": 4,
        "study": "S",
        "quick": True,
        "workspace": Workspace(root / "studies"),
    }
    return Request(**given | fields)


def _stored(folder: Path, study: str = "S") -> Request:
    place = Workspace(folder / "studies")
    with Database(place.database_url) as database:
        run = find_search(database, study)
        return Request.restored(run.arguments, study=study, storage=None, workspace=place)


def _derived(folder: Path, name: str | None = None, study: str = "S", **stated: Any) -> Request:
    stored = _stored(folder, study)
    with Database(stored.url) as database:
        return retargeted(database, stored, stated, name)


@contextmanager
def _opened(request: Request) -> Iterator[Setting]:
    with open_setting(request, Silent()) as setting:
        yield setting


def _searched(request: Request) -> tuple[StudyResult, Heard]:
    heard = Heard()
    with open_setting(request, heard) as setting:
        return search(setting, heard), heard


def test_retargeted__what_agrees_continues_the_study(folder: Path) -> None:
    for stated in ({}, {"hardware": "L4"}, {"runtime": "tensorrt", "budget": WIDE, "seed": 0}):
        request = _derived(folder, **stated)
        assert (request.study, request.parent, request.evaluations) == ("S", None, 4)
    assert _derived(folder, evaluations=9).evaluations == 9


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ({"hardware": "t4"}, "S@t4-100ms"),
        ({"budget": Budget(0.5)}, "S@l4-0.5ms"),
        ({"runtime": "onnxruntime"}, "S@l4-onnxruntime-100ms"),
        ({"precisions": ("int8", "fp16")}, "S@l4-int8+fp16-100ms"),
        ({"hardware": "cpu", "budget": Budget(2.0)}, "S@cpu-2ms"),
    ],
)
def test_retargeted__another_target_derives_a_study(
    folder: Path, stated: dict[str, Any], name: str
) -> None:
    request, stored = _derived(folder, **stated), _stored(folder)
    assert request.study == name
    assert request.parent is not None
    assert request.parent.study == "S"
    assert stored.workspace.supernet(request.parent.supernet).exists()
    assert request.evaluations is None
    kept = ("data", "space", "seed", "quick", "sampler", "score")
    assert all(getattr(request, one) == getattr(stored, one) for one in kept)


def test_retargeted__what_belongs_to_a_device_stays_with_it(folder: Path) -> None:
    stored = dataclasses.replace(_stored(folder), runtime="onnxruntime-gpu", table=Path("there"))
    with Database(stored.url) as database:
        moved = retargeted(database, stored, {"hardware": "t4"})
        tighter = retargeted(database, stored, {"budget": Budget(1.0)})
    assert (moved.runtime, moved.table) == (None, None)
    assert (tighter.runtime, tighter.table) == ("onnxruntime-gpu", Path("there"))


@pytest.mark.parametrize(
    "stated", [{"data": "elsewhere"}, {"space": "yolo_nas"}, {"seed": 1}, {"quick": False}]
)
def test_retargeted__refuses_what_would_need_training(folder: Path, stated: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="need another training") as caught:
        _derived(folder, hardware="t4", **stated)
    assert f"--{next(iter(stated))}" in caught.value.remedy


def test_retargeted__a_missing_supernet_says_how_to_train_it(folder: Path) -> None:
    shutil.rmtree(folder / "studies" / "cache" / "supernets")
    with pytest.raises(StudyError, match="supernet of 'S' must be in") as caught:
        _derived(folder, hardware="t4")
    assert "nas search --resume --study S" in caught.value.remedy


def test_retargeted__a_parent_without_scores_is_refused(folder: Path) -> None:
    stored = dataclasses.replace(_stored(folder), study="T")
    with Database(stored.url) as database:
        run = {name: getattr(find_search(database, "S"), name) for name in _RUN}
        database.add_run("T", **run | {"arguments": stored.arguments()})
        choices, digest = {"a": (1, 2)}, {"supernet": _derived(folder, "x").parent.supernet}  # type: ignore[union-attr]
        with open_study(
            database, "T", "random", parameters=choices, fingerprint=digest, budget=WIDE
        ):
            pass
    with pytest.raises(StudyError, match="'T' has none"):
        _derived(folder, study="T", hardware="t4")


def test_find_search__unknown_or_of_another_command(folder: Path) -> None:
    with Database(_stored(folder).url) as database:
        with pytest.raises(UnknownNameError, match="Known: S"):
            find_search(database, "unheard-of")
        values = {"space": "", "data": "", "recipe": "", "hardware": "", "runtime": "", "seed": 0}
        database.add_run("A", command="ablate", arguments={}, versions={}, **values)
        with pytest.raises(StudyError, match="'A' is a study of nas ablate"):
            find_search(database, "A")


def test_search__retargeted_trains_nothing_and_goes_on_where_it_was(folder: Path) -> None:
    with Database(_stored(folder).url) as database:
        old = StudyResult.load(database, "S", WIDE, _stored(folder).score)
    request = _derived(folder, hardware="t4")
    result, heard = _searched(request)
    assert not any("Train" in stage for stage in heard.stages)
    assert "4 have an accuracy on this target already" in heard.text
    assert "4 of 4 known candidates keep 100ms on t4" in heard.text
    assert "ESTIMATED" in heard.text
    there, here = (one.scored.set_index("architecture") for one in (old, result))
    assert (here.loc[there.index, "map50_95"] == there["map50_95"]).all()
    assert (here.loc[there.index, "latency_ms"] != there["latency_ms"]).all()
    assert len(here) == len(there) + 2  # those that are scored beside what is known
    assert result.evaluations.iloc[0]["architecture"] in set(old.front["architecture"])
    again = _derived(folder, hardware="t4", evaluations=7)
    assert (again.study, again.parent) == (request.study, request.parent)
    after, _ = _searched(again)
    trials = result.evaluations["trial"].tolist()
    assert after.evaluations["trial"].tolist()[: len(trials)] == trials
    assert len(after.scored) == 7


def test_search__a_tighter_budget_says_what_keeps_it(folder: Path) -> None:
    stored = _stored(folder)
    with Database(stored.url) as database:
        known = StudyResult.load(database, "S", WIDE, stored.score).scored
    latencies = known["latency_ms"].sort_values().tolist()
    budget = Budget((latencies[1] + latencies[2]) / 2)
    result, heard = _searched(_derived(folder, "tight", budget=budget))
    assert f"2 of 4 known candidates keep {budget}" in heard.text
    assert (result.scored["latency_ms"] <= budget.latency_ms).all()
    assert set(known["architecture"]) <= set(result.evaluations["architecture"])


def test_search__a_budget_that_admits_nothing_says_the_fastest(folder: Path) -> None:
    with pytest.raises(BudgetError, match=r"the fastest of \d+ estimated") as caught:
        _searched(_derived(folder, hardware="t4", budget=Budget(1e-5)))
    assert "smallest budget that would work" in caught.value.remedy


def test_search__a_precision_that_the_target_lacks(folder: Path) -> None:
    with pytest.raises(SpaceError, match="int8, of which nothing can run here: fp16"):
        _searched(_derived(folder, hardware="t4", precisions=("int8",)))


def test_retargeted__a_name_that_another_study_has(folder: Path) -> None:
    mine = _derived(folder, "mine", hardware="t4")
    with Database(mine.url) as database:
        run = {name: getattr(find_search(database, "S"), name) for name in _RUN}
        database.add_run("mine", **run | {"arguments": mine.arguments()})
    assert _derived(folder, "mine", hardware="t4") == mine
    with pytest.raises(StudyError, match="another study called 'mine'"):
        _derived(folder, "mine", hardware="rtx-3060")
    with pytest.raises(StudyError, match="another study called 'S'"):
        _derived(folder, "S", hardware="t4")


def test_inherit__refuses_other_data_and_another_space(folder: Path, searched: Path) -> None:
    other = folder / "small.yaml"
    other.write_text(
        SPACE.replace("P4: {block: c2f, channels: 16", "P4: {block: c2f, channels: 24")
    )
    request = _derived(folder, hardware="t4")
    with (
        _opened(dataclasses.replace(request, space=str(other))) as setting,
        pytest.raises(StudyError, match="must be what 'S' searched"),
    ):
        inherit(setting)
    with _opened(request) as setting:
        changed = dataclasses.replace(
            setting.dataset, validation=setting.dataset.validation.subset("validation", range(40))
        )
        with pytest.raises(StudyError, match="must have the data of its parent"):
            inherit(dataclasses.replace(setting, dataset=changed))
    assert (searched / "small.yaml").exists()


def test_inherit__another_precision_is_every_way_of_the_same_network(folder: Path) -> None:
    with _opened(_derived(folder, hardware="t4")) as setting:
        alone = inherit(setting)
        space = setting.space.in_precisions(["int8", "fp16"])
        answers = dataclasses.replace(setting.answers, space=space)
        both = inherit(dataclasses.replace(setting, answers=answers))
    assert len(both) == 2 * len(alone)
    assert {one.candidate.precision for one in both} == {"int8", "fp16"}
    assert {one.candidate.architecture.digest for one in both} == {
        one.candidate.architecture.digest for one in alone
    }
    order = [(not one.on_front, not one.near) for one in alone]
    assert order == sorted(order)


def test_judge__knows_what_its_own_runtime_scored(folder: Path) -> None:
    with _opened(_derived(folder, hardware="t4")) as setting:
        candidate = inherit(setting)[0].candidate
        make: Callable[..., AccuracyJudge] = lambda runtime: AccuracyJudge(  # noqa: E731
            supernet_of(setting, Silent()),
            weights_of(setting),
            setting.dataset,
            runtime,
            setting.database,
        )
        assert make(setting.runtime).known(candidate) is not None
        assert make(OnnxRuntime()).known(candidate) is None


def test_search__one_process_at_a_time_derives_a_study(folder: Path) -> None:
    request = _derived(folder, hardware="t4")
    with (
        Database(request.url) as database,
        exclusive(database.engine, f"study {request.study}"),
        pytest.raises(StudyError, match="Only one process"),
    ):
        _searched(request)


def test_request__a_run_from_before_has_no_parent(folder: Path) -> None:
    stored = _stored(folder)
    arguments = {name: value for name, value in stored.arguments().items() if name != "parent"}
    there = Request.restored(arguments, study="S", storage=None, workspace=stored.workspace)
    assert there == stored
