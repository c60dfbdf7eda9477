"""Which subnets should a training step train, and what should they learn from? Rules compared.

Every rule trains the supernet of the default space on the embedded digits, at equal cost: a budget
is counted in steps of one random subnet, and a step of the sandwich counts as `SANDWICH_STEPS` of
them. Seconds would not do: on a shared machine the same training takes 100 of them or 140. What
each training took is recorded beside its figures.

Then the networks of `stand_alone.py` inherit their weights and are scored: how good are they (mean
mAP), and is their order that of training them alone (Kendall's tau, overall and within latency
windows of 10 %)? MACs are scored as well, for comparison.

Run it as `python benchmarks/supernet_sampling.py`; supernets are kept in the cache folder, and the
same command goes on. It writes `benchmarks/results/supernet_sampling.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inherited import REFERENCES, References, trained
from numpy.typing import NDArray
from record import write_result
from rich.console import Console

from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.searcher.ranking import kendall_tau, window_tau
from nas.space.space import load_space

SANDWICH_STEPS = 2.3
"""Steps of one random subnet that one of the sandwich costs: measured in turns, one thread."""

_PLAIN = {"fair": False, "strata": 0, "apart": 0.0, "largest_only": 0.25}
_ONE: dict[str, Any] = {"rule": "uniform", **_PLAIN}
_THREE: dict[str, Any] = {"rule": "sandwich", **_PLAIN}
_TAUGHT = {"in_place": 1.0, "in_place_from": 0.5}
RULES: dict[str, dict[str, Any]] = {
    "uniform": {**_ONE, "largest_only": 0.0},
    "sandwich": {**_THREE, "largest_only": 0.0},
    "largest first, then uniform": _ONE,
    "... operators drawn fairly": {**_ONE, "fair": True},
    "... costs drawn by strata": {**_ONE, "strata": 4},
    "... drawn fairly, sizes apart at the end": {**_ONE, "fair": True, "apart": 0.667},
    "largest first, then sandwich": _THREE,
    "... taught in place": {**_THREE, **_TAUGHT},
    "... taught in place, one assignment": {**_THREE, **_TAUGHT, "shared_assignment": True},
}


def main() -> None:
    """Train and score every rule with every budget and seed, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[600, 1200], help="budgets")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--only-cached", action="store_true", help="train nothing more")
    parser.add_argument("--references", type=Path, default=REFERENCES)
    parser.add_argument("--cache", type=Path, default=Path("studies/cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    dataset = digits_dataset(DigitsRecipe(), arguments.cache / "data")
    space, references = load_space("digits"), References.read(arguments.references)
    runs = []
    for steps in arguments.steps:
        for name in arguments.rules:
            options = {**RULES[name], "iterations": _iterations(RULES[name], steps)}
            for seed in range(arguments.seeds):
                recipe = Recipe(**options, seed=seed)
                found = trained(
                    *(space, dataset, references, recipe, arguments.cache),
                    only_cached=arguments.only_cached,
                )
                if found is None:
                    continue
                runs.append(
                    {
                        "rule": name,
                        "steps": steps,
                        "seed": seed,
                        "recipe": options,
                        "cpu_seconds": round(found.training_cpu_s, 1),
                        **_compared(found.scores, references),
                    }
                )
                console.print(runs[-1])
    figures = {
        "space": space.digest,
        "data": dataset.digest,
        "networks": len(references.architectures),
        "reference_seeds": references.validation.shape[1],
        "macs": _compared(references.macs, references),
        "runs": runs,
    }
    console.print(f"Written to {write_result('supernet_sampling', figures)}")


def _iterations(options: dict[str, Any], steps: int) -> int:
    """Return the `iterations` with which a rule costs as much as `steps` of one random subnet."""
    each = SANDWICH_STEPS if options["rule"] == "sandwich" else 1.0
    warmup: float = options["largest_only"]
    return round(steps / (warmup + (1 - warmup) * each + options["apart"] * each))


def _compared(scores: NDArray[np.float64], references: References) -> dict[str, Any]:
    alone = references.validation.mean(1)
    return {
        "mean": float(scores.mean()),
        "tau": dataclasses.asdict(kendall_tau(scores, alone)),
        "tau_in_windows": dataclasses.asdict(window_tau(scores, alone, references.latencies_ms)),
        "map50_95": scores.tolist(),
    }


if __name__ == "__main__":
    main()
