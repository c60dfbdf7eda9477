"""What saving memory costs a training: batches in parts, recomputed stages, several processes.

Each variant trains the largest network of the default space at 192 x 192 pixels in a process of its
own. Time is CPU time per step (of all processes together), memory the peak of one process above
what it had before its first step. Run: python benchmarks/training_memory.py
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from record import write_result

from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress, train_detector
from nas.latency.clock import Elapsed
from nas.model.detector import Detector
from nas.searcher.memory import PeakMemory
from nas.searcher.team import joined
from nas.space.space import load_space

BASE = Recipe(iterations=3, batch_size=16, amp="off")
VARIANTS = {
    "plain": BASE,
    "accumulate=4": dataclasses.replace(BASE, accumulate=4),
    "recompute": dataclasses.replace(BASE, recompute=True),
    "accumulate=4, recompute": dataclasses.replace(BASE, accumulate=4, recompute=True),
}
SIDE = 192


def one(name: str, folder: Path) -> None:
    """Train one variant, and write its figures from each process."""
    torch.set_num_threads(1)
    space = load_space("digits")
    architecture = space.candidate(space.anchors["max"], 10).architecture
    data = digits_dataset(DigitsRecipe(train=32, validation=8, test=8, size=96), folder / "data")
    detector = Detector(architecture.at_input((SIDE, SIDE)))
    with joined() as processes:
        elapsed, marks, peak = Elapsed(), list[float](), PeakMemory()

        def mark(_: Progress) -> None:
            marks.append(elapsed.cpu_s)

        train_detector(detector, data.train, VARIANTS[name], progress=mark, processes=processes)
        steps = [after - before for before, after in itertools.pairwise(marks)]
        figures = {"cpu_s": statistics.median(steps), "bytes": peak.bytes}
        (folder / f"{processes.rank}.json").write_text(json.dumps(figures))


def measured(name: str, processes: int) -> dict[str, float]:
    """Run a variant in processes of its own."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(launch if processes > 1 else []), __file__, name, folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment)
        found = [json.loads(one.read_text()) for one in Path(folder).glob("?.json")]
    return {
        "cpu_s_per_step": sum(each["cpu_s"] for each in found),
        "peak_mib": max(each["bytes"] for each in found) / 1024**2,
    }


def main() -> None:
    """Measure all variants, and write the result file."""
    found = {name: measured(name, 1) for name in VARIANTS}
    found["two processes"] = measured("plain", 2)
    plain = found["plain"]
    for each in found.values():
        each["time_ratio"] = each["cpu_s_per_step"] / plain["cpu_s_per_step"]
        each["memory_ratio"] = each["peak_mib"] / plain["peak_mib"]
    write_result("training_memory", {"side": SIDE, "batch": BASE.batch_size, "variants": found})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
