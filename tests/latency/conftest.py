from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nas.latency.onnx_export import export_onnx
from nas.latency.runtimes.conformance import ConformanceNet


@pytest.fixture(autouse=True, scope="session")
def own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test wait for a search of this user, nor for another process of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session")
def network() -> ConformanceNet:
    torch.manual_seed(0)
    return ConformanceNet().eval()


@pytest.fixture(scope="session")
def graph(network: ConformanceNet) -> bytes:
    return export_onnx(network, 32, 32)


@pytest.fixture(scope="session")
def large_graph() -> bytes:
    torch.manual_seed(0)
    return export_onnx(ConformanceNet(width=64).eval(), 96, 96)
