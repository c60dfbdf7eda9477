"""Tables of networks that others trained and timed, as spaces of choices.

Dimension letters: n networks, d choices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from yolobench import ACCURACIES, LATENCIES, load_yolobench

Values = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]

# What the letters of YOLOv5 and v8 stand for; the files of YOLOBench fill their grids with them.
_LETTERS = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1.0, 1.0)}
_NB201_LATENCIES = {
    "gtx_1080ti": "help_1080ti_1_ms",
    "pi4": "help_raspi4_ms",
    "i7": "eagle_i7_7820x_fp32_ms",
    "tx2_tensorrt": "oneproxy_hwnb_edgegpu_jetsontx2_trt_ms",
}
_NB201_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# Multiplications of a cell's edge, in those of a 1x1 convolution; all else is equal everywhere.
_NB201_MACS = {"nor_conv_1x1": 1.0, "nor_conv_3x3": 9.0}


@dataclass(frozen=True)
class Choice:
    """What may be chosen: options in ascending order, or without any order."""

    name: str
    options: tuple[str | float, ...]
    ordered: bool


@dataclass(frozen=True, eq=False)
class Table:
    """Networks, one a row.

    Args:
        name: of the data.
        choices: d of them.
        codes: (n, d) index of every row's option; no two rows are equal.
        accuracy: (n,) in points, 0..100.
        latency_ms: (n,) by device; NaN where nobody measured.
        macs: (n,) up to a factor.
    """

    name: str
    choices: tuple[Choice, ...]
    codes: Indices
    accuracy: Values
    latency_ms: dict[str, Values]
    macs: Values

    @cached_property
    def rows(self) -> dict[tuple[int, ...], int]:
        """Codes of a network -> its row."""
        return {tuple(code): row for row, code in enumerate(self.codes.tolist())}

    def select(self, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> Table:
        """Return the table of some of the rows, renumbered."""
        latency = {device: values[keep] for device, values in self.latency_ms.items()}
        codes, accuracy, macs = self.codes[keep], self.accuracy[keep], self.macs[keep]
        return Table(self.name, self.choices, codes, accuracy, latency, macs)


def yolobench(data_set: str) -> Table:
    """Read YOLOBench with the accuracy of one data set, in mAP points.

    Depth .60 of YOLOv6 and .67 of the others are one option. Letters are read as depth and width
    like those of YOLOv5 and v8, for YOLOv7 too, whose networks are no multiples of each other.
    Multiplications are not in the file: they are taken as depth x width^2 x input^2.

    Args:
        data_set: `voc` or `coco`.
    """
    data = load_yolobench()
    letters = data["size_letter"].map(_LETTERS)
    depth = data["depth_mult"].fillna(letters.str[0]).replace(0.6, 0.67).astype(float)
    width = data["width_mult"].fillna(letters.str[1]).astype(float)
    side = data["input_size"].astype(float)
    columns = {"family": data["family"], "depth": depth, "width": width, "input": side}
    choices, codes = _encode(columns)
    return Table(
        f"yolobench_{data_set}",
        choices,
        codes,
        100.0 * data[ACCURACIES[data_set]].to_numpy(float),
        {device: data[column].to_numpy(float) for device, column in LATENCIES.items()},
        np.asarray(depth * width**2 * side**2, dtype=np.float64),
    )


def nas_bench_201(path: Path) -> Table:
    """Read NAS-Bench-201 with the test accuracy on CIFAR-10 after 200 epochs, in points.

    The file is a table with the columns `arch_str`, `cifar10_test_acc_200ep` and one of latency for
    each device, as CSV or, with `pip install pyarrow`, as parquet.
    """
    data = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    edges = [re.findall(r"(\w+)~\d", text) for text in data["arch_str"]]
    codes = np.array([[_NB201_OPERATIONS.index(name) for name in row] for row in edges])
    weights = np.array([_NB201_MACS.get(name, 0.0) for name in _NB201_OPERATIONS])
    return Table(
        "nb201_cifar10",
        tuple(Choice(f"edge_{i}", _NB201_OPERATIONS, ordered=False) for i in range(6)),
        codes,
        data["cifar10_test_acc_200ep"].to_numpy(float),
        {name: data[column].to_numpy(float) for name, column in _NB201_LATENCIES.items()},
        weights[codes].sum(axis=1),
    )


def _encode(columns: dict[str, pd.Series[Any]]) -> tuple[tuple[Choice, ...], Indices]:
    choices, codes = [], []
    for name, column in columns.items():
        options = sorted(column.unique())
        choices.append(Choice(name, tuple(options), ordered=column.dtype == float))
        codes.append([options.index(value) for value in column])
    return tuple(choices), np.array(codes, dtype=np.intp).T
