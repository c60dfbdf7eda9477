from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from nas.errors import StorageError
from nas.results.trust import trust_figure, trust_line, trust_tables, write_trust
from nas.searcher.landmarks import Landmark
from nas.searcher.trust import BASELINES, SCORE, Trust
from nas.space.space import load_space

SPACE = load_space("digits")
CANDIDATE = SPACE.candidate(SPACE.anchors["min"], 10)
SCORES = np.linspace(0.3, 0.6, 12)


def _trust(scores: np.ndarray = SCORES, seeds: int = 2, iterations: int = 100) -> Trust:
    landmarks = [
        Landmark(
            *(f"trial [{number}]", CANDIDATE, score, score - 0.01, score + 0.02),
            *(0.1 + 0.1 * (number // 3), "measured", 10**6 * (1 + number * 5 % 12), 1000 + number),
        )
        for number, score in enumerate(scores)
    ]
    references = SCORES[:, None] + 0.001 * np.arange(seeds)
    return Trust(
        study="a study",
        landmarks=landmarks,
        references=references,
        resampled=references.mean(axis=1)[:, None] + np.linspace(-0.02, 0.02, 21),
        iterations=iterations,
        recipe_iterations=100,
        threshold=0.5,
        failed={"trial 99": "The loss was not finite."},
        cpu_s=123.4,
    )


def _printed(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=170)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tables__baselines_stand_beside_the_score() -> None:
    text = _printed(trust_tables(_trust()))
    for name in (SCORE, *BASELINES, "another seed (ceiling)"):
        assert name in text
    assert "1.00 [1.00, 1.00]" in text
    assert "(66 pairs)" in text
    assert "(12 pairs)" in text
    assert "123 s of CPU in training" in text
    assert "Left out: trial 99: The loss was not finite." in text
    assert "The ranking holds" in text


def test_tables__of_one_seed_say_what_is_not_known() -> None:
    text = _printed(trust_tables(_trust(seeds=1)))
    assert "ceiling" not in text
    assert "nothing is known of the noise" in text


def test_tables__of_a_constant_score_are_drawn() -> None:
    text = _printed(trust_tables(_trust(np.full(12, 0.4))))
    assert "undefined" in text
    assert "Cannot tell" in text


@pytest.mark.parametrize(
    ("scores", "color"), [(SCORES, "green"), (SCORES[::-1], "red"), (np.full(12, 0.4), "yellow")]
)
def test_line__has_the_color_of_the_outcome(scores: np.ndarray, color: str) -> None:
    line = trust_line(_trust(scores).as_dict())
    assert color in str(line.style)
    assert "ranking" in line.plain


def test_line__of_a_study_that_was_not_checked() -> None:
    assert "nas trust" in trust_line(None).plain


def test_write__figure_and_table(tmp_path: Path) -> None:
    trust = _trust()
    figure, table = write_trust(trust, tmp_path / "a study")
    assert "Does the ranking of a study hold? PASS" in figure.read_text()
    read = pd.read_csv(table)
    assert len(read) == 12
    assert read["reference"].to_numpy() == pytest.approx(trust.table["reference"].to_numpy())


def test_figure__draws_every_landmark_and_every_tau() -> None:
    figure = trust_figure(_trust(iterations=25))
    points = [trace for trace in figure.data if "landmark" in trace.name]
    assert len(points[0].x) == 12
    taus = {trace.name for trace in figure.data if trace.name.startswith("tau of")}
    assert taus == {f"tau of {name}" for name in (SCORE, *BASELINES)}
    assert "Short check" in figure.layout.title.subtitle.text


def test_write__to_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"trust\.csv"):
        write_trust(_trust(), tmp_path / "file" / "below")
