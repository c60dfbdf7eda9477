"""The shipped YOLOBench is whole, and its reader names its columns."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/yolobench.py"


@pytest.fixture(scope="module")
def yolobench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("yolobench", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_yolobench__is_a_full_grid_of_architectures_and_inputs(yolobench: ModuleType) -> None:
    table = yolobench.load_yolobench()
    assert table.index.is_unique
    grid = table.groupby(["arch", "input_size"]).size().unstack()
    assert grid.shape == (52, 11)
    assert (grid == 1).all(axis=None)


def test_yolobench__has_every_latency_and_accuracy(yolobench: ModuleType) -> None:
    table = yolobench.load_yolobench()
    assert (table[list(yolobench.LATENCIES.values())] > 0).all(axis=None)
    accuracy = table[list(yolobench.ACCURACIES.values())]
    assert ((accuracy > 0) & (accuracy < 1)).all(axis=None)


def test_yolobench__is_packaged_with_its_attribution(yolobench: ModuleType) -> None:
    folder = resources.files("nas.measurements")
    shipped = folder.joinpath(yolobench.PATH.name).read_bytes()
    assert shipped == yolobench.PATH.read_bytes()
    assert yolobench.PATH.name in folder.joinpath("ATTRIBUTION.md").read_text(encoding="utf-8")
