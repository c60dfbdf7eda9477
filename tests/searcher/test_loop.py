"""The search itself, on an untrained supernet: what a crash of an engine does to it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import optuna
import pytest
from heard import Heard
from optuna.trial import FrozenTrial
from tiny import tiny_space

from nas.accuracy.recipe import Recipe
from nas.latency.clock import ClockSettings
from nas.latency.meter import LatencyMeter
from nas.latency.oracle import MeasuringOracle
from nas.model.supernet import Supernet
from nas.searcher.bounds import Bounds, figures_of
from nas.searcher.latency_judge import LatencyJudge
from nas.searcher.loop import search
from nas.searcher.opening import open_storage
from nas.searcher.progress import Silent, Status
from nas.searcher.request import Request, Workspace
from nas.searcher.rewriting import retold, rewrite_study
from nas.searcher.setting import Setting, open_setting
from nas.searcher.supernets import supernet_digest
from nas.searcher.trials import told_of
from nas.units import Budget

QUICK = ClockSettings(half_width=0.9, min_blocks=3, max_blocks=4, block_ms=2, warmup_ms=2)
SPACE = tiny_space(
    "hidden: [8, 12, 16, 20]",
    "depth: [1, 2, 3]",
    "coarse: [8, 12, 16, 20]",
    name="small",
    p3="block: c2f, hidden: $hidden, depth: $depth",
    p5="hidden: $coarse",
)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "latency"))
    return importlib.import_module("broken_runtimes")


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """Whatever a search needs, with a supernet that was never trained."""
    space = tmp_path / "small.yaml"
    space.write_text(SPACE)
    request = Request(
        budget=Budget(1000.0),
        space=str(space),
        runtime="onnxruntime",
        sampler="random",
        evaluations=5,
        quick=True,
        workspace=Workspace(tmp_path / "studies"),
    )
    with open_setting(request, Silent()) as setting:
        digest = supernet_digest(setting.space, setting.dataset, request.recipe())
        path = request.workspace.supernet(digest)
        path.parent.mkdir(parents=True)
        Supernet(setting.space.covering(setting.classes)).save(path)
        yield setting


class _Arming(Silent):
    """Lets the next engine crash when the search proper begins."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def stage(self, name: str, total: int) -> None:
        del total
        if name == "Search":
            self._marker.write_text("armed")


def test_search__engine_that_crashes_costs_one_candidate(
    setting: Setting, broken: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    marker.write_text("not yet")
    monkeypatch.setenv(broken.CRASHED, str(marker))
    with LatencyMeter(
        setting.hardware,
        broken.CrashingOnceRuntime(),
        store=setting.database,
        settings=QUICK,
        isolated=True,
    ) as meter:
        oracle = MeasuringOracle(meter, predicts=False)
        latency = LatencyJudge(oracle, setting.database, setting.space.digest)
        answers = dataclasses.replace(setting.answers, oracle=oracle)
        crashing = dataclasses.replace(setting, answers=answers, latency=latency)
        result = search(crashing, _Arming(marker))
    states = result.evaluations["state"].value_counts()
    assert marker.read_text() == "done"
    assert states["failed"] == 1
    assert states["complete"] == 5
    failed = result.evaluations.query("state == 'failed'").iloc[0]
    assert "was killed by signal 11 (Segmentation fault)" in failed["error"]
    later = result.evaluations.query(f"trial > {failed['trial']} and state == 'complete'")
    assert not later.empty


def test_search__stopped_candidates_stand_on_no_front(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.searcher.judges.subset_size", lambda *_: 10)
    result = search(setting, Silent())
    stopped, scored = result.stopped, result.scored
    # Untrained networks find nothing, so whatever is not the fastest so far is stopped.
    assert len(stopped) + len(scored) == 5
    assert len(stopped) >= 1
    assert stopped["map50_95"].isna().all()
    assert stopped["estimate"].between(stopped["estimate_low"], stopped["estimate_high"]).all()
    assert set(stopped["fidelity"]) == {"subset"}
    assert set(stopped["estimate_images"]) == {10}
    assert set(scored["fidelity"]) == {"whole"}
    assert set(scored["images"]) == {len(setting.dataset.validation)}
    assert not set(result.front["trial"]) & set(stopped["trial"])
    with open_storage(setting.database) as storage:
        trials = optuna.load_study(study_name=result.study, storage=storage).trials
    for trial in (trials[number] for number in stopped["trial"]):
        assert trial.user_attrs["fidelity"] == "subset"
        told = told_of(trial)
        assert told is not None
        assert told.accuracy is None
        assert told.estimate == trial.values[0]
    # Resumed, it has all five evaluations already.
    request = dataclasses.replace(setting.request, study=result.study)
    again = search(dataclasses.replace(setting, request=request), Silent())
    assert len(again.evaluations) == len(result.evaluations)


def test_search__completes_what_was_stopped_for_a_network_that_is_slower_than_it_was_told(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.searcher.judges.subset_size", lambda *_: 10)
    before = search(setting, Silent())
    stopped = before.stopped.sort_values("latency_ms")
    assert len(stopped) >= 1

    def slower(trial: FrozenTrial) -> FrozenTrial:
        if "fidelity" in trial.user_attrs or trial.values is None:
            return trial
        return retold(trial, [trial.values[0], 999.0], {}, {"latency": -1.0})

    with open_storage(setting.database) as storage:
        rewrite_study(storage, before.study, slower)
    request = dataclasses.replace(setting.request, study=before.study)
    after = search(dataclasses.replace(setting, request=request), Silent())
    (added,) = after.evaluations["trial"].iloc[len(before.evaluations) :]
    completed = after.row(added)
    # All find nothing, so the fastest of them is better than the others again.
    assert completed["architecture"] == stopped.iloc[0]["architecture"]
    assert completed["fidelity"] == "whole"
    assert len(after.stopped) == len(before.stopped) - 1


class _Impatient(Silent):
    """Stops the search after some candidates, as a user would."""

    def __init__(self, after: int) -> None:
        self._left = after

    def status(self, status: Status) -> None:
        del status
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


def test_search__by_training_promotes_a_third_and_survives_a_stop(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(iterations=9, batch_size=4)
    monkeypatch.setattr(Request, "recipe", lambda _: recipe)
    request = dataclasses.replace(
        setting.request, accuracy="training", evaluations=6, study="rungs", trust=False
    )
    training = dataclasses.replace(setting, request=request)
    checkpoints = request.workspace.cache / "rungs"
    for patience in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            search(training, _Impatient(patience))
        assert list(checkpoints.rglob("*.checkpoint"))
    result = search(training, Silent())
    assert not list(checkpoints.rglob("*.checkpoint"))  # it is finished
    table = result.evaluations
    reached = table[table["state"] == "stopped"].groupby("estimate_iterations")["architecture"]
    assert reached.nunique().to_dict() == {1: 6, 3: 2}
    assert (reached.size() == reached.nunique()).all()  # nothing was trained twice
    scored = result.scored
    assert len(scored) == 1
    assert set(scored["fidelity"]) == {"whole"}
    assert set(scored["weights"]) == {"trained"}
    assert len(result.stopped) == 5
    with open_storage(setting.database) as storage:
        trials = optuna.load_study(study_name="rungs", storage=storage).trials
    states = {trial.number: trial.state.name for trial in trials}
    assert {states[number] for number in scored["trial"]} == {"COMPLETE"}
    assert {states[number] for number in result.stopped["trial"]} == {"PRUNED"}


def test_search__our_sampler_proposes_nothing_over_an_exact_bound(setting: Setting) -> None:
    """`min` and `max` are tried in any case, and only one of them keeps it."""
    ends = [setting.candidate(setting.space.anchors[name]) for name in ("min", "max")]
    least, most = (figures_of(one)["parameters"] for one in ends)
    bounds = Bounds(parameters=least + 0.3 * (most - least))
    request = dataclasses.replace(setting.request, sampler="autonac", bounds=bounds)
    result = search(dataclasses.replace(setting, request=request), Silent())
    states = result.evaluations.sort_values("trial")["state"].tolist()
    assert states.count("infeasible") == 1
    assert states.index("infeasible") < 2
    assert len(result.scored) == 5


def test_search__a_space_that_is_exhausted_ends_it_and_is_told_once(setting: Setting) -> None:
    """Asking on would only fill the study with repeats."""
    options = {name: dict(list(each.items())[:1]) for name, each in setting.space.options.items()}
    options["depth"] = dict(list(setting.space.options["depth"].items())[:2])
    ends = {name: {choice: next(iter(o)) for choice, o in options.items()} for name in ("min",)}
    ends["max"] = {choice: list(o)[-1] for choice, o in options.items()}
    few = dataclasses.replace(setting.space, options=options, anchors=ends)
    heard = Heard()
    request = dataclasses.replace(setting.request, sampler="autonac")
    answers = dataclasses.replace(setting.answers, space=few)
    result = search(dataclasses.replace(setting, answers=answers, request=request), heard)
    assert len(result.scored) == 2
    assert len(result.evaluations) <= 4
    text = " ".join(heard.lines)
    assert "All that the space has was tried: the search ends with 2 of 5 evaluations." in text
    assert "admits all of 2 measured candidates" in text
