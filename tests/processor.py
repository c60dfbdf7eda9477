"""What this machine's processor can do, for tests that need it."""

from __future__ import annotations

import openvino
import pytest

needs_bf16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this processor does not compute in bf16",
)
