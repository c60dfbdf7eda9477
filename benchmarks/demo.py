"""The demo search against random search, at an equal number of accuracy evaluations.

One supernet, one database of latencies and accuracies: a candidate that both searches propose has
the same values in both, so only the choice of candidates differs. Beside them stand the null models
that need no search: among the random candidates that keep the budget, the one with the most MACs
and the slowest one.

Run it as `python benchmarks/demo.py`; it writes `benchmarks/results/demo.json`.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from record import write_result
from rich.console import Console

from nas.results.console import LiveProgress
from nas.searcher.loop import search
from nas.searcher.progress import Listener
from nas.searcher.request import Request, Workspace
from nas.searcher.result import StudyResult
from nas.searcher.setting import open_setting
from nas.units import Budget


def main() -> None:
    """Run all searches and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="0.4ms")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--workspace", type=Path, default=Path("studies/benchmark"))
    arguments = parser.parse_args()
    console = Console()
    searches = itertools.product(range(arguments.seeds), (arguments.sampler, "random"))
    with LiveProgress(console) as progress:
        rows = [_run(arguments, sampler, seed, progress) for seed, sampler in searches]
    table = pd.DataFrame(rows)
    console.print(table.to_string(index=False))
    path = write_result(
        "demo", {"arguments": _plain(vars(arguments)), "runs": rows, "summary": _summary(table)}
    )
    console.print(f"Written to {path}")


def _run(
    arguments: argparse.Namespace, sampler: str, seed: int, listener: Listener
) -> dict[str, Any]:
    request = Request(
        budget=Budget.parse(arguments.budget),
        sampler=sampler,
        evaluations=arguments.evaluations,
        study=f"{sampler}-{arguments.budget}-{arguments.evaluations}-seed{seed}",
        workspace=Workspace(arguments.workspace),
    )
    # The seed belongs to the sampler alone: the supernet is shared by all runs.
    with open_setting(request, listener) as setting:
        result = search(setting, listener, sampler_seed=seed)
    scored, table = result.scored, result.evaluations
    return {
        "sampler": sampler,
        "seed": seed,
        "evaluations": len(scored),
        "asked": len(table),
        "over_budget": int((table["state"] == "infeasible").sum()),
        "repeated": int((table["state"] == "duplicate").sum()),
        "hypervolume": result.hypervolume,
        "best_map50_95": float(scored["map50_95"].max()),
        "best_latency_ms": float(scored.loc[scored["map50_95"].idxmax(), "latency_ms"]),
        **(_null_models(result) if sampler == "random" else {}),
    }


def _null_models(result: StudyResult) -> dict[str, Any]:
    scored = result.scored
    return {
        "most_macs_map50_95": float(scored.loc[scored["macs"].idxmax(), "map50_95"]),
        "slowest_map50_95": float(scored.loc[scored["latency_ms"].idxmax(), "map50_95"]),
        "tau_macs": float(scored["macs"].corr(scored["map50_95"], method="kendall")),
        "tau_latency": float(scored["latency_ms"].corr(scored["map50_95"], method="kendall")),
    }


def _summary(table: pd.DataFrame) -> dict[str, Any]:
    values = ["hypervolume", "best_map50_95"]
    means = table.groupby("sampler")[values].mean()
    ours = table[table["sampler"] != "random"].sort_values("seed")[values].to_numpy()
    random = table[table["sampler"] == "random"].sort_values("seed")[values].to_numpy()
    return {
        "mean": means.to_dict("index"),
        "mean_gain": dict(zip(values, np.mean(ours - random, axis=0).tolist(), strict=True)),
        "seeds_not_lost": dict(zip(values, np.sum(ours >= random, axis=0).tolist(), strict=True)),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


if __name__ == "__main__":
    main()
