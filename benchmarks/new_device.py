"""How well are latencies of a new device known after 20 measurements there?

YOLOBench: each of its four devices in turn is new, the other three are known. What is measured on
the new one is chosen without looking at it (`nas.latency.transfer.choose`); all other networks are
the test. Beside it stand a plain ridge regression of logarithms, on the same networks and on random
ones, and the same with one known device only, where `nas.latency.predictor` with a prior stands
beside it. Since one choice is one draw of luck, everything is repeated on random halves of the
networks.

What is not blind: the model's form and the medians of its priors were chosen on Raspberry Pi 4 as
the new device, on TensorRT times of four GPUs and on NAS-Bench-201 (neither of which ships), so
Raspberry Pi 4 is no evidence. Jetson Nano, A40 and OpenVINO were looked at while the form was
chosen, and the term that bends in one feature was thought of at the sight of Jetson Nano's step
between input sizes of 256 and 288. Variants that were better on them were seen (4.99 % on Jetson
Nano with that term always there), and not taken: what was taken is what was best on the others.
The features are architecture family, multiples and input size, and products of them; YOLOBench has
no graphs. Only four of its six devices ship, so three are known, not five.

Data: `measurements/yolobench_572.csv`. Takes about two minutes of CPU. Run it as
`python benchmarks/new_device.py`; it writes `benchmarks/results/new_device.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from record import write_result
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from yolobench import LATENCIES, load_yolobench

from nas.latency.predictor import LatencyPredictor
from nas.latency.transfer import TransferPredictor, choose

COUNTS = (10, 20, 40)
REPEATED = (10, 20)
SEEDS = 40
# The letters of YOLO families, as multiples of depth and width.
LETTERS = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1.0, 1.0)}

Values = np.ndarray[Any, np.dtype[np.float64]]
# features and latencies of what is known, rows measured -> latencies of all, with intervals or not
Method = Callable[[Values, Values, Values, Sequence[int]], Sequence[Values]]


def main() -> None:
    """Measure 10, 20 and 40 networks of each device, and write how far off the others are."""
    table = load_yolobench()
    features = features_of(table)
    figures: dict[str, Any] = {"devices": {}, "one_known_device": {}}
    for device, column in LATENCIES.items():
        others = [name for name in LATENCIES.values() if name != column]
        sources, ms = table[others].to_numpy(), table[column].to_numpy()
        figures["devices"][device] = {
            str(count): _figures(features, sources, ms, count, table.index) for count in COUNTS
        }
        figures["one_known_device"][device] = {
            known: _one_known(features, table[[other]].to_numpy(), ms)
            for known, other in LATENCIES.items()
            if known != device
        }
    path = write_result("new_device", figures)
    Console(width=130).print(_table(figures["devices"]), f"Written to {path}")


def features_of(table: pd.DataFrame) -> Values:
    """Return what is known of every network without its graph, (N, F), amounts as logarithms."""
    letters = table["size_letter"].map(LETTERS)
    depth = table["depth_mult"].fillna(letters.str[0]).to_numpy(np.float64)
    width = table["width_mult"].fillna(letters.str[1]).to_numpy(np.float64)
    side = table["input_size"].to_numpy(np.float64)
    amounts = [
        depth,
        width,
        side,
        side**2 * width**2 * depth,
        side**2 * width,
        # How much larger the input is if the coarsest map has a side of whole pairs, or fours.
        np.ceil(side / 64) * 64 / side,
        np.ceil(side / 128) * 128 / side,
    ]
    families = pd.get_dummies(table["family"]).to_numpy(np.float64)
    return np.column_stack([np.log(np.array(amounts).T), families])


def _transfer(features: Values, sources: Values, ms: Values, rows: Sequence[int]) -> list[Values]:
    model = TransferPredictor.fit(features[rows], sources[rows], ms[rows])
    return list(model.predict(features, sources))


def _ridge(features: Values, sources: Values, ms: Values, rows: Sequence[int]) -> list[Values]:
    columns = np.column_stack([np.log(sources), features])
    model = make_pipeline(StandardScaler(), Ridge(alpha=0.1))
    return [np.exp(model.fit(columns[rows], np.log(ms[rows])).predict(columns))]


def _ridge_sources(
    features: Values, sources: Values, ms: Values, rows: Sequence[int]
) -> list[Values]:
    return _ridge(features[:, :0], sources, ms, rows)


def _costs(features: Values, sources: Values, ms: Values, rows: Sequence[int]) -> list[Values]:
    """Predict by `LatencyPredictor`, whose features are amounts: the source is one of them."""
    amounts = np.column_stack([np.exp(features), sources])
    model = LatencyPredictor.fit(amounts[rows], ms[rows])
    found = [model.predict(row) for row in amounts]
    return [np.array([getattr(one, end) for one in found]) for end in ("ms", "low_ms", "high_ms")]


METHODS: dict[str, Method] = {
    "transfer": _transfer,
    "ridge": _ridge,
    "ridge_sources": _ridge_sources,
}


def _figures(
    features: Values, sources: Values, ms: Values, count: int, names: pd.Index
) -> dict[str, Any]:
    chosen = choose(features, sources, count)
    found: dict[str, Any] = {"chosen": names[chosen].tolist()}
    for name, method in METHODS.items():
        found[name] = {"chosen": _score(method(features, sources, ms, chosen), ms, chosen)}
        if count in REPEATED:
            for how in ("random", "chosen_of_random_halves"):
                found[name][how] = _repeated(method, features, sources, ms, count, how)
    return found


def _repeated(
    method: Method, features: Values, sources: Values, ms: Values, count: int, how: str
) -> dict[str, float]:
    """Return means over seeds, and the standard deviation of the median error."""
    scores, halves = [], how != "random"
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(ms))
        pool = np.sort(order[: len(ms) // 2]) if halves else np.arange(len(ms))
        part = features[pool], sources[pool], ms[pool]
        rows = choose(*part[:2], count) if halves else order[:count].tolist()
        scores.append(_score(method(*part, rows), part[2], rows))
    table = pd.DataFrame(scores)
    return {**table.mean().to_dict(), "median_error_sd": float(table["median_error"].std())}


def _one_known(features: Values, sources: Values, ms: Values) -> dict[str, Any]:
    chosen = choose(features, sources, 20)
    methods = {"transfer": _transfer, "ridge": _ridge, "predictor_with_source": _costs}
    return {
        name: _score(method(features, sources, ms, chosen), ms, chosen)
        for name, method in methods.items()
    }


def _score(found: Sequence[Values], ms: Values, rows: Sequence[int]) -> dict[str, float]:
    """Score what was not measured."""
    rest = np.setdiff1d(np.arange(len(ms)), rows)
    predicted, truth = found[0][rest], ms[rest]
    error = np.abs(predicted / truth - 1)
    scores = {
        "median_error": float(np.median(error)),
        "mean_error": float(error.mean()),
        "within_10_percent": float((error <= 0.1).mean()),
        "spearman": float(spearmanr(predicted, truth).statistic),
    }
    if len(found) == 3:
        low, high = found[1][rest], found[2][rest]
        scores["coverage"] = float(((low <= truth) & (truth <= high)).mean())
        scores["median_half_width"] = float(np.median(np.sqrt(high / low) - 1))
    return scores


def _table(devices: dict[str, Any]) -> Table:
    columns = ("device", "measured", "networks", *METHODS, "rho", "within 10 %", "covered")
    table = Table(*columns, title="Median error; the last three columns are those of transfer")
    for device, counts in devices.items():
        for count, figures in counts.items():
            for how, own in figures["transfer"].items():
                table.add_row(
                    *(device, count, how),
                    *(f"{figures[name][how]['median_error']:.1%}" for name in METHODS),
                    f"{own['spearman']:.3f}",
                    f"{own['within_10_percent']:.0%}",
                    f"{own['coverage']:.0%}",
                )
    return table


if __name__ == "__main__":
    main()
