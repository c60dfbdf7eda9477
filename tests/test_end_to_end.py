"""Whole searches on real data, real engines and real databases, at the smallest useful size."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from tiny import tiny_space

import nas
from nas.api import export, front, measure_study, stored_request, train
from nas.errors import BudgetError, EngineError, MeasurementError, StudyError
from nas.searcher.progress import Silent
from nas.searcher.trust_job import Effort
from nas.space.architecture import Architecture

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[1] / "README.md"
TINY = tiny_space(
    "input: [64, 96]",
    "hidden: [8, 16]",
    "depth: [1, 2]",
    "attention: [null, {kind: sparse, tokens: 8}]",
    size="$input",
    p3="block: qarepvgg_csp, hidden: $hidden, depth: $depth",
    attention="{P4: $attention}",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="module")
def found(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> nas.Found:
    """One search that many tests look at; its budget is far above every candidate."""
    workspace = tmp_path_factory.mktemp("studies")
    return nas.search("50ms", space=tiny, evaluations=4, quick=True, workspace=workspace)


def test_search__front_has_every_column_that_is_promised(found: nas.Found) -> None:
    table = found.front
    assert not table.empty
    for column in ("map50_95", "map50", "parameters", "macs", "precision", "latency_source"):
        assert table[column].notna().all()
    assert (table["latency_low_ms"] <= table["latency_ms"]).all()
    assert (table["latency_ms"] <= table["latency_high_ms"]).all()


def test_search__scores_each_candidate_once(found: nas.Found) -> None:
    complete = found.result.evaluations.query("state == 'complete'")
    assert len(complete) >= 4
    assert not complete.duplicated(["architecture", "precision"]).any()


def test_bundle__architecture_loads_back_to_the_same_network(found: nas.Found) -> None:
    path = found.folder / "architecture.yaml"
    facts = yaml.safe_load(path.read_text())
    assert Architecture.load(path).digest == facts["digest"]
    assert facts["latency"]["source"] == "measured"
    assert {one["split"] for one in facts["accuracy"]} == {"validation", "test"}
    assert facts["provenance"]["seed"] == 0
    assert len(facts["provenance"]["data"]["digest"]) >= 16


def test_search__says_whether_its_ranking_holds(found: nas.Found) -> None:
    report = found.result.trust
    assert report is not None
    assert (report["form"], report["seeds"], report["landmarks"]) == ("short", 1, 8)
    text = report["verdict"]["text"]
    assert "Short check" in text
    assert text in (found.folder / "card.md").read_text()
    facts = yaml.safe_load((found.folder / "architecture.yaml").read_text())
    assert facts["ranking"] == report["verdict"]
    assert (found.folder / "trust.html").exists()
    again = front(stored_request(found.study, None, found.folder.parent))
    assert again.trust == report


def test_trust__goes_on_from_what_a_search_trained(found: nas.Found) -> None:
    request = stored_request(found.study, None, found.folder.parent)
    report = found.result.trust
    assert report is not None
    effort = Effort(landmarks=8, seeds=1, iterations=report["iterations"], jobs=1)
    assert nas.trust(request, effort).as_dict() == report


def test_bundle__onnx_keeps_its_contract(found: nas.Found) -> None:
    model = onnx.load(found.folder / "model.onnx")
    onnx.checker.check_model(model)
    assert [one.name for one in model.graph.input] == ["images"]
    assert [one.name for one in model.graph.output] == ["boxes", "scores"]
    assert model.opset_import[0].version == 19


def test_bundle__card_says_interval_split_and_environment(found: nas.Found) -> None:
    text = (found.folder / "card.md").read_text()
    for words in ("95 % interval", "mAP50-95, test", "openvino", "digits", "float32 (1, 3"):
        assert words in text


def test_search__int8_delivers_the_graph_that_was_measured_and_scored(tmp_path: Path) -> None:
    space = tmp_path / "tiny.yaml"
    space.write_text(TINY.replace("architecture:\n", "precision: int8\narchitecture:\n"))
    found = nas.search(
        "50ms", space=str(space), evaluations=1, quick=True, trust=False, workspace=tmp_path
    )
    assert set(found.front["precision"]) == {"int8"}
    model = onnx.load(found.folder / "model.onnx")
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    facts = yaml.safe_load((found.folder / "architecture.yaml").read_text())
    assert all(one["agreement"]["images"] > 0 for one in facts["accuracy"])
    assert (found.front["compared_with"] == "torch fp32").all()
    latency = nas.measure(found.folder / "model.onnx", precision="int8").latency
    assert latency.environment.precision == "int8"
    with pytest.raises(EngineError, match="fp32"):
        nas.measure(found.folder / "model.onnx", precision="fp32")


def test_measure__the_delivered_graph_again(found: nas.Found) -> None:
    again = nas.measure(found.folder / "model.onnx").latency
    delivered = found.delivered.bundle.latency
    # The reference is calibrated anew, so this is a loose check of the scale.
    assert again.ms == pytest.approx(delivered.ms, rel=1)
    assert again.source == "measured"


def test_stored__front_is_read_back(found: nas.Found) -> None:
    workspace = found.folder.parent
    result = front(stored_request(found.study, None, workspace))
    assert result.front["trial"].tolist() == found.front["trial"].tolist()


def test_export__another_trial(found: nas.Found) -> None:
    trial = int(found.front["trial"].iloc[-1])
    request = stored_request(found.study, None, found.folder.parent)
    delivered = export(request, Silent(), trial)
    assert delivered.trial == trial
    assert (delivered.folder / "model.onnx").exists()
    with pytest.raises(StudyError, match="Trial 999"):
        export(request, Silent(), 999)


def test_resume__repeats_nothing_and_goes_on(found: nas.Found) -> None:
    workspace = found.folder.parent
    before = found.result.evaluations
    more = nas.resume(found.study, evaluations=6, trust=False, workspace=workspace)
    after = more.result.evaluations
    assert after["trial"].tolist()[: len(before)] == before["trial"].tolist()
    assert (after["state"] == "complete").sum() == 6
    complete = after.query("state == 'complete'")
    assert not complete.duplicated(["architecture", "precision"]).any()


def test_study__another_space_is_refused_with_both_digests(found: nas.Found) -> None:
    with pytest.raises(StudyError, match=r"space.*has '[0-9a-f]{16}', and .* '[0-9a-f]{16}'"):
        nas.search(
            "50ms", quick=True, trust=False, workspace=found.folder.parent, study=found.study
        )


def test_budget__that_nothing_meets_names_one_that_would_work(found: nas.Found, tiny: str) -> None:
    with pytest.raises(BudgetError, match=r"fastest of .* takes [\d.]+ ms") as caught:
        nas.search("0.001ms", space=tiny, quick=True, trust=False, workspace=found.folder.parent)
    assert re.search(r"smallest budget that would work is about [\d.]+ms", caught.value.remedy)


def test_budget__infeasible_candidates_cost_no_accuracy(found: nas.Found, tiny: str) -> None:
    latencies = np.sort(found.result.evaluations["latency_ms"].dropna().unique())
    budget = f"{(latencies[0] + latencies[-1]) / 2:.4f}ms"
    tight = nas.search(
        budget, space=tiny, evaluations=3, quick=True, trust=False, workspace=found.folder.parent
    )
    late = tight.result.evaluations.query("state == 'infeasible'")
    assert not late.empty
    assert late["map50_95"].isna().all()
    assert (tight.front["latency_ms"] <= tight.result.budget.latency_ms).all()


def test_train__an_architecture_on_its_own(found: nas.Found, tmp_path: Path) -> None:
    path = found.folder / "architecture.yaml"
    delivered = train(path, iterations=20, quick=True, workspace=tmp_path)
    assert delivered.trial is None
    assert {one.weights for one in delivered.bundle.accuracies} == {"trained"}
    assert {one.split for one in delivered.bundle.accuracies} == {"validation", "test"}
    assert Architecture.load(delivered.folder / "architecture.yaml") == Architecture.load(path)


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_search__users_data(
    make_shapes: Callable[..., Path], tiny: str, tmp_path: Path, layout: str
) -> None:
    data = make_shapes(tmp_path / "data", layout)
    searched = nas.search(
        "50ms",
        data=str(data),
        space=tiny,
        evaluations=2,
        quick=True,
        trust=False,
        workspace=tmp_path / "s",
    )
    assert len(searched.delivered.bundle.provenance.classes) == 3
    assert (searched.folder / "card.md").exists()


def test_readme__python_example_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    assert "map50_95" in capsys.readouterr().out


def test_search__killed_and_resumed(tiny: str, tmp_path: Path, found: nas.Found) -> None:
    shutil.copytree(found.folder.parent / "cache", tmp_path / "cache")  # the supernet is trained
    command = [
        *(
            sys.executable,
            "-m",
            "nas",
            "search",
            "--quick",
            "--no-trust",
            "--budget",
            "50ms",
            "--space",
            tiny,
        ),
        *("--evaluations", "6", "--study", "killed", "--workspace", str(tmp_path)),
    ]
    database = tmp_path / "nas.db"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _wait_until(lambda: _complete(database) >= 2, process)
        process.send_signal(signal.SIGKILL)
    stored = _complete(database)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _complete(database) == 6
    assert stored >= 2
    with sqlite3.connect(database) as connection:
        query = "SELECT count(*) - count(DISTINCT architecture) FROM nas_accuracies"
        repeats = connection.execute(query + " WHERE weights = 'inherited'").fetchone()
        running = connection.execute("SELECT count(*) FROM trials WHERE state = 'RUNNING'")
        assert repeats == (0,)
        assert running.fetchone() == (0,)


def _complete(database: Path) -> int:
    if not database.exists():
        return 0
    with sqlite3.connect(database, timeout=30) as connection:
        try:
            query = "SELECT count(*) FROM nas_evaluations WHERE state = 'complete'"
            return int(connection.execute(query).fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # the tables are not there yet


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, "the search ended before it was killed"
        time.sleep(0.1)
    raise AssertionError("the search did not come far enough within ten minutes")


def test_search__far_from_the_device_is_estimated_to_the_last_figure(
    tiny: str, tmp_path: Path
) -> None:
    """No such board is here: every latency says that it is estimated, and nothing claims more."""
    found = nas.search(
        "50ms",
        hardware="xavier-nx",
        space=tiny,
        quick=True,
        trust=False,
        evaluations=3,
        sampler="random",
        workspace=tmp_path,
    )
    table = found.result.evaluations
    assert set(table["latency_source"].dropna()) == {"estimated"}
    assert set(table["precision"]) == {"fp16"}
    assert set(table["artifact"].dropna()) == {"graph"}
    latency = found.delivered.bundle.latency
    assert (latency.source, latency.level) == ("estimated", 0.8)
    assert "NOT MEASURED" in (found.folder / "card.md").read_text()
    with pytest.raises(MeasurementError, match="not attached"):
        measure_study(stored_request(found.study, None, tmp_path))
