"""Whole ablation studies on real data, engines and databases, at the smallest useful size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from heard import Heard
from sqlalchemy import func, select
from tiny import tiny_space

from nas.accuracy.bootstrap import centred_interval
from nas.errors import DatasetError, InputError, StudyError, UnknownNameError
from nas.searcher.ablation import AblationRequest, ablate, cost_report
from nas.searcher.connection import exclusive
from nas.searcher.database import Database
from nas.searcher.request import Workspace
from nas.searcher.tables import AccuracyRow
from nas.searcher.variants import Changes

TINY = tiny_space(
    "hidden: [8, 16]",
    "depth: [1, 2]",
    p3="block: qarepvgg_csp, hidden: $hidden, depth: $depth",
)
# `wide` is the network of hidden=16, and loss.box=2.5 is the baseline.
CHANGES = Changes.parse(["hidden"], ["loss.box=2.5"], {"wide": {"hidden": 16}})
NAMES = ["baseline", "hidden=16", "loss.box=2.5", "wide"]


def trained_in(heard: Heard) -> list[str]:
    """Return what was trained, by name."""
    return [text.split(":")[0] for text in heard.lines if ": mAP50-95 " in text]


@pytest.fixture(scope="module")
def request_(tmp_path_factory) -> AblationRequest:
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "tiny.yaml").write_text(TINY)
    return AblationRequest(
        subject=f"{folder}/tiny.yaml:min",
        changes=CHANGES,
        seeds=2,
        iterations=3,
        study="whole",
        quick=True,
        workspace=Workspace(folder),
    )


@pytest.fixture(scope="module")
def heard(request_: AblationRequest) -> Heard:
    """A study from start to end, that many tests look at."""
    listener = Heard()
    assert ablate(request_, listener) == "whole"
    return listener


def rows(request: AblationRequest, study: str = "whole"):
    with Database(request.url) as database:
        return database.ablations(study)


def results(request: AblationRequest, study: str):
    """What a study found, without its name and its cost."""
    table = rows(request, study)
    columns = ["variant", "seed", "architecture", "recipe", "map50_95", "map50", "resampled"]
    return table[columns].to_dict("records")


def checkpoints(request: AblationRequest) -> list[Path]:
    return list((request.workspace.cache / "ablations").glob("*"))


def test_ablate__every_variant_has_every_seed(request_, heard):
    table = rows(request_)
    expected = [(name, seed) for name in NAMES for seed in (0, 1)]
    assert list(zip(table["variant"], table["seed"], strict=True)) == expected
    assert set(table["split"]) == {"validation"}
    assert set(table["weights"]) == {"trained"}
    assert set(table["artifact"]) == {"engine"}
    assert set(table["iterations"]) == {3}
    assert (table["latency_low_ms"] <= table["latency_ms"]).all()
    assert (table["latency_ms"] <= table["latency_high_ms"]).all()
    assert table["parameters"].notna().all()


def test_ablate__equal_networks_are_trained_once(request_, heard):
    assert trained_in(heard) == [
        "baseline, seed 0",
        "hidden=16, seed 0",
        "baseline, seed 1",
        "hidden=16, seed 1",
    ]
    table = rows(request_).set_index(["variant", "seed"])
    for one, other in (("baseline", "loss.box=2.5"), ("hidden=16", "wide")):
        for seed in (0, 1):
            assert table.loc[(one, seed), "resampled"] == table.loc[(other, seed), "resampled"]
    with Database(request_.url) as database, database.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(AccuracyRow)) >= 4


def test_ablate__latency_is_measured_before_the_first_training(request_, heard):
    assert heard.stages == ["Read the data", "Measure the variants", "Train the variants"]
    table = rows(request_)
    assert set(table["latency_source"]) == {"measured"}
    assert table.groupby("architecture")["latency_ms"].nunique().eq(1).all()


def test_ablate__the_seed_changes_the_weights(request_, heard):
    table = rows(request_)
    wide = table[table["variant"] == "hidden=16"]
    assert wide["recipe"].nunique() == 2
    assert wide["resampled"].iloc[0] != wide["resampled"].iloc[1]


def test_ablate__resamples_have_the_interval_that_is_stored_with_the_accuracy(request_, heard):
    table = rows(request_)
    pairs = zip(table["map50_95"], table["resampled"], strict=True)
    bounds = np.array([centred_interval(value, np.array(each)) for value, each in pairs])
    stored = table[["map50_95_low", "map50_95_high"]].to_numpy()
    assert bounds.clip(0, 1) == pytest.approx(stored, abs=1e-12)
    assert np.ptp(stored) > 0


def test_ablate__the_run_is_recorded(request_, heard):
    with Database(request_.url) as database:
        (run, *_) = database.runs("whole")
    assert (run.command, run.status) == ("ablate", "finished")
    assert run.arguments["data_name"] == "digits"
    assert "torch" in run.versions


def test_ablate__again_trains_nothing(request_, heard):
    before = rows(request_)
    again = Heard()
    ablate(request_, again)
    assert "4 of 4 trainings are stored already." in again.lines
    assert "Train the variants" not in again.stages
    assert rows(request_)["created"].tolist() == before["created"].tolist()
    assert not checkpoints(request_)


def stopped(request: AblationRequest, steps: int):
    """Run a study until so many steps are done; return what was stored by then."""
    with pytest.raises(KeyboardInterrupt):
        ablate(request, Heard(interrupt_at=("Train the variants", steps)))
    with Database(request.url) as database:
        assert database.runs(request.study)[0].status == "interrupted"
    return rows(request, request.study)


def test_ablate__stopped_and_continued_equals_uninterrupted(request_, heard):
    request = dataclasses.replace(request_, study="stopped")
    stored = stopped(request, 5)  # in the middle of the second training
    assert stored["variant"].tolist() == ["baseline", "loss.box=2.5"]
    assert len(checkpoints(request)) == 1
    continued = Heard()
    ablate(request, continued)
    assert trained_in(continued) == trained_in(heard)[1:]
    assert results(request, "stopped") == results(request_, "whole")
    assert not checkpoints(request)


@pytest.mark.e2e
def test_ablate__processes_give_the_same_and_may_be_stopped(request_, heard):
    request = dataclasses.replace(request_, study="processes", jobs=2)
    stored = stopped(request, 7)  # when the faster process is in its second training
    continued = Heard()
    ablate(dataclasses.replace(request, jobs=1), continued)
    assert len(trained_in(continued)) == 4 - stored.groupby(["architecture", "seed"]).ngroups
    assert results(request, "processes") == results(request_, "whole")
    assert not checkpoints(request)


def test_ablate__more_variants_and_seeds_may_come_later(request_, heard):
    first = dataclasses.replace(request_, study="grows", seeds=1, changes=Changes.parse(["hidden"]))
    ablate(first, Heard())
    more = dataclasses.replace(first, changes=Changes(extra={"wide": {"hidden": 16}}))
    listener = Heard()
    ablate(more, listener)
    assert trained_in(listener) == []  # the new name is a network that was trained
    table = rows(request_, "grows").set_index("variant")
    assert set(table.index) == {"baseline", "hidden=16", "wide"}
    assert table.loc["wide", "map50_95"] == table.loc["hidden=16", "map50_95"]


def test_ablate__a_name_follows_from_what_is_studied(request_, heard):
    request = dataclasses.replace(request_, study=None, seeds=1, changes=Changes.parse(["hidden"]))
    name = ablate(request, Heard())
    again = Heard()
    assert ablate(request, again) == name
    assert trained_in(again) == []
    assert name.startswith("ablation-")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"iterations": 4}, "share their recipe"),
        ({"precision": "bf16"}, "share their baseline"),
        ({"changes": Changes(extra={"wide": {"hidden": 16, "depth": 2}})}, "'wide'.*another"),
    ],
)
def test_ablate__another_study_of_that_name_is_refused(request_, heard, changed, match):
    before = rows(request_)
    with pytest.raises(StudyError, match=match) as error:
        ablate(dataclasses.replace(request_, **changed), Heard())
    assert "another name" in error.value.remedy
    assert rows(request_)["created"].tolist() == before["created"].tolist()


def test_ablate__another_space_is_refused(request_, heard, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("depth: [1, 2]", "depth: [1, 2, 3]"))
    other = dataclasses.replace(request_, subject=f"{tmp_path}/tiny.yaml:min")
    with pytest.raises(StudyError, match="share their space"):
        ablate(other, Heard())


def test_ablate__the_name_of_a_search_is_refused(request_, heard):
    digests = {"space": "s", "data": "d", "recipe": "r"}
    names = {"command": "search", "hardware": "cpu", "runtime": "openvino"}
    with Database(request_.url) as database:
        database.add_run("a search", **digests, **names, arguments={}, seed=0, versions={})
    with pytest.raises(StudyError, match="is a search"):
        ablate(dataclasses.replace(request_, study="a search"), Heard())


def test_ablate__one_process_at_a_time(request_, heard):
    with (
        Database(request_.url) as database,
        exclusive(database.engine, "study whole"),
        pytest.raises(StudyError, match="Only one process"),
    ):
        ablate(request_, Heard())


def test_ablate__a_variant_that_cannot_be_trained_leaves_the_others(request_, heard):
    request = dataclasses.replace(
        request_,
        study="breaks",
        seeds=1,
        iterations=25,
        changes=Changes(recipe={"loss.box": ["1e39"]}),
    )
    listener = Heard()
    ablate(request, listener)
    assert trained_in(listener) == ["baseline, seed 0"]
    assert any("loss.box=1e+39, seed 0 has no result" in text for text in listener.lines)
    assert rows(request, "breaks")["variant"].tolist() == ["baseline"]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"subject": "digits:midle"}, UnknownNameError),
        ({"hardware": "cqu"}, UnknownNameError),
        ({"runtime": "openvina"}, UnknownNameError),
        ({"changes": Changes()}, InputError),
        ({"iterations": 0}, InputError),
    ],
)
def test_ablate__what_cannot_be_costs_nothing(request_, changed, error):
    listener = Heard()
    with pytest.raises(error):
        ablate(dataclasses.replace(request_, study="wrong", **changed), listener)
    assert "Measure the variants" not in listener.stages


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"jobs": 0}])
def test_request__needs_a_seed_and_a_job(wrong):
    with pytest.raises(InputError, match="at least 1"):
        AblationRequest(subject="digits:middle", **wrong)


def test_ablate__switches_have_a_teacher_and_costs(request_, heard):
    names = ("lookahead", "logit_distillation", "labelled_part", "pseudo_labels")
    request = dataclasses.replace(
        request_, study="switches", seeds=1, changes=Changes(switches=names)
    )
    listener = Heard()
    ablate(request, listener)
    # The one of pseudo-labels has not seen the hidden labels; after three steps it knows nothing.
    assert listener.stages.count("Train the teacher") == 2
    assert any("pseudo_labels, seed 0 has no result" in text for text in listener.lines)
    trained = ["baseline", *names[:3]]
    assert rows(request_, "switches")["variant"].tolist() == trained
    with Database(request.url) as database:
        costs = [
            database.find_report("switches", cost_report(*key))
            for key in rows(request_, "switches")[
                ["architecture", "precision", "recipe"]
            ].itertuples(index=False)
        ]
    assert all(cost is not None and cost["cpu_s_per_step"] > 0 for cost in costs)
    again = Heard()
    with pytest.raises(DatasetError, match="sure of nothing"):
        ablate(request, again)
    assert "Train the teacher" not in again.stages


def test_request__a_recipe_file_changes_the_baseline():
    request = AblationRequest(
        subject="digits:middle", iterations=7, recipe_values={"iterations": 9, "lookahead.steps": 5}
    )
    assert request.recipe().lookahead.steps == 5
    assert request.recipe().iterations == 7
    assert request.arguments()["recipe"] == {"iterations": 9, "lookahead.steps": 5}
