"""Which point to try next: Optuna's samplers by name, set up for this project.

A sampler is a function of a seed. For Optuna's, it is derived from the user's seed and from the
number of trials that the study already has, because a sampler that starts again from the same seed
proposes the same points again. Ours draws anew for every trial, so a resumed search goes on as it
would have.

Other distributions may add a sampler by an entry point in the group `nas.samplers`: a callable
that takes a seed and returns an `optuna.samplers.BaseSampler`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from nas import plugins
from nas.errors import UnknownNameError
from nas.searcher.autonac import AutoNACSampler

__all__ = ["AUTONAC", "derive_seed", "make_sampler", "sampler_names"]

_STARTUP_TRIALS = 10
# Optuna's generations of 50 are a large part of a typical study; with 20 it found more.
_POPULATION = 20


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=_POPULATION, seed=seed)


def _tpe(seed: int) -> BaseSampler:
    # Multivariate is not Optuna's default for two objectives: it is a sixth of the cost and better.
    # A group per sub-space is for spaces where a choice can be absent; ours has all in every trial.
    return TPESampler(
        multivariate=True,
        group=False,
        constant_liar=True,
        n_startup_trials=_STARTUP_TRIALS,
        seed=seed,
    )


def _gp(seed: int) -> BaseSampler:
    return GPSampler(n_startup_trials=_STARTUP_TRIALS, seed=seed, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


AUTONAC = "autonac"
"""The name of our own sampler, the default."""

_OPTUNA: dict[str, Callable[[int], BaseSampler]] = {
    "gp": _gp,
    "nsga2": _nsga2,
    "random": _random,
    "tpe": _tpe,
}


def sampler_names() -> tuple[str, ...]:
    """List the samplers that can be asked for: ours and those of installed plug-ins."""
    return tuple(sorted({AUTONAC, *_OPTUNA, *plugins.names("samplers")}))


def make_sampler(name: str, seed: int, n_existing_trials: int = 0) -> BaseSampler:
    """Make a sampler by name.

    Args:
        name: one of `sampler_names()`; ours win over a plug-in of the same name.
        seed: the user's seed.
        n_existing_trials: how many trials the study has already.

    Raises:
        UnknownNameError: nothing has that name; the message lists what does.
        MissingPackageError: a plug-in's package is not installed.
    """
    if name == AUTONAC:
        return AutoNACSampler(seed=seed)
    make = _OPTUNA.get(name)
    if make is None:
        if name not in sampler_names():
            raise UnknownNameError.of("sampler", name, sampler_names())
        make = plugins.load("samplers", name)
    return make(derive_seed(seed, n_existing_trials))


def derive_seed(seed: int, n_existing_trials: int) -> int:
    """Mix the user's seed with the number of existing trials, to 32 bits."""
    digest = hashlib.sha256(f"{seed}:{n_existing_trials}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
