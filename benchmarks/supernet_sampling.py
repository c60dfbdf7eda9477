"""Which subnets should a training step train? Rules compared at an equal cost in CPU seconds.

Every rule trains the supernet of the default space on the embedded digits. A rule's iterations are
the budget divided by the cost of its steps, which is probed first, turn by turn with the others, so
that a neighbour's load falls on all. Afterwards the same random subnets are scored with each.

Run it as `python benchmarks/supernet_sampling.py`; it writes
`benchmarks/results/supernet_sampling.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import write_result
from rich.console import Console

from nas.accuracy.dataset import Dataset, batches
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.evaluate import evaluate
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_supernet
from nas.latency.clock import Elapsed
from nas.model.detector import profile
from nas.model.supernet import Supernet, recalibrate
from nas.searcher.supernets import subnet_draws
from nas.space.architecture import Architecture
from nas.space.space import SearchSpace, load_space

_PROBE = 12  # steps, in which the share of the warm-up is as in the real schedule
_CALIBRATION = 16  # batches of 32 images

RULES: dict[str, dict[str, Any]] = {
    "uniform": {"rule": "uniform", "largest_only": 0.0},
    "largest first, then uniform": {"rule": "uniform", "largest_only": Recipe().largest_only},
    "sandwich": {"rule": "sandwich", "largest_only": 0.0},
    "largest first, then sandwich": {"rule": "sandwich", "largest_only": Recipe().largest_only},
}


def main() -> None:
    """Train and score every rule with every seed, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu-seconds", type=float, default=200.0, help="for each training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=Path("studies/cache/data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    dataset, space = digits_dataset(DigitsRecipe(), arguments.cache), load_space("digits")
    seconds = _step_seconds(space, dataset)
    runs = []
    for seed in range(arguments.seeds):
        for name in RULES:
            iterations = round(arguments.cpu_seconds / seconds[name])
            run = _run(name, iterations, seed, space, dataset, arguments.subnets)
            console.print(run)
            runs.append(run)
    figures = {
        "cpu_seconds": arguments.cpu_seconds,
        "subnets": arguments.subnets,
        "space": space.digest,
        "data": dataset.digest,
        "runs": runs,
    }
    console.print(f"Written to {write_result('supernet_sampling', figures)}")


def _step_seconds(space: SearchSpace, dataset: Dataset) -> dict[str, float]:
    """CPU seconds of a mean step under each rule: the median of three probes each."""
    probes: dict[str, list[float]] = {name: [] for name in RULES}
    for turn in range(3):
        for name, options in RULES.items():
            recipe = Recipe(iterations=_PROBE, seed=turn, **options)
            elapsed = Elapsed()
            _train(space, dataset, recipe)
            probes[name].append(elapsed.cpu_s / _PROBE)
    return {name: float(np.median(values)) for name, values in probes.items()}


def _train(space: SearchSpace, dataset: Dataset, recipe: Recipe) -> Supernet:
    classes = len(dataset.classes)

    anchors = {
        name: space.candidate(point, classes).architecture for name, point in space.anchors.items()
    }
    supernet = Supernet(space.covering(classes), seed=recipe.seed)
    train_supernet(
        supernet,
        subnet_draws(space, classes, recipe),
        anchors["max"],
        dataset.train,
        recipe,
        smallest=anchors["min"],
    )
    return supernet


def _run(
    name: str, iterations: int, seed: int, space: SearchSpace, dataset: Dataset, subnets: int
) -> dict[str, Any]:
    recipe = dataclasses.replace(Recipe(iterations=iterations, seed=seed), **RULES[name])
    elapsed = Elapsed()
    supernet = _train(space, dataset, recipe)
    cpu_s = elapsed.cpu_s
    generator = np.random.default_rng(0)  # the same subnets for every rule and seed
    points = [space.anchors["max"], space.anchors["min"]]
    points += [space.sample(generator) for _ in range(subnets)]
    networks = [space.candidate(point, len(dataset.classes)).architecture for point in points]
    scores = [_score(supernet, one, dataset) for one in networks]
    return {
        "rule": name,
        "seed": seed,
        "iterations": iterations,
        "cpu_seconds": round(cpu_s, 1),
        "max": scores[0],
        "min": scores[1],
        "mean": float(np.mean(scores[2:])),
        "map50_95": scores[2:],
        "macs": [profile(one).macs for one in networks[2:]],
    }


def _score(supernet: Supernet, architecture: Architecture, dataset: Dataset) -> float:
    detector = supernet.extract(architecture)
    stream = batches(dataset.train.resized(*architecture.input), 32, seed=0)
    recalibrate(detector, (next(stream)[0].float() / 255 for _ in range(_CALIBRATION)))
    deployed = detector.deploy()

    def predict(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            boxes, scores = deployed(torch.from_numpy(np.ascontiguousarray(images)).float() / 255)
        return boxes.numpy(), scores.numpy()

    split = dataset.validation.resized(*architecture.input)
    return evaluate(predict, split, weights="inherited", interval=False)[0].map50_95


if __name__ == "__main__":
    main()
