"""What networks of the default space reach when each is trained on its own.

Networks are drawn from the space, measured, and chosen evenly over the logarithm of their latency,
the smallest and the largest among them. Each is trained from scratch on the embedded digits by the
default recipe, with every seed, and scored in torch on the validation and the test split. Nothing
here uses a supernet, so the figures serve every benchmark that asks how well one ranks.

Run it as `python benchmarks/stand_alone.py`, about 70 minutes of one core; what was trained is
kept in the cache folder, and the same command goes on. It writes
`benchmarks/results/stand_alone.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result
from rich.console import Console
from rich.progress import track

from nas import plugins
from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.evaluate import Accuracy, evaluate
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_detector
from nas.latency.clock import Elapsed
from nas.latency.hardware import Hardware
from nas.latency.meter import LatencyMeter
from nas.model.detector import Detector, profile
from nas.searcher.latency_judge import untrained_onnx
from nas.space.architecture import Architecture
from nas.space.space import SearchSpace, load_space

SPACE, CLASSES = "digits", 10
RUNTIME, PRECISION = "openvino", "bf16"
SEED = 24
"""Of the networks that are drawn; no other benchmark draws with it."""


def main() -> None:
    """Choose, train and score, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=Recipe().iterations)
    parser.add_argument("--drawn", type=int, default=96, help="networks that they are chosen from")
    parser.add_argument("--cache", type=Path, default=Path("studies/cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = digits_dataset(DigitsRecipe(), arguments.cache / "data")
    recipe = dataclasses.replace(Recipe(), iterations=arguments.iterations)
    folder = arguments.cache / "stand_alone" / f"{arguments.iterations}"
    folder.mkdir(parents=True, exist_ok=True)
    networks = _networks(folder / "networks.json", arguments.networks, arguments.drawn)
    console = Console()
    for seed in range(arguments.seeds):
        for number, network in enumerate(networks):
            path = folder / f"{number}-{seed}.json"
            if not path.exists():
                run = _trained(network, dataset, dataclasses.replace(recipe, seed=seed))
                path.write_text(json.dumps(run))
                console.print(f"{number} seed {seed}: {run}")
    for number, network in enumerate(networks):
        paths = [folder / f"{number}-{seed}.json" for seed in range(arguments.seeds)]
        network["runs"] = [json.loads(path.read_text()) for path in paths]
    figures = {
        "space": load_space(SPACE).digest,
        "data": dataset.digest,
        "iterations": arguments.iterations,
        "batch_size": recipe.batch_size,
        "latency": f"{RUNTIME} {PRECISION} on this machine",
        "networks": networks,
    }
    console.print(f"Written to {write_result('stand_alone', figures)}")


def _networks(path: Path, wanted: int, drawn: int) -> list[dict[str, Any]]:
    """Choose the networks, or read which were chosen."""
    if path.exists():
        known: list[dict[str, Any]] = json.loads(path.read_text())
        return known
    space = load_space(SPACE)
    pool = _drawn(space, drawn)
    latencies = _latencies(pool)
    chosen = [_described(pool[index], latencies[index]) for index in _spread(latencies, wanted)]
    path.write_text(json.dumps(chosen))
    return chosen


def _drawn(space: SearchSpace, count: int) -> list[Architecture]:
    generator = np.random.default_rng(SEED)
    points = [space.anchors["min"], space.anchors["max"]]
    points += [space.sample(generator) for _ in range(count - 2)]
    return [space.candidate(point, CLASSES).architecture for point in points]


def _latencies(pool: Sequence[Architecture]) -> list[float]:
    runtime = plugins.load("runtimes", RUNTIME)()
    with LatencyMeter(Hardware.named("cpu"), runtime, precisions=[PRECISION]) as meter:
        measured = [
            meter.measure(untrained_onnx(one), PRECISION, one.digest)
            for one in track(pool, "measuring")
        ]
    return [one.ms for one in measured]


def _spread(latencies: Sequence[float], wanted: int) -> list[int]:
    """Choose the first two, and others nearest to even steps of the logarithm of the latency."""
    logs = np.log(latencies)
    chosen = [0, 1]
    for target in np.linspace(logs.min(), logs.max(), wanted)[1:-1]:
        free = [index for index in range(len(logs)) if index not in chosen]
        chosen.append(min(free, key=lambda index: abs(float(logs[index]) - target)))
    return sorted(chosen[:wanted], key=lambda index: latencies[index])


def _described(architecture: Architecture, latency_ms: float) -> dict[str, Any]:
    counted = profile(architecture)
    return {
        "architecture": architecture.canonical(),
        "latency_ms": latency_ms,
        "macs": counted.macs,
        "parameters": counted.parameters,
    }


def _trained(network: dict[str, Any], dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    detector = Detector(Architecture.parse(network["architecture"]), seed=recipe.seed)
    elapsed = Elapsed()
    result = train_detector(detector, dataset.train, recipe)
    assert dataset.test is not None
    scores = {
        split.name: _score(detector, split).map50_95 for split in (dataset.validation, dataset.test)
    }
    return {"cpu_s": elapsed.cpu_s, "loss": result.loss, **scores}


def _score(detector: Detector, split: Split) -> Accuracy:
    architecture = detector.architecture
    deployed = detector.deploy()

    def predict(images: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            boxes, scores = deployed(torch.from_numpy(images).float() / 255)
        return boxes.numpy(), scores.numpy()

    accuracy, _ = evaluate(
        predict, split.resized(*architecture.input), weights="trained", interval=False
    )
    return accuracy


if __name__ == "__main__":
    main()
