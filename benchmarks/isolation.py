"""What isolation costs: starting a worker, and building and measuring in it instead of here.

Candidates of the digits space are measured here and in a warm worker in turns, with a fixed number
of blocks, so that both do the same work; a second measurement here says what noise is. Seconds are
of the wall, and of the CPUs of both processes.

Run it as `python benchmarks/isolation.py`; it writes `benchmarks/results/isolation.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result
from rich.console import Console

from nas import plugins
from nas.latency.clock import ClockSettings, Elapsed
from nas.latency.measurer import Measurer, Measures
from nas.latency.worker import Worker
from nas.searcher.latency_judge import untrained_onnx
from nas.space.space import load_space

CASES = (("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"))
SETTINGS = ClockSettings(min_blocks=8, max_blocks=8)
STARTS = 5


def main() -> None:
    """Measure every case, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=12)
    candidates = parser.parse_args().candidates
    graphs = _graphs(candidates)
    rows = [_case(runtime, precision, graphs) for runtime, precision in CASES]
    console = Console(width=120)
    for row in rows:
        console.print(row)
    console.print(f"Written: {write_result('isolation', {'candidates': candidates, 'rows': rows})}")


def _graphs(count: int) -> list[bytes]:
    space, generator = load_space("digits"), np.random.default_rng(0)
    points = (space.sample(generator) for _ in range(count))
    return [untrained_onnx(space.candidate(point, 10).architecture) for point in points]


def _case(name: str, precision: str, graphs: list[bytes]) -> dict[str, Any]:
    runtime = plugins.load("runtimes", name)()
    with (
        contextlib.closing(Measurer(runtime, settings=SETTINGS)) as here,
        contextlib.closing(Worker(runtime, settings=SETTINGS)) as there,
    ):
        starts = [_start(there, precision) for _ in range(STARTS)]
        here.calibrate(precision)
        rows = []
        for index, graph in enumerate(graphs):
            measured = {}
            # Whoever comes second finds warm caches, so they take turns at that, too.
            order = ((here, "here"), (there, "there"), (here, "again"))
            for measurer, where in order if index % 2 else reversed(order):
                measured[where] = _measure(measurer, there, graph, precision)
            rows.append(measured)
    return {"runtime": name, "precision": precision, **_summary(starts, rows)}


def _start(worker: Worker, precision: str) -> float:
    """Wall seconds until a fresh worker has its reference network, less those of a warm one."""
    worker.close()
    cold = Elapsed()
    worker.calibrate(precision)
    cold_s, warm = cold.wall_s, Elapsed()
    worker.calibrate(precision)
    return cold_s - warm.wall_s


def _measure(measurer: Measures, worker: Worker, graph: bytes, precision: str) -> dict[str, float]:
    elapsed, child_s = Elapsed(), _cpu_s(worker.pid)
    ratio = measurer.measure(graph, precision, 1.0).ratio
    return {
        "wall_s": elapsed.wall_s,
        "cpu_s": elapsed.cpu_s + _cpu_s(worker.pid) - child_s,
        "ratio": ratio,
    }


def _cpu_s(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _summary(starts: list[float], rows: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    def of(where: str, key: str) -> Any:
        return np.array([row[where][key] for row in rows])

    moved = {
        f"ratio_{name}_median": float(
            np.median(np.abs(of(where, "ratio") / of("here", "ratio") - 1))
        )
        for name, where in (("there_from_here", "there"), ("again_from_here", "again"))
    }
    bias = float(np.median(of("there", "ratio") / of("here", "ratio")) - 1)
    return {
        "start_s": round(float(np.median(starts)), 3),
        "here_wall_s": round(float(np.median(of("here", "wall_s"))), 3),
        "wall_overhead": round(
            float(np.median(of("there", "wall_s") / of("here", "wall_s")) - 1), 4
        ),
        "wall_noise": round(float(np.median(of("again", "wall_s") / of("here", "wall_s")) - 1), 4),
        "cpu_overhead": round(float(of("there", "cpu_s").sum() / of("here", "cpu_s").sum() - 1), 4),
        "cpu_noise": round(float(of("again", "cpu_s").sum() / of("here", "cpu_s").sum() - 1), 4),
        "ratio_bias": round(bias, 4),
        **{name: round(value, 4) for name, value in moved.items()},
    }


if __name__ == "__main__":
    main()
