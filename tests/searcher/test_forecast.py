from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_space

from nas import api
from nas.errors import StudyError
from nas.results.forecast import duration_text, forecast_table
from nas.searcher import request as requests
from nas.searcher.progress import Silent

TINY = tiny_space(
    "input: [64, 96]",
    "hidden: [4, 8]",
    size="$input",
)


class _Stops(Silent):
    """Interrupts a training at its third step."""

    def advance(self, done: int, note: str = "") -> None:
        if note.startswith("loss") and done == 3:
            raise KeyboardInterrupt


@pytest.fixture
def space(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


def test_forecast__says_what_will_be_done_and_stores_nothing(space: str, tmp_path: Path) -> None:
    request = api.search_request("50ms", space=space, quick=True, workspace=tmp_path)
    found = api.forecast(request)
    names = [stage.name for stage in found.stages]
    assert names == [
        "Resize the images",
        "Train the supernet",
        "Score candidates",
        "Fine-tune networks",
    ]
    assert all(stage.seconds > 0 for stage in found.stages)
    steps = request.recipe().supernet_iterations
    assert f"{steps} steps of 8 images" in found.stages[1].note
    assert "8 candidates" in found.stages[2].note
    assert found.room.memory.is_met
    assert list((tmp_path / "cache" / "supernets").iterdir()) == []
    with pytest.raises(StudyError, match="no study"):
        api.stored_request(None, None, tmp_path)
    rows = forecast_table(found).columns[0]
    assert [str(cell) for cell in rows.cells][-4:-1] == ["Time", "Memory", "Disk"]


def test_resume__with_another_recipe_is_refused(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        api.search("50ms", space=space, quick=True, workspace=tmp_path, listener=_Stops())
    assert len(list(tmp_path.rglob("*.checkpoint"))) == 1
    quick = requests.Recipe.quick
    monkeypatch.setattr(requests.Recipe, "quick", lambda: quick().fine_tuning())
    with pytest.raises(StudyError, match="share their supernet, and so the recipe"):
        api.resume(workspace=tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(40.2, "40 s"), (600, "10 min"), (9000, "2.5 h")])
def test_duration__as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
