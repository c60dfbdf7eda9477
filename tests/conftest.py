from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shapes


@pytest.fixture(autouse=True, scope="session")
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test wait for a search of this user, nor for another process of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session")
def make_shapes() -> Callable[..., Path]:
    """`make_shapes(root, format)` writes the data set of `tests/shapes.py`."""
    return shapes.make_shapes
