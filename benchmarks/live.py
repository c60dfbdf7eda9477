"""Our sampler against others in real searches, at an equal number of accuracy evaluations.

All searches share one supernet and one database of latencies and accuracies: a candidate that two
of them propose has the same accuracy in both and costs one evaluation, so only the choice of
candidates differs. Beside them stand the null models that need no search: of the candidates under
the budget that random search drew, the one with the most MACs and the slowest one.

Best mAP and hypervolume are of the validation split that the searches saw: they say what a search
found there, and a difference within the interval of one accuracy may be none on other images.

Run it as `python benchmarks/live.py`; it writes `benchmarks/results/live.json`. A run that was
ended goes on from there: started again, it finishes the studies in the workspace.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
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

OURS, RANDOM = "autonac", "random"
SAMPLERS = (OURS, RANDOM, "nsga2", "tpe")
MEASURES = ("best_map50_95", "hypervolume")
QUARTERS = (0.25, 0.5, 0.75)  # of the evaluations; a search should be ahead early, too
NULL_MODELS = ("most_macs_map50_95", "slowest_map50_95")
# Hypervolumes of equal fronts differ by rounding.
_EQUAL = 1e-9


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the figures."""
    asked = _parser().parse_args(arguments)
    console, rows, found = Console(width=160), [], []
    with LiveProgress(console) as progress:
        for seed in range(asked.seeds):
            for sampler in asked.samplers:
                result = _searched(asked, sampler, seed, progress)
                rows.append(row_of(result, sampler, seed))
                found.append(result.scored)
    table = pd.DataFrame(rows)
    everything = pd.concat(found, ignore_index=True)
    everything = everything.drop_duplicates(["architecture", "precision"])
    summary = {**compared(table), "all_candidates": of_all(everything)}
    console.print(table.drop(columns="earlier").to_string(index=False), markup=False)
    console.print(summary)
    given = {name: str(v) if isinstance(v, Path) else v for name, v in vars(asked).items()}
    path = write_result("live", {"arguments": given, "runs": rows, "summary": summary})
    console.print(f"Written to {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--budget", default="0.4ms")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--space", default="digits")
    parser.add_argument("--quick", action="store_true", help="a small recipe: nothing is compared")
    parser.add_argument("--workspace", type=Path, default=Path("studies/benchmark"))
    return parser


def _searched(
    asked: argparse.Namespace, sampler: str, seed: int, listener: Listener
) -> StudyResult:
    request = Request(
        budget=Budget.parse(asked.budget),
        space=asked.space,
        sampler=sampler,
        evaluations=asked.evaluations,
        study=f"{sampler}-{asked.budget}-{asked.evaluations}-seed{seed}",
        workspace=Workspace(asked.workspace),
        quick=asked.quick,
        subset=0,  # every evaluation is of all validation images
    )
    # The seed belongs to the sampler alone: the supernet is shared by all searches.
    with open_setting(request, listener) as setting:
        return search(setting, listener, sampler_seed=seed)


def row_of(result: StudyResult, sampler: str, seed: int) -> dict[str, Any]:
    """Return the figures of one search; of random search, those of the null models too."""
    scored, table = result.scored, result.evaluations
    best = scored.loc[scored["map50_95"].idxmax()]
    found = {
        "sampler": sampler,
        "seed": seed,
        "evaluations": len(scored),
        "asked": len(table),
        "over_budget": int((table["state"] == "infeasible").sum()),
        "repeated": int((table["state"] == "duplicate").sum()),
        "hypervolume": result.hypervolume,
        "best_map50_95": float(best["map50_95"]),
        "best_latency_ms": float(best["latency_ms"]),
        "best_architecture": str(best["architecture"]),
        "earlier": [_earlier(result, round(part * len(scored))) for part in QUARTERS],
    }
    return {**found, **(null_models(scored) if sampler == RANDOM else {})}


def _earlier(result: StudyResult, evaluations: int) -> dict[str, float]:
    """Return what a search had found after some of its evaluations."""
    first = result.scored.sort_values("trial").head(evaluations)
    then = dataclasses.replace(result, evaluations=first)
    return {
        "evaluations": evaluations,
        "best_map50_95": float(first["map50_95"].max()),
        "hypervolume": then.hypervolume,
    }


def null_models(scored: pd.DataFrame) -> dict[str, float]:
    """Return the accuracy of the candidate with the most MACs, and of the slowest one."""
    return {
        "most_macs_map50_95": float(scored.loc[scored["macs"].idxmax(), "map50_95"]),
        "slowest_map50_95": float(scored.loc[scored["latency_ms"].idxmax(), "map50_95"]),
    }


def of_all(candidates: pd.DataFrame) -> dict[str, Any]:
    """Say what is known of all candidates that any search scored under the budget."""
    accuracy = candidates["map50_95"]
    return {
        "candidates": len(candidates),
        "best_map50_95": float(accuracy.max()),
        **null_models(candidates),
        "tau_macs": float(candidates["macs"].corr(accuracy, method="kendall")),
        "tau_latency": float(candidates["latency_ms"].corr(accuracy, method="kendall")),
    }


def compared(table: pd.DataFrame) -> dict[str, Any]:
    """Compare our searches with each other's, seed by seed.

    Args:
        table: a row for each search, with `MEASURES`, and `NULL_MODELS` at those of random search.

    Returns:
        Means; and for each rival and null model, how much more ours found, in how many seeds it
        found more, and in how many as much.
    """
    seeds = table.set_index(["seed", "sampler"])
    by = {name: seeds[name].unstack() for name in MEASURES}  # noqa: PD010 - nothing to aggregate
    rivals: dict[str, Any] = {}
    for sampler in [name for name in dict.fromkeys(table["sampler"]) if name != OURS]:
        pairs = {name: (one[OURS], one[sampler]) for name, one in by.items() if OURS in one}
        rivals[sampler] = {name: _won(*pair) for name, pair in pairs.items()}
    nulls = table[table["sampler"] == RANDOM].set_index("seed")
    if OURS in by[MEASURES[0]] and len(nulls):
        ours = by[MEASURES[0]][OURS]
        rivals |= {name: {MEASURES[0]: _won(ours, nulls[name])} for name in NULL_MODELS}
    means = {name: one.mean().to_dict() for name, one in by.items()}
    return {"mean": means, "ours_against": rivals}


def _won(ours: pd.Series[float], theirs: pd.Series[float]) -> dict[str, Any]:
    gain = (ours - theirs).dropna().to_numpy(dtype=np.float64)
    return {
        "mean_gain": float(gain.mean()),
        "seeds": len(gain),
        "won": int((gain > _EQUAL).sum()),
        "equal": int((np.abs(gain) <= _EQUAL).sum()),
    }


if __name__ == "__main__":
    main()
