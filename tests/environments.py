"""What the measurements of tests are said to be true for."""

from __future__ import annotations

from nas.latency.environment import Environment

__all__ = ["ENVIRONMENT"]

ENVIRONMENT = Environment(
    device="a processor",
    runtime="openvino",
    runtime_version="2026.2",
    precision="fp32",
    threads=1,
    protocol="hot",
    clock="process CPU time",
    reference="0123456789abcdef",
)
