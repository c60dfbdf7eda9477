"""Does a latency come out the same in another process, beside a neighbour that keeps a core busy?

Every candidate is measured in fresh worker processes, one after the other, while another process
computes on one core. What repeats is the ratio to the reference network; its coefficient of
variation between processes is the noise that no interval of one process knows of. The cost of a
candidate is counted in CPU seconds of this process (export) and of the worker (build, measure).

Run it as `python benchmarks/repeatability.py`; it writes `benchmarks/results/repeatability.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from record import write_result
from rich.console import Console
from rich.table import Table

from nas import plugins
from nas.latency.clock import Elapsed, Timing
from nas.latency.runtimes.base import Runtime
from nas.latency.worker import Worker
from nas.searcher.latency_judge import untrained_onnx
from nas.space.space import load_space

ENGINES = (
    ("openvino", "fp32", None),
    ("openvino", "bf16", 1.0),
    ("openvino", "int8", 1.0),
    ("onnxruntime", "fp32", 1.5),
)
"""Runtime, precision, and the largest CV in percent that was aimed at."""

ANCHORS = (("digits", "middle"), ("digits", "max"), ("hsv_det", "yolov8n"))
_CLASSES = 10
# Matrix products of a few megabytes: they take the caches too, as a training next door would.
_BURN = "import numpy as np; a = np.random.rand(512, 512)\nwhile True: a = (a @ a) % 1.0"


def main() -> None:
    """Measure everything in fresh processes, and write the variation between them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=10)
    processes = parser.parse_args().processes
    elapsed = Elapsed()
    graphs = {f"{space}:{anchor}": _graph(space, anchor) for space, anchor in ANCHORS}
    export_s = elapsed.cpu_s / len(graphs)
    console = Console(width=120)
    with _busy_neighbour():
        rows = [
            _engine(name, precision, graphs, processes, console) | {"aim_cv_percent": aim}
            for name, precision, aim in ENGINES
        ]
    figures = {"processes": processes, "export_cpu_s": export_s, "engines": rows}
    _print(console, rows)
    console.print(f"Written: {write_result('repeatability', figures)}")


def _graph(space: str, anchor: str) -> bytes:
    found = load_space(space)
    point = found.anchors[anchor]
    if space == "hsv_det":
        architecture = found.candidate(point, _CLASSES).architecture.at_input((320, 320))
    else:
        architecture = found.candidate(point, _CLASSES).architecture
    return untrained_onnx(architecture)


@contextlib.contextmanager
def _busy_neighbour() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", _BURN]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


def _engine(
    name: str, precision: str, graphs: dict[str, bytes], processes: int, console: Console
) -> dict[str, Any]:
    runtime: Runtime = plugins.load("runtimes", name)()
    runs: dict[str, list[Timing]] = {network: [] for network in graphs}
    costs: list[float] = []
    for _ in range(processes):
        with contextlib.closing(Worker(runtime)) as worker:
            reference_ms = worker.calibrate(precision).ms
            for network, graph in graphs.items():
                elapsed = Elapsed()
                runs[network].append(worker.measure(graph, precision, reference_ms))
                costs.append(elapsed.wall_s)
        console.print(f"{name} {precision}: {len(costs) // len(graphs)} of {processes}")
    networks = {network: _summary(timings) for network, timings in runs.items()}
    return {
        "engine": f"{name} {precision}",
        "build_and_measure_wall_s": float(np.median(costs)),
        "peak_child_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "networks": networks,
    }


def _summary(timings: list[Timing]) -> dict[str, Any]:
    ratios = np.array([timing.ratio for timing in timings])
    return {
        "ratios": ratios.tolist(),
        "cv_percent": float(100 * ratios.std(ddof=1) / ratios.mean()),
        "ms": float(np.median([timing.ms for timing in timings])),
        "half_width_percent": float(100 * np.median([timing.half_width for timing in timings])),
        "converged": sum(timing.converged for timing in timings),
        "other_load": [timing.other_load for timing in timings],
    }


def _print(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table("engine", "network", "ms", "CV between processes", "half-width", "aim", box=None)
    for row in rows:
        for network, found in row["networks"].items():
            aim = "" if row["aim_cv_percent"] is None else f"{row['aim_cv_percent']:.1f} %"
            cv, width = f"{found['cv_percent']:.2f} %", f"{found['half_width_percent']:.2f} %"
            table.add_row(row["engine"], network, f"{found['ms']:.3f}", cv, width, aim)
    console.print(table)


if __name__ == "__main__":
    main()
