from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import InputError, MeasurementError, SpaceError
from nas.latency.predictor import LEAST_SAMPLES
from nas.latency.table import LatencyTable
from nas.searcher.database import Database
from nas.searcher.profiling import ProfileRequest, profile_space
from nas.searcher.progress import Silent
from nas.searcher.request import Workspace
from nas.space.space import load_space


def _profile(request: ProfileRequest) -> list[LatencyTable]:
    with Database(request.url) as database:
        return profile_space(request, database, Silent())


def test_profile__covers_the_space_and_can_be_read_back(tmp_path: Path) -> None:
    request = ProfileRequest(
        measurements=LEAST_SAMPLES,
        runtime="onnxruntime",
        classes=10,
        candidates=LEAST_SAMPLES + 5,
        workspace=Workspace(tmp_path),
    )
    (table,) = _profile(request)
    read = LatencyTable.load(request.folder, "onnxruntime", "fp32")
    assert read.provenance == table.provenance
    assert read.provenance.space_digest == load_space("digits").digest
    digests = {row.architecture.digest for row in table.rows}
    assert len(digests) == LEAST_SAMPLES
    for anchor in load_space("digits").anchors.values():
        assert load_space("digits").candidate(anchor, 10).architecture.digest in digests
    assert read.predictor().leave_one_out().spearman > 0.8
    (again,) = _profile(request)
    assert [row.ms for row in again.rows] == [row.ms for row in table.rows], "measured once"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"measurements": 3}, InputError, "at least"),
        ({"measurements": 40, "candidates": 30}, InputError, "30"),
        ({"hardware": "xavier-nx"}, MeasurementError, "xavier-nx"),
        ({"precisions": ("int9",), "runtime": "onnxruntime"}, SpaceError, "int9"),
    ],
)
def test_profile__what_cannot_be(
    tmp_path: Path, settings: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _profile(ProfileRequest(workspace=Workspace(tmp_path), **settings))
