"""How far off is the estimated latency of a device that nobody measured?

Every device is left out in turn: the law is fitted, and everything that is chosen is chosen, on
the others (`nas.latency.estimator`), then the device that was left out is estimated from its data
sheet. RTX 3080 Ti and 3090 have one chip, so leaving out either of them is easy; leaving out whole
chips is the honest test, and intervals come from it. Beside the estimator stand its law without the
correction and before any fit, the plain roofline of the data sheet and multiplications alone, the
latter two with one factor fitted to the other devices.

What is not blind: somebody who had seen all of these devices chose the shape of the law (its power
term because T4 came out too fast without; the exponent of that is from FP32 products on V100, A100,
H100 and L4), then added the correction, then widened the grid of strengths.

Data: `measurements/tensorrt_fp16.csv`, networks built from the shipped spaces. Takes about 40 s of
CPU, most of it exporting graphs. Run it as `python benchmarks/estimate.py`; it writes
`benchmarks/results/estimate.json`, and with `--write` the estimator that ships,
`measurements/estimator.json`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from record import write_result
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from nas.latency.estimator import Estimator, fit_estimator
from nas.latency.hardware import Hardware
from nas.latency.onnx_export import export_onnx
from nas.latency.roofline import DevicePeaks, Roofline, Sample
from nas.latency.workload import Workload
from nas.model.detector import Detector, profile
from nas.space.architecture import Architecture
from nas.space.space import load_space

MEASUREMENTS = Path(__file__).parents[1] / "measurements"
DATA = MEASUREMENTS / "tensorrt_fp16.csv"
# Published beside engines of a dynamic batch, timed from Python: nothing is fitted to these.
CHECKS = (("orin-nx", "yolov8n", 3.19), ("rtx-3060", "yolov8n", 1.43))
METHODS = ("estimator", "law_alone", "unfitted", "roofline", "macs")

Predictor = Callable[[Sample], float]
Values = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    """Leave out every device and every chip, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the estimator that ships")
    arguments = parser.parse_args()
    console = Console(width=130)
    rows = pd.read_csv(DATA)
    rows["sample"] = [_sample(row) for row in rows.itertuples()]
    figures = {
        "networks": _networks(rows),
        "left_out_device": _left_out(rows, "device"),
        "left_out_chip": _left_out(rows, "chip"),
    }
    estimator = fit_estimator(rows["sample"].tolist(), _provenance(rows))
    figures["estimator"] = json.loads(estimator.model_dump_json())
    figures["checks"] = [_check(estimator, *check) for check in CHECKS]
    for name in ("left_out_device", "left_out_chip"):
        console.print(_table(name, figures[name]))
    console.print(figures["checks"])
    path = write_result("estimate", figures)
    console.print(f"Written to {path}")
    if arguments.write:
        _ship(estimator, json.loads(path.read_text()))


def _ship(estimator: Estimator, result: dict[str, Any]) -> None:
    made = {key: result[key] for key in ("commit", "changed_since", "created")}
    update = {"provenance": {**estimator.provenance, **made}}
    text = estimator.model_copy(update=update).model_dump_json(indent=1) + "\n"
    (MEASUREMENTS / "estimator.json").write_text(text)


@functools.cache
def _architecture(space: str, network: str, side: int) -> Architecture:
    found = load_space(space)
    return found.candidate(found.anchors[network], 80).architecture.at_input((side, side))


@functools.cache
def _workload(space: str, network: str, side: int) -> Workload:
    detector = Detector(_architecture(space, network, side)).deploy()
    return Workload.from_onnx(export_onnx(detector, side, side))


@functools.cache
def _peaks(device: str) -> DevicePeaks:
    return DevicePeaks.of(Hardware.named(device))


def _sample(row: Any) -> Sample:
    workload = _workload(row.space, row.network, row.input)
    return Sample(workload, _peaks(row.device), row.chip, row.ms)


def _networks(rows: pd.DataFrame) -> dict[str, Any]:
    """Say what was built; parameters and MACs are those that their authors published."""
    found = {}
    for row in rows.drop_duplicates(["space", "network"]).itertuples():
        counted = profile(_architecture(row.space, row.network, 640))
        found[f"{row.space}:{row.network}"] = {
            "parameters_m": round(counted.parameters / 1e6, 2),
            "gflops_at_640": round(2e-9 * counted.macs, 1),
        }
    return found


def _provenance(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "data": DATA.name,
        "data_sha256": hashlib.sha256(DATA.read_bytes()).hexdigest(),
        "devices": {name: _peaks(name).model_dump() for name in rows["device"].unique()},
    }


def _left_out(rows: pd.DataFrame, by: str) -> dict[str, Any]:
    """Estimate what was left out, and score it device by device and all together."""
    parts = [_estimated(rows, by, name) for name in rows[by].unique()]
    table = pd.concat([part for part, _ in parts])
    scores = {device: _scores(part) for device, part in table.groupby("device")}
    for name, (_, estimator) in zip(rows[by].unique(), parts, strict=True):
        for device in rows.loc[rows[by] == name, "device"].unique():
            setting = estimator.provenance["setting"]
            scores[device] |= {"margin": estimator.margin, "setting": setting}
    t4 = table[table["device"] == "t4"]
    return {
        "devices": scores,
        "all": _scores(table),
        "t4_by_source": {source: _scores(part) for source, part in t4.groupby("source")},
    }


def _estimated(rows: pd.DataFrame, by: str, name: str) -> tuple[pd.DataFrame, Estimator]:
    known = rows.loc[rows[by] != name, "sample"].tolist()
    asked = rows[rows[by] == name].copy()
    estimator = fit_estimator(known, {})
    law = estimator.roofline
    fitted = [estimator.estimate(one.workload, one.peaks) for one in asked["sample"]]
    asked["estimator"] = [one.ms for one in fitted]
    asked["covered"] = [
        one.low_ms <= ms <= one.high_ms for one, ms in zip(fitted, asked["ms"], strict=True)
    ]
    # The widening of what lies outside of the fitted ranges is a rule: score the interval without.
    off = np.abs(np.log(asked["estimator"] / asked["ms"]))
    asked["covered_unwidened"] = off <= estimator.margin
    predictors: dict[str, Predictor] = {
        "law_alone": lambda one: law.milliseconds(one.workload, one.peaks),
        "unfitted": lambda one: Roofline().milliseconds(one.workload, one.peaks),
        "roofline": _scaled(_plain_roofline, known),
        "macs": _scaled(lambda one: one.workload.macs / one.peaks.fp16_tflops, known),
    }
    for title, predictor in predictors.items():
        asked[title] = [predictor(one) for one in asked["sample"]]
    return asked, estimator


def _plain_roofline(sample: Sample) -> float:
    """Sum the larger of compute and memory time of every layer, at the peaks of the data sheet."""
    peaks = sample.peaks
    return sum(
        max(
            2e-9 * layer.macs / peaks.fp16_tflops,
            2e-6 * (layer.reads + layer.writes + layer.weights) / peaks.bandwidth_gbs,
        )
        for layer in sample.workload.layers
    )


def _scaled(predictor: Predictor, known: Sequence[Sample]) -> Predictor:
    """Multiply by the factor that is right for the median chip of the others."""
    errors = [np.log(one.ms / predictor(one)) for one in known]
    by_chip = pd.Series(errors).groupby([one.chip for one in known]).median()
    factor = float(np.exp(by_chip.median()))
    return lambda one: factor * predictor(one)


def _scores(table: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rows": len(table),
        "coverage": float(table["covered"].mean()),
        "coverage_unwidened": float(table["covered_unwidened"].mean()),
    }
    for name in METHODS:
        error = table[name] / table["ms"] - 1
        found[name] = {
            "median_error": float(error.abs().median()),
            "bias": float(error.median()),
            "worst": float(error.abs().max()),
            "spearman": float(spearmanr(table[name], table["ms"]).statistic),
        }
    return found


def _check(estimator: Estimator, device: str, network: str, ms: float) -> dict[str, Any]:
    found = estimator.estimate(_workload("hsv_det", network, 640), _peaks(device))
    return {
        "device": device,
        "network": network,
        "published_ms": ms,
        "estimated_ms": found.ms,
        "interval": [found.low_ms, found.high_ms],
        "outside": found.outside,
    }


def _table(title: str, figures: dict[str, Any]) -> Table:
    table = Table(
        *("device", "rows", "estimator: median, bias, worst, rho", "covered", *METHODS[1:]),
        title=title,
    )
    groups = {**figures["devices"], "all": figures["all"], **figures["t4_by_source"]}
    for name, one in groups.items():
        own = one["estimator"]
        table.add_row(
            name,
            str(one["rows"]),
            f"{own['median_error']:.1%} {own['bias']:+.1%} {own['worst']:.0%} "
            f"{own['spearman']:.3f}",
            f"{one['coverage_unwidened']:.0%} {one['coverage']:.0%}",
            *(
                f"{one[kind]['median_error']:.1%} {one[kind]['spearman']:.3f}"
                for kind in METHODS[1:]
            ),
        )
    return table


if __name__ == "__main__":
    main()
