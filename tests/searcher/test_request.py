from __future__ import annotations

import pytest

from nas.errors import InputError
from nas.searcher.request import Request
from nas.units import Budget


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "a\\b", "..", ".", "a\nb", "ä" * 101])
def test_request__study_that_cannot_name_a_folder_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="A study's name"):
        Request(budget=Budget(1.0), study=name)


@pytest.mark.parametrize("name", ["digits-cpu-1", "s@l4-1ms", "it's a b", "日本", "ä" * 100])
def test_request__study_that_can(name: str) -> None:
    assert Request(budget=Budget(1.0), study=name).study == name
