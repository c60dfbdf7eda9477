"""Was the search worth it: differences with intervals, and what is said about them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from nas.results.ablation import Estimate
from nas.results.worth import (
    Rival,
    Worth,
    worth_section,
    worth_table,
    write_worth,
)

UNKNOWN = Estimate(0.6)


def rival(name: str, low: float, value: float, high: float, *, same: bool = False) -> Rival:
    known = Estimate(0.6, 0.58, 0.62)
    gain = Estimate(value, low, high)
    return Rival(name, "0" * 16, "fp32", "inherited", 0.3, 0.31, True, known, UNKNOWN, gain, same)


def worth(*rivals: Rival) -> Worth:
    return Worth(
        study="s",
        budget_ms=0.4,
        confidence=0.99,
        split="test",
        images=300,
        seeds=(0, 1, 2),
        iterations=300,
        delivered_seed=1,
        delivered=Estimate(0.61, 0.6, 0.62),
        winner=rival("trial 7", 0, 0, 0, same=True),
        rivals=rivals,
        seconds={"supernet": None, "search": 60.0},
    )


BEATEN = rival("random search", 0.01, 0.02, 0.03)
EQUAL = rival("most MACs that fits", -0.004, 0.002, 0.009)
AHEAD = rival("uniform scaling", -0.03, -0.02, -0.01)
OVER = dataclasses.replace(AHEAD, name="max", keeps=False)
SAME = rival("slowest that fits", 0, 0, 0, same=True)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (BEATEN, "The winner beats random search: +2.0 [+1.0, +3.0] mAP points."),
        (
            EQUAL,
            "The winner is as good as most MACs that fits, as far as was seen: +0.2 [-0.4, +0.9]",
        ),
        (AHEAD, "The winner loses to uniform scaling: -2.0 [-3.0, -1.0] mAP points."),
        (SAME, "The winner is the same network as slowest that fits."),
    ],
)
def test_sentence__says_plainly_who_is_better(one: Rival, words: str) -> None:
    assert one.sentence.startswith(words)


@pytest.mark.parametrize(
    ("rivals", "words"),
    [
        ((BEATEN,), "Yes: the winner beats random search."),
        (
            (BEATEN, EQUAL),
            "Not for accuracy alone: as far as was seen, the winner is no better than most",
        ),
        (
            (SAME, EQUAL),
            "No gain was seen: the winner is no better, as far as was seen, than slowest",
        ),
        ((BEATEN, EQUAL, AHEAD), "No: uniform scaling did better"),
        ((BEATEN, OVER), "Yes: the winner beats random search."),
        ((OVER,), "Nothing that keeps the budget was compared"),
        ((), "Nothing that keeps the budget was compared"),
    ],
)
def test_answer__is_as_good_as_the_strongest_rival(rivals: tuple[Rival, ...], words: str) -> None:
    assert worth(*rivals).answer.startswith(words)


def test_worth__survives_json_with_what_is_unknown() -> None:
    before = worth(BEATEN, EQUAL)
    text = json.dumps(before.as_dict(), allow_nan=False)
    after = Worth.from_dict(json.loads(text))
    assert json.dumps(after.as_dict()) == text
    assert np.isnan(after.winner.over_seeds.low)
    assert after.rivals[1].sentence == before.rivals[1].sentence
    assert "supernet unknown, search 60 s" in after.cost


def test_worth__is_shown_in_the_terminal_in_markdown_and_in_files(tmp_path: Path) -> None:
    shown = worth(BEATEN, SAME)
    printed = io.StringIO()
    Console(file=printed, width=160).print(worth_table(shown))
    for text in (printed.getvalue(), worth_section(shown)):
        for words in (
            "(over images)",
            "(over seeds)",
            "trial 7",
            "+2.0 [+1.0, +3.0]",
            "the same network",
            "0.300 (< 0.310)",
        ):
            assert words in text
    figure, table = write_worth(shown, tmp_path)
    assert "was it worth it?" in figure.read_text()
    rows = pd.read_csv(table)
    assert rows["name"].tolist() == ["trial 7", "random search", "slowest that fits"]
    assert rows["gain"].tolist()[1:] == [0.02, 0.0]


def test_worth__rules_that_nothing_keeps_are_named_and_stored() -> None:
    found = dataclasses.replace(worth(BEATEN), missing=("most MACs that fits", "slowest that fits"))
    text = "Not compared: most MACs that fits and slowest that fits"
    assert text in found.caption
    assert text in Worth.from_dict(json.loads(json.dumps(found.as_dict()))).caption
    assert "Not compared" not in worth(BEATEN).caption
