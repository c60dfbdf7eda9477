"""The benchmarks of supernets: what they compare with, and at which cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.errors import InputError
from nas.space.space import load_space

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import inherited
        import ranking
        import supernet_sampling

        parts = (inherited, ranking, supernet_sampling)
        yield SimpleNamespace(**{part.__name__: part for part in parts})
    for name in {"record", "inherited", "ranking", "supernet_sampling"} - before:
        sys.modules.pop(name, None)


def _networks(count: int) -> list[dict[str, Any]]:
    space = load_space("digits")
    points = [space.anchors["min"], *space.neighbours(space.anchors["min"])][:count]
    return [
        {
            "architecture": space.candidate(point, 10).architecture.canonical(),
            "latency_ms": 1.0 + 0.05 * number,
            "macs": 100 * 2**number,
            "parameters": 10 + number,
        }
        for number, point in enumerate(points)
    ]


def _run(number: int, seed: int) -> dict[str, float]:
    return {"validation": 0.1 * number + 0.01 * seed, "test": 0.1 * number, "cpu_s": 1.0}


def test_references__of_a_benchmark_that_still_runs(scripts: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scripts.inherited.References.read(tmp_path)
    (tmp_path / "networks.json").write_text(json.dumps(_networks(4)))
    with pytest.raises(InputError, match="no reference yet"):
        scripts.inherited.References.read(tmp_path)
    for number, seed in [(0, 0), (0, 1), (1, 0), (3, 0)]:
        (tmp_path / f"{number}-{seed}.json").write_text(json.dumps(_run(number, seed)))
    found = scripts.inherited.References.read(tmp_path)
    assert found.latencies_ms.tolist() == pytest.approx([1.0, 1.05, 1.15])
    assert found.validation.ravel() == pytest.approx([0.0, 0.1, 0.3])


def test_references__of_its_result_file(scripts: Any, tmp_path: Path) -> None:
    networks = [
        {**one, "runs": [_run(number, 0), _run(number, 1)]}
        for number, one in enumerate(_networks(5))
    ]
    path = tmp_path / "stand_alone.json"
    path.write_text(json.dumps({"networks": networks}))
    found = scripts.inherited.References.read(path)
    assert found.validation.shape == found.test.shape == (5, 2)
    compared = scripts.ranking._compared(found.macs, found)
    assert compared["validation"]["tau"]["value"] == 1
    assert compared["test"]["regret_points"] == pytest.approx([0] * 6)
    ceiling = scripts.ranking._ceiling(found)
    assert ceiling["tau"]["value"] == ceiling["tau_in_windows"]["value"] == 1
    worst = scripts.ranking._compared(-found.macs, found)
    assert worst["validation"]["tau"]["value"] == -1
    assert np.max(worst["test"]["regret_points"]) == pytest.approx(40)


@pytest.mark.parametrize("steps", [600, 1200])
def test_rules__cost_the_same(scripts: Any, steps: int) -> None:
    benchmark = scripts.supernet_sampling
    for options in benchmark.RULES.values():
        iterations = benchmark._iterations(options, steps)
        each = 1.0 if options["rule"] == "uniform" else benchmark.SANDWICH_STEPS
        warmup, apart = options["largest_only"], options["apart"]
        cost = iterations * (warmup + (1 - warmup + apart) * each)
        assert cost == pytest.approx(steps, abs=2)
