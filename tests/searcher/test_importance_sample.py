"""A stored study read back as arrays: real databases, real Optuna studies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from environments import ENVIRONMENT
from tiny import tiny_space

from nas.accuracy.evaluate import Accuracy
from nas.errors import StudyError
from nas.latency.latency import Latency
from nas.searcher.database import Database
from nas.searcher.importance_sample import NOT_READ, Sample
from nas.searcher.opening import open_study
from nas.searcher.request import Request, Workspace
from nas.space.space import SearchSpace, load_space
from nas.space.space_file import Label
from nas.units import Budget

SPACE = tiny_space(
    "input: [64, 96]",
    "hidden: [8, 16]",
    "where: {nowhere: {}, P4: {P4: {kind: sparse, tokens: $tokens}}}",
    "tokens: [4, 8]",
    name="nested",
    size="$input",
    attention="$where",
)
BUDGET = Budget(1.0)
POINTS: list[dict[str, Label]] = [
    {"input": 64, "hidden": 8, "where": "nowhere", "tokens": 4},
    {"input": 96, "hidden": 16, "where": "P4", "tokens": 8},
    {"input": 96, "hidden": 8, "where": "P4", "tokens": 4},
    {"input": 64, "hidden": 8, "where": "nowhere", "tokens": 8},  # the first network again
]
LATENCIES = [0.5, 2.0, 0.8, 0.5]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        yield database


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    (tmp_path / "nested.yaml").write_text(SPACE)
    return load_space(str(tmp_path / "nested.yaml"))


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    path = str(tmp_path / "nested.yaml")
    return Request(budget=BUDGET, space=path, study="s", workspace=Workspace(tmp_path))


def _tell(database: Database, space: SearchSpace, scores: Mapping[int, float]) -> None:
    """Tell every point; those without a score only have a latency."""
    with open_study(
        database, "s", "random", parameters=space.choices, fingerprint={}, budget=BUDGET
    ) as study:
        for number, (point, ms) in enumerate(zip(POINTS, LATENCIES, strict=True)):
            candidate = space.candidate(point, 2)
            architecture = candidate.architecture
            digest = architecture.digest
            database.add_architecture(digest, space=space.digest, text=architecture.to_yaml())
            study.enqueue(point)
            proposal = study.ask()
            row = None
            if number in scores:
                accuracy = Accuracy(
                    *(scores[number], 0.5, None, None, None),
                    8,
                    "validation",
                    "inherited",
                    "openvino",
                )
                row = database.add_accuracy(digest, "fp32", accuracy, data="d")
            database.add_evaluation(
                "s",
                proposal.number,
                architecture=digest,
                precision="fp32",
                state="complete" if BUDGET.admits(ms) else "infeasible",
                latency=Latency(ms, ms, ms, "measured", ENVIRONMENT),
                accuracy_id=row,
            )
            if BUDGET.admits(ms):
                study.tell_feasible(
                    proposal, candidate.digest, accuracy=scores[number], latency_ms=ms
                )
            else:
                study.tell_infeasible(proposal, candidate.digest, latency_ms=ms)


@pytest.fixture
def sample(database: Database, space: SearchSpace, request_: Request) -> Sample:
    _tell(database, space, {0: 0.3, 2: 0.4, 3: 0.3})
    return Sample.load(database, request_)


def test_load__a_network_counts_once_and_is_scored_only_if_it_was(sample: Sample) -> None:
    np.testing.assert_array_equal(sample.latency_ms, [0.5, 2.0, 0.8])
    # What is over budget was told 0 to Optuna: that is no accuracy.
    np.testing.assert_array_equal(sample.accuracy, [0.3, np.nan, 0.4])
    assert sample.sources == {"measured": 3}


def test_load__choices_are_in_the_order_of_the_space(sample: Sample, space: SearchSpace) -> None:
    assert sample.choices == space.choices


def test_load__what_a_candidate_does_not_read_has_no_option(sample: Sample) -> None:
    np.testing.assert_array_equal(sample.codes, [[0, 0, 0, NOT_READ], [1, 1, 1, 1], [1, 0, 1, 0]])


def test_load__without_the_space_every_choice_counts(
    sample: Sample, database: Database, request_: Request
) -> None:
    Path(request_.space).unlink()
    alone = Sample.load(database, request_)
    assert (alone.codes != NOT_READ).all()
    assert alone.choices["input"] == (64, 96)
    assert set(alone.choices["where"]) == {"P4", "nowhere"}
    np.testing.assert_array_equal(alone.accuracy, sample.accuracy)


def test_load__a_space_that_has_changed_is_not_asked(
    sample: Sample, database: Database, request_: Request
) -> None:
    Path(request_.space).write_text(SPACE.replace("[64, 96]", "[64, 128]"))
    changed = Sample.load(database, request_)
    assert changed.choices["input"] == (64, 96)
    assert (changed.codes != NOT_READ).all()


def test_load__a_study_without_latencies_is_an_error(
    database: Database, space: SearchSpace, request_: Request
) -> None:
    with open_study(
        database, "s", "random", parameters=space.choices, fingerprint={}, budget=BUDGET
    ):
        pass
    with pytest.raises(StudyError, match="'s'"):
        Sample.load(database, request_)
