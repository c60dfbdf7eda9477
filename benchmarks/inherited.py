"""What benchmarks of ranking share: references, supernets that are trained once, inherited mAP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.distributed import ALONE
from nas.accuracy.evaluate import evaluate
from nas.accuracy.recipe import Recipe
from nas.errors import InputError
from nas.latency.clock import Elapsed
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.searcher.inherited import InheritedDetectors
from nas.searcher.supernets import train_afresh
from nas.searcher.team import Part
from nas.space.architecture import Architecture, digest_of
from nas.space.space import SearchSpace

_VARIED = (
    *("iterations", "batch_size", "peak_lr", "weight_decay", "ema_decay", "seed"),
    *("rule", "largest_only", "fair", "strata", "apart"),
    *("in_place", "in_place_from", "shared_assignment"),
)
"""Fields of a recipe that name a supernet in the cache; empty it if other defaults change."""

REFERENCES = Path(__file__).with_name("results") / "stand_alone.json"


@dataclass(frozen=True)
class References:
    """Networks that were trained alone, by ascending latency; see `stand_alone.py`.

    Attributes:
        architectures: n of them.
        latencies_ms: (n,).
        macs: (n,).
        parameters: (n,).
        validation: (n, seeds) mAP.
        test: (n, seeds) mAP.
    """

    architectures: tuple[Architecture, ...]
    latencies_ms: NDArray[np.float64]
    macs: NDArray[np.float64]
    parameters: NDArray[np.float64]
    validation: NDArray[np.float64]
    test: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the result file, or the cache folder of a benchmark that still runs.

        Of a folder, networks are left out that no seed has, and seeds that not all others have.

        Raises:
            InputError: no network was trained yet.
        """
        if path.is_dir():
            networks = json.loads((path / "networks.json").read_text())
            for number, network in enumerate(networks):
                files = sorted(path.glob(f"{number}-*.json"))
                network["runs"] = [json.loads(file.read_text()) for file in files]
            networks = [network for network in networks if network["runs"]]
        else:
            networks = json.loads(path.read_text())["networks"]
        if not networks:
            raise InputError(f"{path} has no reference yet.", "Run benchmarks/stand_alone.py.")
        return cls._of(networks)

    @classmethod
    def _of(cls, networks: Sequence[dict[str, Any]]) -> Self:
        seeds = min(len(network["runs"]) for network in networks)

        def column(name: str) -> NDArray[np.float64]:
            return np.array([network[name] for network in networks], np.float64)

        def runs(split: str) -> NDArray[np.float64]:
            return np.array([[run[split] for run in one["runs"][:seeds]] for one in networks])

        return cls(
            tuple(Architecture.parse(network["architecture"]) for network in networks),
            *(column(name) for name in ("latency_ms", "macs", "parameters")),
            *(runs(split) for split in ("validation", "test")),
        )


@dataclass(frozen=True)
class Trained:
    """A supernet that was trained and scored.

    Attributes:
        supernet: with its weights.
        training_cpu_s: CPU seconds of its training.
        scores: (n,) inherited mAP of the reference networks, on the validation split.
        scoring_cpu_s: CPU seconds of one of them.
    """

    supernet: Supernet
    training_cpu_s: float
    scores: NDArray[np.float64]
    scoring_cpu_s: float


def trained(
    space: SearchSpace,
    dataset: Dataset,
    references: References,
    recipe: Recipe,
    cache: Path,
    *,
    only_cached: bool = False,
) -> Trained | None:
    """Train a supernet and score the references as a search does, but in torch.

    What the cache has is taken from there; with `only_cached`, None if it has no such supernet.
    """
    key = digest_of(
        [space.digest, dataset.digest, {name: getattr(recipe, name) for name in _VARIED}]
    )
    which = digest_of([one.canonical() for one in references.architectures])
    folder = cache / "supernets"
    folder.mkdir(parents=True, exist_ok=True)
    weights, facts = (folder / f"{key}.{kind}" for kind in ("safetensors", "json"))
    if only_cached and not facts.exists():
        return None
    if not facts.exists():
        elapsed = Elapsed()
        alone = Part(ALONE, torch.device("cpu"))
        train_afresh(space, len(dataset.classes), dataset.train, recipe, None, alone).save(weights)
        facts.write_text(json.dumps(elapsed.cpu_s))
    supernet = Supernet.load(weights)
    scored = folder / f"{key}-{which}.json"
    if not scored.exists():
        elapsed = Elapsed()
        detectors = InheritedDetectors(supernet, key, dataset.train)
        scores = [score(detectors(one), dataset.validation) for one in references.architectures]
        scored.write_text(json.dumps([scores, elapsed.cpu_s / len(scores)]))
    scores, scoring_cpu_s = json.loads(scored.read_text())
    return Trained(supernet, json.loads(facts.read_text()), np.array(scores), scoring_cpu_s)


def score(detector: Detector, split: Split) -> float:
    """Return the mAP50-95 of a trained detector."""
    deployed = detector.deploy().to(memory_format=torch.channels_last)

    def predict(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            tensor = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
            boxes, scores = deployed(tensor.to(memory_format=torch.channels_last))
        return boxes.numpy(), scores.numpy()

    resized = split.resized(*detector.architecture.input)
    return evaluate(predict, resized, weights="inherited", interval=False)[0].map50_95
