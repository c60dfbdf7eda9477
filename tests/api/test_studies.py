"""What a stored study says of what was delivered."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
import pytest

from nas.api import delivered_trial, is_stored, stored_request
from nas.errors import StudyError
from nas.results.ablation import Estimate
from nas.results.worth import KIND, Rival, Worth
from nas.searcher.database import Database
from nas.searcher.request import Request, Workspace
from nas.searcher.result import StudyResult
from nas.searcher.score import Score
from nas.units import Budget

KNOWN = Estimate(0.6, 0.58, 0.62)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(budget=Budget(1.0), study="s", workspace=Workspace(tmp_path))


@pytest.fixture
def result() -> StudyResult:
    table = pd.DataFrame(
        {
            "trial": [3, 5],
            "architecture": ["a", "b"],
            "precision": "fp32",
            "latency_ms": [0.5, 0.9],
            "map50_95": [0.3, 0.5],
        }
    )
    return StudyResult("s", Budget(1.0), Score(), table)


def _delivered(request: Request, architecture: str) -> None:
    winner = Rival(
        name="winner",
        architecture=architecture,
        precision="fp32",
        start="inherited",
        latency_ms=0.5,
        bound_ms=0.6,
        keeps=True,
        over_images=KNOWN,
        over_seeds=KNOWN,
        gain=KNOWN,
        same=True,
    )
    worth = Worth(
        study="s",
        budget_ms=1.0,
        confidence=0.99,
        split="test",
        images=9,
        seeds=(0,),
        iterations=3,
        delivered_seed=0,
        delivered=KNOWN,
        winner=winner,
        rivals=(),
        seconds={},
    )
    with Database(request.url) as database:
        database.add_report("s", KIND, worth.as_dict())


def test_delivered_trial__is_what_was_confirmed_and_not_the_best_by_score(
    request_: Request, result: StudyResult
) -> None:
    Database(request_.url).close()
    assert delivered_trial(request_, result, otherwise=5) == 5
    _delivered(request_, "a")
    assert delivered_trial(request_, result, otherwise=5) == 3


def test_delivered_trial__a_network_of_no_trial(request_: Request, result: StudyResult) -> None:
    _delivered(request_, "c")
    assert delivered_trial(request_, result, otherwise=5) is None


def test_stored_request__another_name_is_told_what_there_is(request_: Request) -> None:
    with Database(request_.url):
        optuna.create_study(study_name="mine", storage=request_.url)
    with pytest.raises(StudyError, match=r"no study 'yours'.*There are: mine\."):
        stored_request("yours", None, request_.workspace.root)


def test_is_stored__looks_without_making_a_database(request_: Request) -> None:
    folder = request_.workspace.root / "typo"
    assert not is_stored("s", storage=None, workspace=folder)
    assert not folder.exists()
