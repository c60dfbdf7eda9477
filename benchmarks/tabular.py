"""How many accuracy evaluations does a search need? Replayed on tables that others measured.

Every query of a network's accuracy costs one; latency, which is cheap to measure, is free, so no
network over the budget is ever queried. All strategies search the same networks with the same
number of queries, and a network that is asked for again is answered from memory and costs nothing.

Tables: YOLOBench ships with the project. NAS-Bench-201 does not: give a file with `--nb201`
(`replay/tables.py` says which columns; parquet needs `pip install pyarrow`).

Nothing was tuned on what is reported, but for the two tables marked so: NAS-Bench-201 with Pi 4
and YOLOBench VOC with OpenVINO.

Optuna's samplers may propose what the table lacks, what is over the budget and what was queried.
That costs no query, and they are told of it as an infeasible trial (a repetition: as a trial with
its values); after 100 such proposals in a row (`GPSampler`: 10) a random network is queried.

Ours is `AutoNACSampler` in a study of Optuna, as users get it, told all latencies. What the table
lacks it may not propose.

A front is searched in two ways. Random search, Optuna's samplers and ours are told no budget.
Evolution, local search and the null models are a search for each of the 8 budgets, in turns, so
there is a second form of ours, one search that is told the 8 budgets. It was added after the
figure of the first on A40 was known, and tried on OpenVINO before it was run on the others. The
same runs are judged at budgets between the 8, too: a ladder that happens to have rungs at the 8
would look good at them alone.

Run it as `python benchmarks/tabular.py --nb201 FILE`; `--quick` takes a minute. It writes
`benchmarks/results/tabular.json`, `.md`, and two `.html` with curves. What is finished is kept in
`benchmarks/.tabular`, and a run that was ended goes on from there; runs of code that has changed
since are not used.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import RESULTS, write_result
from replay.catalog import (
    NULL_MODELS,
    baselines,
    nb201_groups,
    null_models,
    optuna_gp,
    optuna_methods,
    ours,
    ours_for_budgets,
    yolobench_groups,
)
from replay.report import draw, figures, goals, markdown, p_values, searches
from replay.runs import Group, Method, Plan, Sample
from replay.tables import nas_bench_201, yolobench
from rich.console import Console

from nas.latency.clock import Elapsed

KEPT = Path(__file__).with_name(".tabular")
# The tables of the goals; the others have fewer searches by the samplers that cost most.
NAMED = (
    "nb201_cifar10/any/best",
    "nb201_cifar10/any/noise",
    "nb201_cifar10/tx2_tensorrt/median",
    "yolobench_voc/a40_tensorrt/budget",
    "yolobench_voc/a40_tensorrt/front",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the figures."""
    asked = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes that are started
    console, elapsed = Console(width=200), Elapsed()
    found = [group for group in _groups(asked) if re.search(asked.only, group.name)]
    groups = tuple(sorted(found, key=lambda group: group.name not in NAMED))
    methods = {group.name: _methods(group, asked) for group in groups}
    _ignored_by_git(asked.kept)
    plan = Plan(groups, methods, asked.kept)
    total = sum(method.seeds for found in methods.values() for method in found)
    samples: list[Sample] = []
    for sample in plan.repeat(asked.processes):
        samples.append(sample)
        if len(samples) % max(1, total // 100) == 0:
            console.print(f"{len(samples)} of {total} searches after {elapsed.wall_s:.0f} s")
    result = figures(groups, samples)
    _write(console, asked, result, samples)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nb201", type=Path, help="NAS-Bench-201 as CSV or parquet")
    parser.add_argument("--quick", action="store_true", help="2 seeds of some tables, without GP")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--only", default="", help="groups whose name this pattern finds")
    parser.add_argument("--no-gp", action="store_true", help="leave Optuna's GPSampler out")
    parser.add_argument("--method", default="", help="methods whose name this pattern finds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of finished searches")
    parser.add_argument("--name", default="tabular", help="of the files in benchmarks/results")
    return parser


def _groups(asked: argparse.Namespace) -> list[Group]:
    voc, coco = yolobench("voc"), yolobench("coco")
    if asked.quick:
        tables = yolobench_groups(voc, coco, queries=20, front=30)[:2]
        return tables + (nb201_groups(nas_bench_201(asked.nb201), 40)[:2] if asked.nb201 else [])
    nb201 = nb201_groups(nas_bench_201(asked.nb201)) if asked.nb201 else []
    return nb201 + yolobench_groups(voc, coco)


def _methods(group: Group, asked: argparse.Namespace) -> tuple[Method, ...]:
    named = group.name in NAMED
    seeds = 2 if asked.quick else asked.seeds
    some = min(seeds, 20 if named else 10)
    found = [ours(seeds, most=120), *baselines(seeds), *optuna_methods(some)]
    # Without a device no network is the slowest.
    found += [one for one in null_models() if group.tasks[0].device or one.name != NULL_MODELS[0]]
    if group.tasks[0].front:
        found.append(ours_for_budgets(seeds, most=120))
    if named and not (asked.no_gp or asked.quick):
        found.append(optuna_gp(10, most=60))
    return tuple(method for method in found if re.search(asked.method, method.name))


def _ignored_by_git(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")


def _write(
    console: Console, asked: argparse.Namespace, result: dict[str, Any], samples: list[Sample]
) -> None:
    text, reached = markdown(result), [] if asked.quick else goals(result)
    gp = [run.cpu_s for one in samples if one.method == "optuna_gp" for run in one.runs]
    cpu = sum(run.cpu_s for one in samples for run in one.runs)
    cost = {"cpu_s_without_gp": round(cpu - sum(gp), 1), "cpu_s_gp": round(sum(gp), 1)}
    path = write_result(asked.name, {"cost": cost, "goals": reached, "groups": result})
    parts = [text, searches(result), "Mann-Whitney p against ours, two-sided:", p_values(result)]
    (RESULTS / f"{asked.name}.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
    for what in ("regret", "hypervolume"):
        page = RESULTS / f"{asked.name}_{what}.html"
        draw(result, what).write_html(page, include_plotlyjs="cdn")
    console.print(text, markup=False)
    for goal in reached:
        console.print(goal, markup=False)
    console.print(cost)
    console.print(f"Written to {path} and beside it")


if __name__ == "__main__":
    main()
