from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest


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
