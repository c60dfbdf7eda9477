"""Does a network's inherited mAP rank it as training it alone would, and what does that cost?

The default recipe trains a supernet with every seed; each gives every reference network its weights
and a score, as in a search. The scores are compared with what `stand_alone.py` measured: overall,
within latency windows of 10 %, and by what is lost when the best score under a budget is picked.
MACs, parameters and latency are scored as if they were search scores; beating them is the point.
A second column compares with the test split, whose images no search score has seen.

The cost of ranking 500 candidates is the training of the supernet and 500 scorings, divided by one
training of the largest network, which is timed in turns with the scorings: both bear the same load.

Run it as `python benchmarks/ranking.py`, about 5 minutes of one core for each seed; `--references`
may be the cache folder of a `stand_alone.py` that still runs. It writes
`benchmarks/results/ranking.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inherited import REFERENCES, References, Trained, trained
from numpy.typing import NDArray
from record import write_result
from rich.console import Console

from nas.accuracy.dataset import Dataset
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_detector
from nas.latency.clock import Elapsed
from nas.model.detector import Detector
from nas.searcher import ranking
from nas.space.architecture import Architecture
from nas.space.space import load_space

CANDIDATES = 500
BUDGETS = 6
_UNTIMED_STEPS, _TIMED_STEPS = 10, 50

_Floats = NDArray[np.float64]


def main() -> None:
    """Train, score and compare, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=Path, default=REFERENCES)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("studies/cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    dataset = digits_dataset(DigitsRecipe(), arguments.cache / "data")
    space, references = load_space("digits"), References.read(arguments.references)
    largest = space.candidate(space.anchors["max"], len(dataset.classes)).architecture
    runs = []
    for seed in range(arguments.seeds):
        recipe = dataclasses.replace(Recipe(), seed=seed)
        found = trained(space, dataset, references, recipe, arguments.cache)
        assert found is not None
        run = _run(found, references, largest, dataset)
        runs.append({"seed": seed, **run})
        console.print(runs[-1])
    figures = {
        "space": space.digest,
        "data": dataset.digest,
        "recipe": dataclasses.asdict(Recipe()),
        "networks": len(references.architectures),
        "reference_seeds": references.validation.shape[1],
        "baselines": {
            name: _compared(getattr(references, name), references)
            for name in ("macs", "parameters", "latencies_ms")
        },
        "ceiling": _ceiling(references),
        "validation_and_test": _tau(references.validation.mean(1), references.test.mean(1)),
        "runs": runs,
    }
    console.print(f"Written to {write_result('ranking', figures)}")


def _run(
    found: Trained, references: References, largest: Architecture, dataset: Dataset
) -> dict[str, Any]:
    scores = found.scores
    alone_s = _training_seconds(largest, dataset)
    gap = ranking.gap(scores, references.validation.mean(1), references.macs)
    gain = ranking.tau_gain(scores, references.macs, references.validation.mean(1))
    return {
        "map50_95": scores.tolist(),
        "mean": float(scores.mean()),
        **_compared(scores, references),
        "tau_above_macs": dataclasses.asdict(gain),
        "gap": dataclasses.asdict(gap.mean),
        "gap_per_doubling_of_macs": dataclasses.asdict(gap.slope),
        "training_cpu_s": found.training_cpu_s,
        "scoring_cpu_s": found.scoring_cpu_s,
        "largest_alone_cpu_s": alone_s,
        "cost_ratio": (found.training_cpu_s + CANDIDATES * found.scoring_cpu_s) / alone_s,
    }


def _compared(scores: _Floats, references: References) -> dict[str, Any]:
    """Say how well scores rank, by both splits of the references."""
    latencies_ms = references.latencies_ms
    budgets_ms = np.quantile(latencies_ms, np.linspace(0, 1, BUDGETS + 1)[1:])
    compared: dict[str, Any] = {"budgets_ms": budgets_ms.tolist()}
    for split in ("validation", "test"):
        alone = getattr(references, split).mean(1)
        windows = ranking.window_tau(scores, alone, latencies_ms)
        lost = ranking.regret(scores, alone, latencies_ms, budgets_ms)
        compared[split] = {
            "tau": _tau(scores, alone),
            "tau_in_windows": dataclasses.asdict(windows),
            "regret_points": lost.tolist(),
        }
    return compared


def _ceiling(references: References) -> dict[str, Any] | None:
    """Say how well the first seed of the references ranks the second; None if there is one."""
    first, *others = references.validation.T
    if not others:
        return None
    windows = ranking.window_tau(first, others[0], references.latencies_ms)
    return {
        "tau": dataclasses.asdict(ranking.seed_tau(references.validation)),
        "tau_in_windows": dataclasses.asdict(windows),
    }


def _tau(scores: _Floats, references: _Floats) -> dict[str, Any]:
    return dataclasses.asdict(ranking.kendall_tau(scores, references))


def _training_seconds(largest: Architecture, dataset: Dataset) -> float:
    """CPU seconds of training the largest network alone, from a few of its steps."""
    recipe = dataclasses.replace(Recipe(), iterations=_UNTIMED_STEPS + _TIMED_STEPS)
    seconds: list[float] = []
    elapsed = Elapsed()
    train_detector(
        Detector(largest), dataset.train, recipe, progress=lambda _: seconds.append(elapsed.cpu_s)
    )
    step_s = (seconds[-1] - seconds[_UNTIMED_STEPS - 1]) / _TIMED_STEPS
    return step_s * Recipe().iterations


if __name__ == "__main__":
    main()
