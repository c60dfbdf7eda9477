"""What `test_team.py` runs: trainings of two processes, or one that waits to be killed."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.accuracy.dataset import Dataset
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress, train_detector
from nas.errors import InputError
from nas.model.detector import Detector
from nas.searcher.progress import Silent
from nas.searcher.request import Workspace
from nas.searcher.supernets import trained_supernet
from nas.searcher.team import Due, help_out, joined, train_network
from nas.space.architecture import Architecture
from nas.space.space import load_space

RECIPE = Recipe(iterations=4, batch_size=6, amp="off")
KILLED = Recipe(iterations=12, batch_size=2, checkpoint_every=10_000)


def dataset(folder: Path) -> Dataset:
    return digits_dataset(DigitsRecipe(train=24, validation=8, test=8, size=64), folder)


def architecture() -> Architecture:
    def fusion(channels: int) -> dict[str, Any]:
        return {"block": "conv_csp", "channels": channels, "hidden": 8}

    return Architecture.parse(
        {
            "input": 64,
            "classes": 10,
            "stem": {"channels": 8},
            "backbone": {f"P{n}": fusion(8 * n) for n in range(2, 6)},
            "neck": {
                "top_down": {"P4": fusion(24), "P3": fusion(24)},
                "bottom_up": {"P4": fusion(24), "P5": fusion(24)},
            },
            "head": {"channels": 16},
        }
    )


def without_batch_statistics() -> Detector:
    """Normalise each image by itself: batch statistics are all that processes do not share."""
    torch.set_num_threads(1)
    detector = Detector(architecture())
    for module in list(detector.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features))
    return detector


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def _killed(folder: Path) -> None:
    """Say where the training is, and wait in its middle until somebody kills it."""
    torch.set_num_threads(1)
    checkpoint = folder / "checkpoint"

    def tell(progress: Progress) -> None:
        if progress.iteration > KILLED.iterations // 2 and checkpoint.exists():
            sys.stdout.write(f"{progress.iteration}\n")
            sys.stdout.flush()
            threading.Event().wait()

    train_detector(
        Detector(architecture()),
        dataset(folder).train,
        KILLED,
        progress=tell,
        checkpoint=checkpoint,
        due=Due(0.0),
    )


def _together(folder: Path) -> None:
    _train_together(folder)
    tasks = Path("/proc/self/task").glob("*/comm")
    (folder / f"threads-{os.environ['RANK']}").write_text("".join(one.read_text() for one in tasks))


def _train_together(folder: Path) -> None:
    with joined() as processes:
        if not processes.first:
            help_out()
            return
        data = dataset(folder)
        detector = without_batch_statistics()
        train_network(detector, data.train, RECIPE, Silent(), folder / "detector.checkpoint")
        torch.save(weights(detector), folder / "together.pt")
        try:  # an error of all processes, after which they go on
            train_network(detector, data.train, Recipe(batch_size=1), Silent())
        except InputError as error:
            (folder / "error").write_text(error.message)
        space = load_space(str(folder / "tiny.yaml"))
        trained_supernet(space, data, RECIPE, Workspace(folder), Silent())


if __name__ == "__main__":
    {"killed": _killed, "together": _together}[sys.argv[1]](Path(sys.argv[2]))
