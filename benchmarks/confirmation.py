"""Winners after confirmation beside what needs no search, at equal cost, over several seeds.

For each seed a supernet is trained, a search run and its winner confirmed; random search scores as
many feasible candidates with the same weights, and every rival is fine-tuned and scored on the test
split exactly like the winner (`nas.results.confirming`). Data, budget and recipe are equal for all;
weights, proposals and fine-tunings have the seed. Gains have a t interval over the seeds.

Then every delivered winner is built and measured anew again and again, each time in a fresh
process, and the share of those latencies over the budget counted: of all, and of those whose
measurement settled, of which the confirmation promises it.

Run it as `python benchmarks/confirmation.py`, about 10 CPU minutes a seed; every part is stored as
soon as it is done, and the same command goes on. It writes `benchmarks/results/confirmation.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from record import write_result
from rich.console import Console

import nas
from nas.api import Found, stored_request
from nas.latency.clock import Elapsed
from nas.latency.oracle import Network
from nas.results.ablation import t_interval
from nas.results.builds import is_settled
from nas.results.console import LiveProgress
from nas.results.worth import Worth
from nas.searcher.progress import Listener
from nas.searcher.request import Confirmation
from nas.searcher.setting import open_setting
from nas.units import Budget

_POINTS = 100


def main() -> None:
    """Run all seeds, measure a winner again and again, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="0.4ms")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--fine-tunings", type=int, default=2)
    parser.add_argument("--measurements", type=int, default=100, help="of all winners together")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--workspace", type=Path, default=Path("studies/confirmation"))
    arguments = parser.parse_args()
    console, runs = Console(), list[dict[str, Any]]()
    with LiveProgress(console) as progress:
        for seed in range(arguments.seeds):
            runs.append(_run(arguments, seed, progress))
            figures = {"arguments": _plain(vars(arguments)), "runs": runs, "gains": _gains(runs)}
            write_result("confirmation", figures)
        figures["fresh"] = [_fresh(arguments, run["seed"], progress) for run in runs]
    console.print(f"Written to {write_result('confirmation', figures)}")


def _run(arguments: argparse.Namespace, seed: int, listener: Listener) -> dict[str, Any]:
    """Search and compare with a seed, or read what was found."""
    path = arguments.workspace / f"seed-{seed}.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    elapsed = Elapsed()
    found = _search(arguments, seed, listener)
    worth = found.delivered.bundle.worth
    assert worth is not None
    run = {
        "seed": seed,
        "study": found.study,
        "evaluations": len(found.result.scored),
        "wall_s": elapsed.wall_s,
        **_described(worth),
    }
    path.write_text(json.dumps(run))
    return run


def _search(arguments: argparse.Namespace, seed: int, listener: Listener) -> Found:
    return nas.search(
        arguments.budget,
        evaluations=arguments.evaluations,
        study=f"seed{seed}",
        workspace=arguments.workspace,
        seed=seed,
        trust=False,
        confirmation=Confirmation(
            seeds=arguments.fine_tunings, baselines="all", jobs=arguments.jobs
        ),
        listener=listener,
    )


def _described(worth: Worth) -> dict[str, Any]:
    """Keep what the comparison found, with gains in points of 100."""
    return {
        "winner": {
            "name": worth.winner.name,
            "architecture": worth.winner.architecture,
            "latency_ms": worth.winner.latency_ms,
            "bound_ms": worth.winner.bound_ms,
            "test_map50_95": worth.winner.over_images.value,
        },
        "rivals": {
            one.name: {
                "architecture": one.architecture,
                "latency_ms": one.latency_ms,
                "test_map50_95": one.over_images.value,
                "gain_points": _POINTS * one.gain.value,
                "interval_points": [_POINTS * one.gain.low, _POINTS * one.gain.high],
                "winner_is": one.verdict,
            }
            for one in worth.rivals
        },
        "seconds": dict(worth.seconds),
        "answer": worth.answer,
    }


def _gains(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean gain over each rival with its t interval over the seeds."""
    names = list(dict.fromkeys(name for run in runs for name in run["rivals"]))
    gains = {}
    for name in names:
        values = [run["rivals"][name]["gain_points"] for run in runs if name in run["rivals"]]
        mean = t_interval(values) if len(values) > 1 else None
        gains[name] = {
            "points": values,
            "mean": float(np.mean(values)),
            "interval": [mean.low, mean.high] if mean else None,
            "won": sum(value > 0 for value in values),
            "of": len(values),
        }
    return gains


def _fresh(arguments: argparse.Namespace, seed: int, listener: Listener) -> dict[str, Any]:
    """Build and measure the winner of a seed anew, in a fresh process each time."""
    path = arguments.workspace / f"fresh-{seed}.json"
    measured: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    wanted = arguments.measurements // arguments.seeds
    if len(measured) < wanted:
        measured = _measured_again(arguments.workspace, seed, measured, wanted, listener)
    settled = [one["ms"] for one in measured if one["settled"]]
    return {
        "seed": seed,
        "all": _beside(arguments.budget, [one["ms"] for one in measured]),
        "settled": _beside(arguments.budget, settled) if len(settled) > 1 else None,
    }


def _beside(budget: str, latencies_ms: list[float]) -> dict[str, Any]:
    admits = Budget.parse(budget).admits
    return {
        "measurements": len(latencies_ms),
        "over_budget": sum(not admits(ms) for ms in latencies_ms),
        "median_ms": float(np.median(latencies_ms)),
        "largest_ms": max(latencies_ms),
        "spread": float(np.std(np.log(latencies_ms), ddof=1)),
    }


def _measured_again(
    workspace: Path, seed: int, measured: list[dict[str, Any]], wanted: int, listener: Listener
) -> list[dict[str, Any]]:
    """Measure a winner until there are as many latencies as wanted, and keep each at once."""
    folder = workspace / f"seed{seed}"
    onnx = (folder / "model.onnx").read_bytes()
    precision = yaml.safe_load((folder / "architecture.yaml").read_text())["precision"]
    listener.stage(f"Measure winner {seed} again", wanted)
    with open_setting(stored_request(f"seed{seed}", None, workspace), listener) as setting:
        network = Network("winner", lambda: onnx)
        while len(measured) < wanted:
            setting.oracle.close()
            latency = setting.oracle.confirm(network, onnx, precision)
            measured.append({"ms": latency.ms, "settled": is_settled(latency)})
            (workspace / f"fresh-{seed}.json").write_text(json.dumps(measured))
            listener.advance(len(measured), f"{latency.ms:.3f} ms")
    return measured


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


if __name__ == "__main__":
    main()
