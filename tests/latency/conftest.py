from __future__ import annotations

import pytest
import torch

from nas.latency.onnx_export import export_onnx
from nas.latency.runtimes.conformance import ConformanceNet


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
