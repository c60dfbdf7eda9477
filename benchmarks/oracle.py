"""How well are latencies predicted from a few measurements, and what does a search save by it?

Networks are drawn from the default space. `nas.latency.design.cover` chooses which of a pool are
measured, others are drawn for the test and measured several times, at different times: what a
network costs is the least of them, because neighbours on the machine only ever add time. What the
first of them says is scored too, as "single". A measurement that the fit finds suspiciously slow is
repeated, as a search would do.

A search is replayed on the tested networks in random order, under budgets that admit 20, 40 and
60 % of them: a candidate is measured (looked up) if the budget lies inside its interval, and the
predictor is fitted again. A decision is wrong if the network is on the other side of the budget
than its interval was.

Nothing in `nas` was chosen on these networks: their seed is used here only.

Run it as `python benchmarks/oracle.py` on a quiet machine, about 20 minutes; it writes
`benchmarks/results/oracle.json`, raw latencies included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from record import write_result
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nas import plugins
from nas.latency.clock import Elapsed
from nas.latency.design import cover
from nas.latency.features import FEATURES, latency_features
from nas.latency.hardware import Hardware
from nas.latency.meter import LatencyMeter
from nas.latency.parts import KnownParts
from nas.latency.predictor import COVERAGE, LatencyPredictor
from nas.latency.workload import Workload
from nas.searcher.latency_judge import untrained_onnx
from nas.space.architecture import Architecture
from nas.space.space import load_space

ENGINES = (("openvino", "bf16"), ("openvino", "int8"), ("onnxruntime", "fp32"))
SPACE, CLASSES = "digits", 10
SEED = 20261121
QUANTILES = (0.2, 0.4, 0.6)
ORDERS = 10
AIMS = {"mape": 0.04, "spearman": 0.985, "coverage": (0.90, 0.97), "share_measured": 0.25}

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Networks:
    """Those that are measured for the fit, then those that are tested."""

    graphs: tuple[bytes, ...]
    digests: tuple[str, ...]
    features: Values
    fitted: int
    cost: dict[str, float]


def main() -> None:
    """Measure, fit, test and replay; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=int, default=30, help="networks of the fit")
    parser.add_argument("--tested", type=int, default=200, help="networks of the test")
    parser.add_argument("--pool", type=int, default=300, help="networks that the fit's are of")
    parser.add_argument("--repeats", type=int, default=2, help="measurements of tested networks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = _networks(arguments.measured, arguments.tested, arguments.pool)
    engines = [_engine(*engine, networks, arguments.repeats) for engine in ENGINES]
    figures = {
        "space": SPACE,
        "measured": arguments.measured,
        "tested": arguments.tested,
        "pool": arguments.pool,
        "nominal_coverage": COVERAGE,
        "aims": AIMS,
        "cpu_ms_per_prediction": networks.cost | {"predict": _predict_ms(networks, engines[0])},
        "engines": engines,
        "digests": networks.digests,
    }
    _print(Console(width=140), engines)
    Console().print(figures["cpu_ms_per_prediction"])
    Console().print(f"Written to {write_result('oracle', figures)}")


def _networks(measured: int, tested: int, pool: int) -> Networks:
    """Draw different networks, and cover the pool; the rest are tested."""
    architectures = _drawn(pool + tested)
    elapsed = Elapsed()
    graphs = [untrained_onnx(one) for one in track(architectures, "exporting")]
    export_ms = 1e3 * elapsed.cpu_s / len(graphs)
    elapsed = Elapsed()
    workloads = [Workload.from_onnx(one) for one in graphs]
    features = np.array([latency_features(one) for one in workloads])
    cost = {"export": export_ms, "features": 1e3 * elapsed.cpu_s / len(graphs)}
    cost |= _without_export(architectures, workloads)
    kept = [*cover(features[:pool], measured), *range(pool, pool + tested)]
    return Networks(
        tuple(graphs[row] for row in kept),
        tuple(architectures[row].digest for row in kept),
        features[kept],
        measured,
        cost,
    )


def _without_export(
    architectures: Sequence[Architecture], workloads: Sequence[Workload]
) -> dict[str, float]:
    """Tell what adding up known parts costs, and how often it is enough in the second half."""
    parts, costs = KnownParts(), list[float]()
    for index, (one, workload) in enumerate(zip(architectures, workloads, strict=True)):
        elapsed = Elapsed()
        found = parts.find(one)
        if found is None:
            parts.learn(one, workload)
        elif index >= len(workloads) // 2:
            costs.append(elapsed.cpu_s)
            np.testing.assert_allclose(found, latency_features(workload))
    half = len(workloads) - len(workloads) // 2
    return {
        "features_of_known_parts": 1e3 * float(np.mean(costs)) if costs else 0.0,
        "share_of_known_parts_in_second_half": len(costs) / half,
    }


def _drawn(count: int) -> list[Architecture]:
    space, rng = load_space(SPACE), np.random.default_rng(SEED)
    found: dict[str, Architecture] = {}
    while len(found) < count:
        architecture = space.candidate(space.sample(rng), CLASSES).architecture
        found[architecture.digest] = architecture
    return list(found.values())


def _engine(runtime: str, precision: str, networks: Networks, repeats: int) -> dict[str, Any]:
    name = f"{runtime} {precision}"
    with LatencyMeter(
        Hardware.named("cpu"),
        plugins.load("runtimes", runtime)(),
        precisions=(precision,),
        isolated=True,
    ) as meter:

        def measure(row: int) -> tuple[float, float]:
            timing = meter.time(networks.graphs[row], precision)
            return timing.ms, timing.half_width

        fitted, half_widths, again = _measured_for_fit(measure, networks, name)
        rounds = [
            [measure(row) for row in track(_shuffled(networks, part), f"{name}: test {part + 1}")]
            for part in range(repeats)
        ]
    tests = np.empty((repeats, len(networks.graphs) - networks.fitted))
    for part, found in enumerate(rounds):
        order = np.array(_shuffled(networks, part)) - networks.fitted
        tests[part, order] = [ms for ms, _ in found]
        half_widths += [width for _, width in found]
    features = networks.features
    return {
        "engine": name,
        "repeated_for_the_fit": again,
        "noise": _noise(tests, half_widths),
        **_scores(features, fitted, tests),
        "raw": {"fit_ms": fitted.tolist(), "test_ms": tests.tolist()},
    }


def _shuffled(networks: Networks, part: int) -> list[int]:
    """Return the tested networks in an order of their own for each round."""
    rows = np.arange(networks.fitted, len(networks.graphs))
    return [int(row) for row in np.random.default_rng([SEED, part]).permutation(rows)]


def _measured_for_fit(
    measure: Callable[[int], tuple[float, float]], networks: Networks, name: str
) -> tuple[Values, list[float], int]:
    """Measure what was chosen, and once more what looks too slow beside the others."""
    found = [measure(row) for row in track(range(networks.fitted), f"{name}: fit")]
    ms = np.array([one for one, _ in found])
    predictor = LatencyPredictor.fit(networks.features[: networks.fitted], ms)
    suspects = predictor.leave_one_out().suspects
    for row in suspects:
        ms[row] = min(ms[row], measure(row)[0])
    return ms, [width for _, width in found], len(suspects)


def _noise(tests: Values, half_widths: Sequence[float]) -> dict[str, float]:
    """Say what a measurement is off by itself: two of one network, and what each says of itself."""
    slower = tests[0] / tests.min(axis=0) - 1
    return {
        "median_half_width": float(np.median(half_widths)),
        "mean_excess_of_single": float(slower.mean()),
        "p95_excess_of_single": float(np.quantile(slower, 0.95)),
        "largest_excess_of_single": float(slower.max()),
    }


def _scores(features: Values, fitted: Values, tests: Values) -> dict[str, Any]:
    known, asked = features[: len(fitted)], features[len(fitted) :]
    truth = tests.min(axis=0)
    predictor = LatencyPredictor.fit(known, fitted)
    figures = predictor.leave_one_out()
    return {
        "test": _errors(predictor, asked, truth),
        "test_single": _errors(predictor, asked, tests[0]),
        "leave_one_out": {
            name: getattr(figures, name) for name in ("mape", "median", "spearman", "coverage")
        },
        "random_choice": _random_choice(asked, truth, len(fitted)),
        "baselines": _baselines(known, fitted, asked, truth),
        "search": [_search(known, fitted, asked, truth, one) for one in QUANTILES],
    }


def _errors(predictor: LatencyPredictor, asked: Values, truth: Values) -> dict[str, float]:
    found = [predictor.predict(row) for row in asked]
    inside = [one.low_ms <= ms <= one.high_ms for one, ms in zip(found, truth, strict=True)]
    widths = [(one.high_ms - one.low_ms) / 2 / one.ms for one in found]
    return {
        **_point_errors(np.array([one.ms for one in found]), truth),
        "coverage": float(np.mean(inside)),
        "half_width": float(np.mean(widths)),
    }


def _point_errors(found: Values, truth: Values) -> dict[str, float]:
    errors = np.abs(found / truth - 1)
    return {
        "mape": float(errors.mean()),
        "median": float(np.median(errors)),
        "p95": float(np.quantile(errors, 0.95)),
        "largest": float(errors.max()),
        "spearman": float(spearmanr(found, truth).statistic),
    }


def _random_choice(features: Values, truth: Values, count: int) -> dict[str, float]:
    """Average what predictors of random tested networks get on the other tested ones."""
    rng, rows = np.random.default_rng(SEED), []
    if count >= len(truth) // 2:
        return {}
    for _ in range(2 * ORDERS):
        order = rng.permutation(len(truth))
        known, asked = order[:count], order[count:]
        predictor = LatencyPredictor.fit(features[known], truth[known])
        rows.append(_errors(predictor, features[asked], truth[asked]))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _baselines(known: Values, ms: Values, asked: Values, truth: Values) -> dict[str, Any]:
    """Regress logarithms on the multiplications alone, and on all features as they are."""
    columns = [name.endswith("_macs") and not name.endswith("_padded_macs") for name in FEATURES]
    macs, tested_macs = known[:, columns].sum(axis=1), asked[:, columns].sum(axis=1)
    slope, level = np.polyfit(np.log(macs), np.log(ms), 1)
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 25)))
    ridge.fit(known, np.log(ms))
    return {
        "macs": _point_errors(np.exp(level + slope * np.log(tested_macs)), truth),
        "ridge": _point_errors(np.exp(ridge.predict(asked)), truth),
    }


def _search(
    known: Values, ms: Values, asked: Values, truth: Values, quantile: float
) -> dict[str, Any]:
    """Replay a search in several orders."""
    budget = float(np.quantile(truth, quantile))
    runs = []
    for seed in range(ORDERS):
        order = np.random.default_rng([SEED, seed]).permutation(len(truth))
        runs.append(_replay(known, ms, asked[order], truth[order], budget))
    wrong = [miss for run in runs for miss in run[1]]
    decided = sum(len(truth) - run[0] for run in runs)
    return {
        "budget_ms": budget,
        "admitted": quantile,
        "share_measured": float(np.mean([run[0] for run in runs])) / len(truth),
        "share_wrong_of_decided": len(wrong) / max(1, decided),
        "largest_miss": max(wrong, default=0.0),
    }


def _replay(
    known: Values, ms: Values, asked: Values, truth: Values, budget: float
) -> tuple[int, list[float]]:
    """Return how many were measured, and how far off the budget wrongly decided ones were."""
    predictor, measured, wrong = LatencyPredictor.fit(known, ms), 0, []
    for row, true in zip(asked, truth, strict=True):
        found = predictor.predict(row)
        if found.low_ms <= budget < found.high_ms:
            known, ms = np.vstack([known, row]), np.append(ms, true)
            predictor = LatencyPredictor.fit(known, ms)
            measured += 1
        elif (found.high_ms <= budget) != (true <= budget):
            wrong.append(abs(float(true) / budget - 1))
    return measured, wrong


def _predict_ms(networks: Networks, engine: dict[str, Any]) -> float:
    ms = np.array(engine["raw"]["fit_ms"])
    predictor = LatencyPredictor.fit(networks.features[: networks.fitted], ms)
    elapsed = Elapsed()
    for row in networks.features:
        predictor.predict(row)
    return 1e3 * elapsed.cpu_s / len(networks.features)


def _print(console: Console, engines: Sequence[dict[str, Any]]) -> None:
    table = Table("engine", "of", "MAPE", "median", "Spearman", "coverage", "half-width", box=None)
    for engine in engines:
        rows = {
            "chosen": engine["test"],
            "chosen, single": engine["test_single"],
            "random": engine["random_choice"],
            **engine["baselines"],
        }
        for name, row in rows.items():
            percents = (row.get(key) for key in ("mape", "median"))
            shown = ["" if one is None else f"{one:.2%}" for one in percents]
            rank = f"{row['spearman']:.4f}" if row else ""
            more = [f"{row[key]:.1%}" if key in row else "" for key in ("coverage", "half_width")]
            table.add_row(engine["engine"], name, *shown, rank, *more)
    console.print(table)
    searches = Table("engine", "budget admits", "measured", "wrong of decided", "by", box=None)
    for engine in engines:
        for row in engine["search"]:
            shares = [row[key] for key in ("share_measured", "share_wrong_of_decided")]
            texts = [f"{one:.1%}" for one in (row["admitted"], *shares, row["largest_miss"])]
            searches.add_row(engine["engine"], *texts)
        console.print(engine["engine"], engine["noise"], engine["repeated_for_the_fit"])
    console.print(searches)


if __name__ == "__main__":
    main()
