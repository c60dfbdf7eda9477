"""The Python interface: what the command line does, as functions that return values.

>>> import nas
>>> found = nas.search(budget="0.4ms")        # doctest: +SKIP
>>> found.front[["map50_95", "latency_ms"]]   # doctest: +SKIP
"""

from __future__ import annotations

from nas.api.networks import (
    ablate,
    anchors,
    describe,
    estimate,
    forecast_training,
    layer_list,
    measure,
    profile,
    train,
)
from nas.api.searches import Found, forecast, resume, retarget, search, search_request
from nas.api.studies import (
    compare,
    delivered_trial,
    explain,
    export,
    front,
    is_stored,
    measure_study,
    stored_request,
    trust,
    worth,
)

__all__ = [
    "Found",
    "ablate",
    "anchors",
    "compare",
    "delivered_trial",
    "describe",
    "estimate",
    "explain",
    "export",
    "forecast",
    "forecast_training",
    "front",
    "is_stored",
    "layer_list",
    "measure",
    "measure_study",
    "profile",
    "resume",
    "retarget",
    "search",
    "search_request",
    "stored_request",
    "train",
    "trust",
    "worth",
]
