from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test wait for a search of this user, nor for another process of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session")
def make_shapes() -> Callable[..., Path]:
    """`make_shapes(root, format)` writes the data set of `tests/shapes.py`."""
    # pytest's importlib mode leaves tests/ off the import path, so the file is loaded by its place.
    spec = importlib.util.spec_from_file_location("shapes", Path(__file__).with_name("shapes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., Path] = module.make_shapes
    return function
