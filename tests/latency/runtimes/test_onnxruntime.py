from __future__ import annotations

from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.onnxruntime import OnnxRuntime


class TestOnnxRuntime(RuntimeConformance):
    runtime_class = OnnxRuntime
