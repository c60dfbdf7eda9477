from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import nas.results.trust
from nas.errors import StorageError, TrainingError
from nas.results.trust import (
    checked,
    full_check_line,
    trust_figure,
    trust_line,
    trust_tables,
    write_trust,
)
from nas.searcher.database import Database
from nas.searcher.landmarks import Landmark
from nas.searcher.progress import Silent
from nas.searcher.request import Parent, Request, Workspace
from nas.searcher.result import FULL_TRUST, StudyResult
from nas.searcher.score import Score
from nas.searcher.setting import Setting
from nas.searcher.trust import BASELINES, SCORE, Trust
from nas.space.space import load_space
from nas.units import Budget

SPACE = load_space("digits")
CANDIDATE = SPACE.candidate(SPACE.anchors["min"], 10)
PARENT = Parent("parent", "0" * 16)
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
    assert "Nobody checked" in trust_line(None).plain
    assert full_check_line(None, "nas trust --study s") == "In full: nas trust --study s"


def test_full_check_line__is_there_until_it_was_done() -> None:
    short = _trust(SCORES, iterations=25).as_dict()
    assert full_check_line(short, "nas trust --study s") == "In full: nas trust --study s"
    assert not full_check_line(_trust(SCORES).as_dict(), "nas trust --study s")


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


@pytest.fixture
def result(tmp_path: Path) -> Iterator[tuple[Database, StudyResult]]:
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        yield database, StudyResult.load(database, "child", Budget(1.0), Score())


def _setting(database: Database, **values: Any) -> Setting:
    """As much of a setting as says whether to check."""
    request = Request(budget=Budget(1.0), study="child", **values)
    return cast("Setting", SimpleNamespace(request=request, database=database))


def test_checked__a_retargeted_study_has_the_verdict_on_its_parent(
    result: tuple[Database, StudyResult],
) -> None:
    database, child = result
    database.add_report("parent", FULL_TRUST, _trust().as_dict())
    setting = _setting(database, parent=PARENT)
    found = checked(setting, child, Silent()).trust
    assert found is not None
    assert found["verdict"]["outcome"] == "pass"
    assert found["verdict"]["text"].startswith("Of the study parent, whose weights these are: The")
    assert StudyResult.load(database, "child", child.budget, child.score).trust == found
    own = _trust(SCORES[::-1]).as_dict()
    database.add_report("child", FULL_TRUST, own)
    assert checked(setting, child, Silent()).trust == own


def test_checked__nothing_is_known_of_a_parent_that_was_not_checked(
    result: tuple[Database, StudyResult],
) -> None:
    database, child = result
    assert checked(_setting(database, parent=PARENT), child, Silent()).trust is None


def test_checked__not_if_the_search_asked_not_to(result: tuple[Database, StudyResult]) -> None:
    database, child = result
    assert checked(_setting(database, trust=False), child, Silent()) is child


def test_checked__a_check_that_fails_is_part_of_the_result(
    result: tuple[Database, StudyResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Trust:
        raise TrainingError("A process that trained was killed.")

    monkeypatch.setattr(nas.results.trust, "check_trust", fail)
    database, child = result
    found = checked(_setting(database), child, Silent()).trust
    assert found is not None
    assert found["verdict"]["outcome"] == "not checked"
    assert "was killed" in trust_line(found).plain


def test_request__trust_is_kept_and_on_in_older_studies(tmp_path: Path) -> None:
    place = {"study": "s", "storage": None, "workspace": Workspace(tmp_path)}
    stored = Request(budget=Budget(1.0), trust=False).arguments()
    assert not Request.restored(stored, **place).trust
    del stored["trust"]
    assert Request.restored(stored, **place).trust
