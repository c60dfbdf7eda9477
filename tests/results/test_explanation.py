from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from nas.errors import StorageError, StudyError
from nas.results.explanation import (
    Explanation,
    explanation_figure,
    explanation_table,
    write_explanation,
)
from nas.searcher.importance import explain
from nas.searcher.importance_sample import Sample

CHOICES = {"small": (1, 2), "input": (64, 80, 96), "idle": ("[a]", "b"), "cost": (0, 1)}


def _explanation(n: int = 80, scored: int = 80, *, joint: float = 0.0) -> Explanation:
    """Input brings 4 points a step, small brings 1; cost takes a third more time."""
    generator = np.random.default_rng(0)
    codes = np.stack([generator.integers(0, len(one), n) for one in CHOICES.values()], axis=1)
    accuracy = 0.3 + 0.01 * codes[:, 0] + 0.04 * codes[:, 1] + generator.normal(0, 0.005, n)
    accuracy += joint * codes[:, 0] * codes[:, 1]
    accuracy[scored:] = np.nan
    latency_ms = np.exp(0.3 * codes[:, 3] + generator.normal(0, 0.05, n))
    sources = {"measured": n - 1, "predicted": 1}
    return Explanation(explain("s", Sample(CHOICES, codes, accuracy, latency_ms, sources)))


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return _explanation()


def _printed(explanation: Explanation) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(explanation_table(explanation))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table__the_choice_that_moves_map_most_comes_first(explanation: Explanation) -> None:
    assert list(dict.fromkeys(explanation.table["choice"]))[:2] == ["input", "small"]
    inputs = explanation.table[explanation.table["choice"] == "input"]
    assert inputs["option"].tolist() == ["64", "80", "96"]
    steps = inputs["map_effect"].diff().dropna()
    assert steps.tolist() == pytest.approx([4, 4], abs=0.5)  # points


def test_table__adjusted_p_values_are_no_smaller(explanation: Explanation) -> None:
    table = explanation.table
    assert (table["map_p_holm"] >= table["map_p"]).all()
    assert table.loc[table["choice"] == "cost", "latency_p_holm"].max() < 0.05


def test_printed__signed_effects_with_intervals_and_what_cannot_be_told(
    explanation: Explanation,
) -> None:
    text = _printed(explanation)
    assert re.search(r"input +64 +\d+ / \d+ +-\d\.\d\d \[-\d\.\d\d, -\d\.\d\d\] +\d\d % \[", text)
    idle = next(line for line in text.splitlines() if line.lstrip().startswith("idle"))
    assert "[a]" in idle  # a label is no markup
    assert idle.count("cannot be told from 0") == 2
    for words in ("80 candidates", "79 measured, 1 predicted", "left out 0.9", "none of 6 pairs"):
        assert words in text


def test_printed__names_a_pair_that_acts_together() -> None:
    text = " ".join(_printed(_explanation(joint=0.02)).split())
    assert re.search(r"sum of effects: small x input \(\+[34]\.?\d* points from smallest", text)


def test_printed__says_how_many_are_missing() -> None:
    text = " ".join(_printed(_explanation(scored=6)).split())
    assert "mAP50-95: Too few candidates: 6 with an accuracy" in text
    assert "10 or 11" in text
    assert "latency, % [95 %]" in text


def test_printed__nothing_at_all_is_said_too() -> None:
    explanation = _explanation(6)
    text = " ".join(_printed(explanation).split())
    assert text.count("Too few candidates") == 2
    assert explanation.table.empty


def test_figure__draws_both_effects_of_every_option_with_intervals(
    explanation: Explanation,
) -> None:
    figure = explanation_figure(explanation)
    by_name = {trace.name: trace for trace in figure.data if trace.name}
    assert set(by_name) == {"input", "small", "cost", "idle (cannot be told from 0)"}
    rows = explanation.table[explanation.table["choice"] == "input"]
    path = by_name["input"]
    assert list(path.x) == rows["latency_effect"].tolist()
    assert list(path.y) == rows["map_effect"].tolist()
    assert list(path.error_y.array) == (rows["map_high"] - rows["map_effect"]).tolist()
    dots = [trace for trace in figure.data if not trace.name]
    assert sum(len(trace.x) for trace in dots) == 2 * len(explanation.table)
    assert "left out" in figure.layout.title.subtitle.text


def test_figure__no_two_names_cover_each_other() -> None:
    """Many choices that move little lie on one spot; the one that moves most keeps its name."""
    generator = np.random.default_rng(1)
    choices = {"big": (1, 2), **{f"small{i}": (1, 2) for i in range(6)}}
    codes = np.stack([generator.integers(0, 2, 120) for _ in choices], axis=1)
    accuracy = 0.3 + 0.2 * codes[:, 0] + 0.004 * codes[:, 1:].sum(axis=1)
    latency_ms = np.exp(0.8 * codes[:, 0] + 0.01 * codes[:, 1:].sum(axis=1))
    noise = generator.normal(0, 1e-4, 120)
    sample = Sample(choices, codes, accuracy + noise, latency_ms * (1 + noise), {"measured": 120})
    figure = explanation_figure(Explanation(explain("s", sample)))
    paths = [trace for trace in figure.data if trace.text]
    drawn = [one for path in paths for one in zip(path.text, path.x, path.y, strict=True)]
    named = [one for one in drawn if one[0]]
    assert any(name.startswith("big") for name, _, _ in named)
    spans = [np.ptp([float(one[axis]) for one in drawn]) for axis in (1, 2)]
    for index, one in enumerate(named):
        for other in named[:index]:
            apart = [abs(one[axis] - other[axis]) / spans[axis - 1] for axis in (1, 2)]
            assert apart[0] > 0.1 or apart[1] > 0.03
    assert 1 <= len(named) < 7


def test_write__figure_and_table_side_by_side(explanation: Explanation, tmp_path: Path) -> None:
    paths = write_explanation(explanation, tmp_path / "deep" / "explain.html")
    assert [path.name for path in paths] == ["explain.html", "explain.csv"]
    table = pd.read_csv(paths[1])
    assert table["map_effect"].tolist() == pytest.approx(explanation.table["map_effect"].tolist())


def test_write__the_name_of_the_table_is_not_overwritten(
    explanation: Explanation, tmp_path: Path
) -> None:
    figure, table = write_explanation(explanation, tmp_path / "effects.csv")
    assert figure.name == "effects.csv.html"
    assert table.name == "effects.csv.csv"


def test_write__what_can_be_told(tmp_path: Path) -> None:
    path = tmp_path / "explain.html"
    with pytest.raises(StudyError, match="6 with an accuracy"):
        explanation_figure(_explanation(scored=6))
    names = [one.name for one in write_explanation(_explanation(scored=6), path)]
    assert names == ["explain.csv"]
    assert write_explanation(_explanation(6), path) == []


def test_write__says_where_it_failed(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"explain\.csv"):
        write_explanation(explanation, tmp_path / "file" / "explain.html")
