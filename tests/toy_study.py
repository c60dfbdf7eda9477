"""A study of a few choices without any network, and what may be told to it."""

from __future__ import annotations

import contextlib

from nas.searcher.opening import open_study
from nas.units import Budget

__all__ = ["FINGERPRINT", "PARAMETERS", "POINT", "opened", "tell", "trials"]

PARAMETERS = {
    "width": (16, 24, 32),  # evenly spaced: keeps its values
    "depth": (1, 2, 4),  # ordered: numbered
    "ratio": (0.25, 0.5, 1.0),
    "block": ("csp", "repvgg"),
    "attention": (False, True),
    "input": (640,),
}
POINT = {
    "width": 24,
    "depth": 4,
    "ratio": 0.5,
    "block": "repvgg",
    "attention": True,
    "input": 640,
}
FINGERPRINT = {"space": "space-1", "data": "data-1", "hardware": "cpu"}


@contextlib.contextmanager
def opened(database, name="s", sampler="random", budget=10.0, **changes):
    """Open or resume the study."""
    values = {"parameters": PARAMETERS, "fingerprint": FINGERPRINT, "budget": Budget(budget)}
    with open_study(database, name, sampler, **values | changes) as study:
        yield study


def trials(study):
    """Return Optuna's trials, as stored."""
    return study.optuna_study.get_trials()


def tell(study, digest, accuracy, latency_ms, **attributes):
    """Ask, and tell it as feasible if the latency is."""
    proposal = study.ask()
    values = {"accuracy": accuracy, "latency_ms": latency_ms, **attributes}
    if study.budget.admits(latency_ms):
        study.tell_feasible(proposal, digest, **values)
    else:
        study.tell_infeasible(proposal, digest, **values)
    return proposal
