from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from nas.results.console import LiveProgress, front_table, stopped_line
from nas.searcher.progress import Member, Status
from nas.searcher.result import StudyResult
from nas.searcher.score import Score
from nas.units import Budget


def _console() -> Console:
    return Console(file=io.StringIO(), width=150)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _status(evaluated: int) -> Status:
    member = Member(trial=3, map50_95=0.512, latency_ms=0.381)
    return Status(evaluated, 4, 9, 2, 1, 1234.5, member, [member])


def test_progress__a_log_file_gets_counters_and_the_best_so_far() -> None:
    console = _console()
    with LiveProgress(console) as progress:
        progress.stage("Search", 4)
        for evaluated in range(1, 5):
            progress.status(_status(evaluated))
    text = _text(console)
    assert "4/4" in text
    assert "1234 candidates/h" in text
    assert "2 over budget, 1 repeated" in text
    assert "best 0.512 at 0.381 ms" in text


def test_progress__a_long_stage_prints_about_ten_lines() -> None:
    console = _console()
    with LiveProgress(console) as progress:
        progress.stage("Train", 1000)
        for done in range(1, 1001):
            progress.advance(done)
    assert _text(console).count("Train:") == 10


def test_progress__warnings_are_marked() -> None:
    console = _console()
    with LiveProgress(console) as progress:
        progress.say("budget admits [all] of them", warning=True)
    assert "warning: budget admits [all] of them" in _text(console)


@pytest.mark.parametrize(
    ("interval", "agreement", "shown"),
    [((None, None), None, "fp32            -"), ((0.4, 0.6), 0.984, "fp32          98%")],
)
def test_front_table__every_number_has_interval_or_source(
    interval: tuple[float | None, float | None], agreement: float | None, shown: str
) -> None:
    front = pd.DataFrame(
        {
            "trial": [7],
            "map50_95": [0.5],
            "map50_95_low": [interval[0]],
            "map50_95_high": [interval[1]],
            "map50": [0.7],
            "latency_ms": [0.4],
            "latency_low_ms": [0.39],
            "latency_high_ms": [0.41],
            "latency_source": ["cached"],
            "score": [0.5],
            "lambda_low": [0.0],
            "lambda_high": [float("inf")],
            "parameters": [142_226],
            "macs": [3_722_496],
            "precision": ["fp32"],
            "agreement": [agreement],
        }
    )
    console = _console()
    console.print(front_table(front, "Front of s", winner=7))
    text = _text(console)
    for words in ("★", "0.400 [0.390, 0.410]", "cached", "142 k", "3.7 M", shown):
        assert words in text
    assert ("0.500 [0.400, 0.600]" in text) == (interval[0] is not None)


def test_stopped_line__counts_steps_as_whole_numbers() -> None:
    """A column of integers with gaps comes back from pandas as floats."""
    table = pd.DataFrame(
        {
            "trial": [0, 1],
            "architecture": ["a", "b"],
            "precision": "fp32",
            "state": ["stopped", "complete"],
            "map50_95": [None, 0.4],
            "fidelity": ["training", None],
            "estimate_images": [80.0, None],
            "estimate_iterations": [3.0, None],
        }
    )
    line = stopped_line(StudyResult("s", Budget(1.0), Score(), table))
    assert "1 after 3 steps of training" in line
