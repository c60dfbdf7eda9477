"""Values as the database stores them."""

from __future__ import annotations

from dataclasses import replace

import environments

from nas.accuracy.evaluate import Accuracy, Agreement
from nas.latency.clock import Timing
from nas.latency.latency import Latency

__all__ = ["ACCURACY", "ENVIRONMENT", "LATENCY", "TIMING", "ablation_values", "add_architecture"]

ENVIRONMENT = replace(environments.ENVIRONMENT, precision="int8")
LATENCY = Latency(ms=2.5, low_ms=2.4, high_ms=2.6, source="measured", environment=ENVIRONMENT)
TIMING = Timing(
    ms=2.5,
    low_ms=2.4,
    high_ms=2.6,
    ratio=1.25,
    blocks=12,
    rejected=1,
    runs=480,
    protocol="hot",
    clock="process CPU time",
    converged=True,
    other_load=0.5,
)
ACCURACY = Accuracy(
    map50_95=0.31,
    map50=0.5,
    map_small=None,
    map_medium=0.3,
    map_large=0.4,
    images=100,
    split="validation",
    weights="inherited",
    artifact="engine",
    low=0.29,
    high=0.33,
    agreement=Agreement(0.95, 16, "onnxruntime fp32"),
)


def add_architecture(database, digest="a" * 16):
    """Store a network that others refer to, and return its digest."""
    database.add_architecture(digest, space="s" * 16, text="stem: 16", macs=8_000_000_000)
    return digest


def ablation_values(digest, accuracy_id):
    """Return the columns of a training, less its study, seed and resamples."""
    names = {"variant": "p4=dense", "kind": "choice", "changed": "p4", "before": "none"}
    told = {"latency_ms": 2.5, "latency_low_ms": 2.4, "latency_high_ms": 2.6}
    known = {"latency_source": "measured", "environment": ENVIRONMENT.digest, "recipe": "r"}
    cost = {"iterations": 3, "seconds": 1.5, "recipe_values": {"loss": {"box": 2.5}}}
    what = {"architecture": digest, "precision": "int8", "accuracy_id": accuracy_id}
    return {**names, **told, **known, **cost, **what, "after": "dense", "position": 1}
