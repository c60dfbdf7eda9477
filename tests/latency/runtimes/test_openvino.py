from __future__ import annotations

from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.openvino import OpenVinoRuntime


class TestOpenVino(RuntimeConformance):
    runtime_class = OpenVinoRuntime
