"""Live searches compared: what counts as won, and one small comparison run for real."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny import tiny_space

from nas.model.supernet import Supernet
from nas.searcher.progress import Silent
from nas.searcher.request import Request, Workspace
from nas.searcher.setting import open_setting
from nas.searcher.supernets import supernet_digest
from nas.units import Budget

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPACE = tiny_space(
    "hidden: [8, 16]",
    "depth: [1, 2]",
    name="small",
    p3="block: c2f, hidden: $hidden, depth: $depth",
)


@pytest.fixture(scope="module")
def live() -> Iterator[Any]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import live as module

        yield module
    for name in set(sys.modules) - before:
        if name in {"live", "record"}:
            del sys.modules[name]


def test_compared__seed_by_seed(live: Any) -> None:
    best = {"autonac": [0.6, 0.7, 0.5], "random": [0.5, 0.7, 0.6], "tpe": [0.1, 0.2, 0.3]}
    table = pd.DataFrame(
        [
            {"sampler": name, "seed": seed, "best_map50_95": value, "hypervolume": 2 * value}
            for name, values in best.items()
            for seed, value in enumerate(values)
        ]
    ).sample(frac=1, random_state=0)
    of_random = table["sampler"] == "random"
    table.loc[of_random, "most_macs_map50_95"] = 0.55
    table.loc[of_random, "slowest_map50_95"] = 0.3

    found = live.compared(table)

    assert found["mean"]["best_map50_95"]["tpe"] == pytest.approx(0.2)
    against = found["ours_against"]
    assert against["random"]["best_map50_95"] == {
        "mean_gain": pytest.approx(0.0),
        "seeds": 3,
        "won": 1,
        "equal": 1,
    }
    assert against["tpe"]["hypervolume"]["won"] == 3
    assert against["most_macs_map50_95"]["best_map50_95"]["won"] == 2
    assert against["slowest_map50_95"]["best_map50_95"]["mean_gain"] == pytest.approx(0.3)


def test_of_all__null_models_and_order(live: Any) -> None:
    candidates = pd.DataFrame(
        {"macs": [1, 2, 3], "latency_ms": [3.0, 2.0, 1.0], "map50_95": [0.1, 0.3, 0.2]}
    )
    found = live.of_all(candidates)
    assert found["best_map50_95"] == 0.3
    assert found["most_macs_map50_95"] == 0.2
    assert found["slowest_map50_95"] == 0.1
    assert found["tau_macs"] == pytest.approx(1 / 3)
    assert found["tau_latency"] == pytest.approx(-1 / 3)


def _untrained(request: Request) -> None:
    with open_setting(request, Silent()) as setting:
        digest = supernet_digest(setting.space, setting.dataset, request.recipe())
        path = request.workspace.supernet(digest)
        path.parent.mkdir(parents=True)
        Supernet(setting.space.covering(setting.classes)).save(path)


def test_main__runs_what_is_missing_and_writes_figures(
    live: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import record

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    space, root = tmp_path / "small.yaml", tmp_path / "studies"
    space.write_text(SPACE)
    _untrained(
        Request(budget=Budget(50.0), space=str(space), quick=True, workspace=Workspace(root))
    )
    command = ["--budget", "50ms", "--quick", "--evaluations", "2", "--seeds", "1"]
    command += ["--space", str(space), "--workspace", str(root)]

    for _ in range(2):  # the second time nothing is missing
        live.main([*command, "--samplers", "autonac", "random"])

    result = json.loads((tmp_path / "live.json").read_text())
    assert [run["sampler"] for run in result["runs"]] == ["autonac", "random"]
    assert all(run["evaluations"] == 2 for run in result["runs"])
    for run in result["runs"]:
        grown = [one["best_map50_95"] for one in run["earlier"]] + [run["best_map50_95"]]
        assert grown == sorted(grown)
    assert result["summary"]["ours_against"]["random"]["hypervolume"]["seeds"] == 1
    assert result["summary"]["all_candidates"]["candidates"] >= 2
