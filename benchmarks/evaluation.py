"""What one accuracy evaluation of a search costs, and where the time goes.

Random candidates of the default space are scored on the embedded digits as in a search: by
`AccuracyJudge`, on engines of OpenVINO, with the weights of a supernet that was trained by the
default recipe, or with those of a file. Stages are timed where the search calls them, in CPU
seconds of this process; what the agreement check builds and runs counts for the check alone. Then
the same networks are scored in a second precision, with the batch-norm statistics that the first
pass kept.

Run it as `python benchmarks/evaluation.py`, about 3 minutes of one core more if there is no
supernet yet; it writes `benchmarks/results/evaluation.json`.
"""

from __future__ import annotations

import argparse
import functools
import pkgutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from record import write_result
from rich.console import Console
from rich.progress import track

from nas import plugins
from nas.accuracy.formats import load_dataset
from nas.latency.clock import Elapsed
from nas.model.supernet import Supernet
from nas.results.console import LiveProgress
from nas.searcher.database import Database
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.request import Workspace, training_recipe
from nas.searcher.supernets import supernet_digest, trained_supernet
from nas.space.architecture import Candidate
from nas.space.space import SearchSpace, load_space

RUNTIME, PRECISIONS = "openvino", ("bf16", "int8")

STAGES = {
    "extraction": "nas.model.supernet.Supernet.extract",
    "recalibration": "nas.searcher.inherited.InheritedDetectors._recalibrate",
    "fusing": "nas.model.detector.Detector.deploy",
    "export": "nas.searcher.engines.export_onnx",
    "quantisation": "nas.searcher.engines.at_precision",
    "engine build": "nas.latency.runtimes.base.Runtime.build",
    "forward": "nas.latency.runtimes.base.Engine.infer",
    "NMS": "nas.accuracy.evaluate.detect_batch",
    "mAP and interval": "nas.accuracy.evaluate.score",
    "agreement check": "nas.searcher.engines.agreement_of",
}
"""Stage of an evaluation -> the function that it is."""


class Stages:
    """CPU seconds of each stage; a stage within another counts for the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._inside = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Time the stages meanwhile."""
        with ExitStack() as stack:
            for stage, path in STAGES.items():
                function = pkgutil.resolve_name(path)
                stack.enter_context(mock.patch(path, self._timed(stage, function)))
            yield

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return function(*arguments, **named)
            self._inside, elapsed = True, Elapsed()
            try:
                return function(*arguments, **named)
            finally:
                self._inside = False
                self.seconds[stage] += elapsed.cpu_s

        return timed


def main() -> None:
    """Score all candidates in both precisions, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--supernet", type=Path, help="a trained one of the default space")
    parser.add_argument("--workspace", type=Path, default=Path("studies/benchmark"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        workspace, supernet = Workspace(arguments.workspace), arguments.supernet
        figures = _figures(arguments.candidates, workspace, supernet, Path(folder))
    console.print(figures)
    console.print(f"Written to {write_result('evaluation', figures)}")


def _figures(count: int, workspace: Workspace, given: Path | None, folder: Path) -> dict[str, Any]:
    dataset = load_dataset(None, workspace.cache, quick=False)
    space, recipe = load_space("digits"), training_recipe(None, 0, quick=False)
    weights = given.stem if given else supernet_digest(space, dataset, recipe)
    if given:
        supernet = Supernet.load(given)
    else:
        with LiveProgress(Console()) as progress:
            supernet = trained_supernet(space, dataset, recipe, workspace, progress)
    generator = np.random.default_rng(0)
    points = [space.sample(generator) for _ in range(count)]
    networks = [space.candidate(point, len(dataset.classes)).architecture for point in points]
    with Database(f"sqlite:///{folder}/nas.db") as database:
        for network in networks:
            database.add_architecture(network.digest, space=space.digest, text="")
            for split in (dataset.train, dataset.validation):
                split.resized(*network.input)  # once per input size and search
        runtime = plugins.load("runtimes", RUNTIME)()
        judge = AccuracyJudge(
            supernet, weights, dataset, runtime, database, statistics=folder / "statistics"
        )
        _warm_up(judge, database, space)
        passes = {
            precision: _timed_pass(
                judge, [Candidate(architecture=one, precision=precision) for one in networks]
            )
            for precision in PRECISIONS
        }
    return {
        "space": space.digest,
        "data": dataset.digest,
        "supernet": weights,
        "runtime": RUNTIME,
        "validation_images": len(dataset.validation),
        "candidates": count,
        "passes": passes,
    }


def _warm_up(judge: AccuracyJudge, database: Database, space: SearchSpace) -> None:
    """Score a candidate that does not count: libraries load what they need when first used."""
    network = space.candidate(space.anchors["max"], 10).architecture
    database.add_architecture(network.digest, space=space.digest, text="")
    for precision in PRECISIONS:
        judge(Candidate(architecture=network, precision=precision))


def _timed_pass(judge: AccuracyJudge, candidates: list[Candidate]) -> dict[str, Any]:
    stages, elapsed = Stages(), Elapsed()
    with stages.watched():
        for candidate in track(candidates, candidates[0].precision):
            judge(candidate)
    cpu_s, wall_s = elapsed.cpu_s, elapsed.wall_s
    seconds = stages.seconds | {"the rest": cpu_s - sum(stages.seconds.values())}
    return {
        "cpu_s_per_candidate": round(cpu_s / len(candidates), 4),
        "candidates_per_cpu_minute": round(60 * len(candidates) / cpu_s, 1),
        "candidates_per_minute": round(60 * len(candidates) / wall_s, 1),
        "cpu_s": {name: round(one / len(candidates), 4) for name, one in seconds.items()},
        "share": {name: round(one / cpu_s, 4) for name, one in seconds.items()},
    }


if __name__ == "__main__":
    main()
