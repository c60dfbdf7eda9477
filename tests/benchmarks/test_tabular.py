"""Searches replayed on tables: what may be queried, what it costs, and how it is judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
METHODS = (
    "autonac",
    "autonac_budgets",
    "random",
    "evolution",
    "local_search",
    "optuna_tpe",
    "optuna_nsga2",
    "optuna_gp",
    "slowest_first",
    "most_macs_first",
)


@pytest.fixture(scope="module")
def replay() -> Iterator[Any]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        from replay import catalog, report, runs, scores, strategies, tables, tasks

        parts = (catalog, report, runs, scores, strategies, tables, tasks)
        yield SimpleNamespace(**{part.__name__.rpartition(".")[2]: part for part in parts})
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"replay", "tabular", "record", "yolobench"}:
            del sys.modules[name]


@pytest.fixture(scope="module")
def voc(replay: Any) -> Any:
    return replay.tables.yolobench("voc")


@pytest.fixture
def small(replay: Any) -> Any:
    """Six networks: accuracy grows with latency, but for one slow and bad one."""
    choices = (
        replay.tables.Choice("family", ("a", "b"), ordered=False),
        replay.tables.Choice("width", (1.0, 2.0, 4.0), ordered=True),
    )
    codes = np.array([[family, width] for family in range(2) for width in range(3)])
    accuracy = np.array([10.0, 20.0, 30.0, 12.0, 25.0, 5.0])
    latency = {"gpu": np.array([1.0, 2.0, 4.0, 1.5, 3.0, 6.0])}
    return replay.tables.Table("small", choices, codes, accuracy, latency, codes[:, 1] + 1.0)


def _methods(replay: Any) -> dict[str, Any]:
    catalog = replay.catalog
    found = [*catalog.baselines(2), *catalog.null_models(), *catalog.optuna_methods(2)]
    found += [
        catalog.ours(2, 40),
        catalog.ours_for_budgets(2, 40),
        catalog.optuna_gp(1, 8),
    ]
    return {method.name: method for method in found}


def _budget(replay: Any, table: Any, place: int, queries: int) -> Any:
    return replay.tasks.one_budget_each(table, "a40_tensorrt", queries)[place]


def test_yolobench__is_read_whole(voc: Any) -> None:
    assert [choice.name for choice in voc.choices] == ["family", "depth", "width", "input"]
    assert len(voc.rows) == len(voc.accuracy) == 572
    assert set(voc.latency_ms) == {"a40_tensorrt", "jetson_nano", "openvino", "pi4_tflite"}
    assert 40 < voc.accuracy.min() < voc.accuracy.max() < 75
    assert (voc.macs > 0).all()


def test_nas_bench_201__is_read_from_csv(replay: Any, tmp_path: Path) -> None:
    columns = "arch_str,cifar10_test_acc_200ep,help_1080ti_1_ms,help_raspi4_ms,"
    columns += "eagle_i7_7820x_fp32_ms,oneproxy_hwnb_edgegpu_jetsontx2_trt_ms"
    one = "|none~0|+|nor_conv_3x3~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|none~2|"
    two = one.replace("avg_pool_3x3", "nor_conv_3x3")
    path = tmp_path / "table.csv"
    path.write_text(f"{columns}\n{one},90.5,1,2,3,\n{two},91.5,1.5,2.5,3.5,4.5\n")

    table = replay.tables.nas_bench_201(path)

    names = [[table.choices[i].options[code] for i, code in enumerate(row)] for row in table.codes]
    assert names[0][:3] == ["none", "nor_conv_3x3", "skip_connect"]
    assert names[1][4] == "nor_conv_3x3"
    assert table.accuracy.tolist() == [90.5, 91.5]
    assert table.macs.tolist() == [10.0, 19.0]
    task = replay.tasks.median_budget(table, "tx2_tensorrt", 5)
    assert task.pool.n_allowed == 1  # nobody measured the other


def test_neighbours__are_within_the_budget_and_one_choice_away(replay: Any, voc: Any) -> None:
    pool = _budget(replay, voc, 4, 20).pool
    for row in pool.allowed[::40]:
        for other in pool.neighbours(int(row)):
            assert pool.latency_ms[other] <= pool.budget_ms
            assert np.count_nonzero(pool.codes[other] != pool.codes[row]) == 1


@pytest.mark.parametrize("name", METHODS)
def test_method__queries_new_networks_within_the_budget(replay: Any, voc: Any, name: str) -> None:
    task, method = _budget(replay, voc, 2, 24), _methods(replay)[name]

    run, again = (
        replay.runs.replay(task, method.make(task.pool, 3), 3, method.most) for _ in range(2)
    )

    assert len(run.rows) == len(set(run.rows)) <= min(24, method.most)
    assert (task.pool.latency_ms[run.rows] <= task.pool.budget_ms).all()
    assert run.rows == again.rows
    if len(run.rows) < min(24, method.most):  # it may end early for one reason only
        assert task.regret(run.rows)[-1] == 0


@pytest.mark.parametrize("name", METHODS)
def test_method__searches_a_front(replay: Any, voc: Any, name: str) -> None:
    task, method = replay.tasks.whole_front(voc, "a40_tensorrt", 24), _methods(replay)[name]

    run = replay.runs.replay(task, method.make(task.pool, 3), 3, method.most)

    assert len(run.rows) == len(set(run.rows)) == min(24, method.most)
    assert (np.diff(task.regret(run.rows)) <= 1e-12).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "optuna_gp"])
def test_method__queries_all_of_a_small_table(replay: Any, small: Any, name: str) -> None:
    task = replay.tasks.whole_front(small, "gpu", 50)

    run = replay.runs.replay(task, _methods(replay)[name].make(task.pool, 0), 0)

    assert sorted(run.rows) == list(range(6))
    assert task.regret(run.rows)[-1] == pytest.approx(0)


def test_slowest_first__is_the_null_model_of_the_issue(replay: Any, voc: Any) -> None:
    tasks = replay.tasks.one_budget_each(voc, "a40_tensorrt", 1)
    regrets = []
    for task in tasks:
        run = replay.runs.replay(task, replay.strategies.slowest(task.pool, 0), 0)
        allowed = task.pool.latency_ms[task.pool.allowed]
        assert task.pool.latency_ms[run.rows[0]] == allowed.max()
        regrets.append(task.regret(run.rows)[0])
    assert np.mean(regrets) == pytest.approx(6.3, abs=0.05)


def test_regret__counts_the_worst_network_until_one_is_within(replay: Any, small: Any) -> None:
    task = replay.tasks.Task("t", small, "gpu", (2.0, 4.0), True, 0.0, 6)
    assert task.optima.tolist() == [20.0, 30.0]
    # Row 2 (30 points, 4 ms) solves the second budget and says nothing of the first, whose worst
    # is 10; row 5 is over both.
    assert task.regret([5, 2, 3, 1]).tolist() == [15.0, 5.0, 4.0, 0.0]


def test_volume__of_the_whole_table_is_one(replay: Any, small: Any) -> None:
    task = replay.tasks.whole_front(small, "gpu", 6)
    volume = task.volume([5, 0, 1, 2, 3, 4])
    assert volume[0] == 0
    assert (np.diff(volume) >= 0).all()
    assert volume[-1] == pytest.approx(1)


def test_noise__picks_are_judged_by_their_true_accuracy(replay: Any, voc: Any) -> None:
    task = replay.tasks.unconstrained(voc, 30, noise=2.0)
    group, method = replay.runs.Group(task.name, (task,)), _methods(replay)["random"]

    run = replay.runs.replay(task, method.make(task.pool, 1), 1)
    sample = replay.runs.Sample(group.name, method.name, 1, 30, (run,))
    curve = replay.scores.curves(group, [sample])[0]

    assert list(run.picks) == [10, 20, 30]
    assert np.flatnonzero(~np.isnan(curve)).tolist() == [9, 19, 29]
    assert curve[29] == voc.accuracy.max() - voc.accuracy[run.picks[30]]
    # With so much noise the best of 30 answers is hardly ever the best network of the 30.
    assert curve[29] >= task.regret(run.rows)[-1]


def test_queries_until__of_three_searches(replay: Any) -> None:
    regret = np.array([[3.0, 0.05, 0.0], [2.0, 1.0, 0.1], [5.0, 4.0, 3.0]])
    assert replay.scores.queries_until(regret, 0.1).tolist() == [2, 3, np.inf]
    found = replay.scores.summary(regret, (1, 3))
    assert found["queries_until"]["near"] == {"median": 3, "p90": None, "reached": 2}
    assert found["queries_until"]["optimum"] == {"median": None, "p90": None, "reached": 1}
    assert found["regret_after"]["1"]["median"] == 3.0
    assert replay.scores.mean_reaches(regret, 2.0) == 2
    assert replay.scores.mean_reaches(regret, 0.5) is None


def test_probability__tells_apart_what_differs(replay: Any) -> None:
    few, many = np.arange(10.0), np.arange(10.0) + 100
    many[-1] = np.inf
    assert replay.scores.probability(few, many) < 1e-3
    assert replay.scores.probability(few, few) > 0.9


def test_p__is_of_as_many_queries_for_both(replay: Any) -> None:
    ours = np.tile(np.linspace(1, 0, 10), (8, 1))  # finds the optimum with its tenth query
    theirs = ours[:, :5]  # the same search, cut short
    found = replay.report._against(ours, theirs, "best")
    assert found == {"queries_until_near": 1.0, "queries_until_optimum": 1.0}


def test_plan__goes_on_where_it_ended(replay: Any, voc: Any, tmp_path: Path) -> None:
    task = _budget(replay, voc, 0, 5)
    group, made = replay.runs.Group("a/b/c", (task,)), []

    def make(pool: Any, seed: int) -> Any:
        made.append(seed)
        return replay.strategies.RandomSearch(pool, seed)

    def samples(seeds: int, code: Path) -> list[Any]:
        method = replay.runs.Method("random", make, seeds, (code,))
        plan = replay.runs.Plan((group,), {"a/b/c": (method,)}, tmp_path / "kept")
        return list(plan.repeat(1))

    (tmp_path / "old.py").write_text("old")
    (tmp_path / "new.py").write_text("new")
    first = samples(2, tmp_path / "old.py")
    assert samples(3, tmp_path / "old.py")[:2] == first
    assert made == [0, 1000, 2000]
    assert samples(1, tmp_path / "new.py")[0].runs[0].rows == first[0].runs[0].rows
    assert made == [0, 1000, 2000, 0]  # runs of other code are not used


def test_main__writes_figures_table_and_curves(
    replay: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import record
    import tabular

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(tabular, "RESULTS", tmp_path)
    command = ["--quick", "--processes", "1", "--kept", str(tmp_path / "kept")]

    tabular.main([*command, "--method", "autonac$|random|slowest"])

    result = json.loads((tmp_path / "tabular.json").read_text())
    group = result["groups"]["yolobench_voc/a40_tensorrt/budget"]
    assert group["methods"]["autonac"]["searches"] == 2
    assert 0 < group["methods"]["random"]["p_against_ours"]["regret_after_20"] <= 1
    ours = group["methods"]["autonac"]["regret_after"]["20"]["mean"]
    assert ours < group["methods"]["random"]["regret_after"]["20"]["mean"]
    front = result["groups"]["yolobench_voc/a40_tensorrt/front"]["methods"]["autonac"]
    assert 0 < front["hypervolume"]["mean"][0] < front["hypervolume"]["mean"][-1] <= 1
    table = (tmp_path / "tabular.md").read_text().splitlines()
    assert table[0] == "| table, device | measure | ours | random | slowest first |"
    rows = table[: table.index("")]
    assert len({line.count("|") for line in rows}) == 1
    assert len(rows) == 2 + 2 + 2
    assert (tmp_path / "kept" / ".gitignore").read_text() == "*\n"
    assert "plotly" in (tmp_path / "tabular_regret.html").read_text()
