"""Proposing candidates: features, a surrogate of accuracy, and what to score next.

Numbers only: no Optuna, no torch, no search space. `nas.searcher.autonac` makes an Optuna sampler
of it.
"""

from nas.searcher.proposing.acquisition import Observed, Settings, propose, recommend
from nas.searcher.proposing.encoding import ABSENT, Encoding

__all__ = ["ABSENT", "Encoding", "Observed", "Settings", "propose", "recommend"]
