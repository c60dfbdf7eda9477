"""Before any training: what share of the space the budget admits, measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from nas.errors import BudgetError, EngineError, ExportError, MeasurementError
from nas.latency.latency import Latency
from nas.searcher.bounds import amount_text, figures_of
from nas.searcher.progress import Listener
from nas.searcher.request import Request
from nas.searcher.setting import Setting
from nas.space.space import Point
from nas.units import Budget, percent

__all__ = ["check_budget", "screened"]

# Random candidates; the share is then known to about 10 percentage points, and 16 when quick.
_SCREENED, _QUICK_SCREENED = 24, 8
_ENDS = ("min", "max")
_LARGEST_DRIFT = 0.1


def check_budget(setting: Setting, listener: Listener, known: Sequence[Point] = ()) -> None:
    """Measure some of the space, and say what share of it the budget admits, before training.

    Args:
        setting: of the search.
        listener: hears the share.
        known: points that are worth a look all the same; one that the budget admits is enough.

    Raises:
        BudgetError: it admits nothing.
    """
    points = _points(setting)
    _check_bounds(setting, points, listener)
    latencies = sorted(_screen(setting, points, listener), key=lambda latency: latency.ms)
    budget = setting.request.budget
    admitted = sum(budget.admits(latency.ms) for latency in latencies)
    how = "measured" if setting.oracle.measures else latencies[0].source
    share = f"{admitted} of {len(latencies)} {how} candidates ({admitted / len(latencies):.0%})"
    fastest, slowest = latencies[0], latencies[-1]
    if not admitted:
        others = [setting.latency(setting.candidate(point)) for point in known]
        if any(budget.admits(latency.ms) for latency in others):
            listener.say(f"The budget of {budget} admits {share}, and known candidates.")
            return
        raise _refusal(setting, [*latencies, *others], how)
    if admitted == len(latencies):
        median = latencies[len(latencies) // 2]
        listener.say(
            f"The budget of {budget} admits all of {len(latencies)} {how} candidates; the slowest "
            f"takes {slowest.ms:.3f} ms. Latency will decide nothing; "
            f"--budget {_rounded_up(median.ms)} would admit half.",
            warning=True,
        )
    else:
        listener.say(
            f"The budget of {budget} admits {share}; they take {fastest.ms:.3f} to "
            f"{slowest.ms:.3f} ms."
        )
    for precision, drift in setting.oracle.drift.items():
        if abs(drift) > _LARGEST_DRIFT:
            listener.say(
                f"The {precision} reference network runs {drift:+.0%} off its stored latency: the "
                "machine is busier, or not what it was. Latencies are ratios to that reference, so "
                "they stay comparable with each other.",
                warning=True,
            )


def screened(request: Request) -> int:
    """Return the most networks that are measured before anything is trained."""
    return len(_ENDS) + (_QUICK_SCREENED if request.quick else _SCREENED)


def _refusal(setting: Setting, latencies: Sequence[Latency], how: str) -> BudgetError:
    fastest = min(latencies, key=lambda latency: latency.ms)
    enough = fastest.high_ms if setting.oracle.measures else fastest.ms
    return BudgetError(
        f"No candidate meets the budget of {setting.request.budget}: the fastest of "
        f"{len(latencies)} {how} takes {fastest.ms:.3f} ms, {percent(fastest.level)} interval "
        f"[{fastest.low_ms:.3f}, {fastest.high_ms:.3f}].",
        f"The smallest budget that would work is about {_rounded_up(enough)}.",
    )


def _points(setting: Setting) -> list[Point]:
    """Return the smallest, the largest and random points of the space, each once."""
    generator = np.random.default_rng(setting.request.seed)
    anchors = setting.space.anchors
    points = [anchors[name] for name in _ENDS]
    sampled = range(screened(setting.request) - len(points))
    points += [setting.space.sample(generator) for _ in sampled]
    return list({tuple(point.items()): point for point in points}.values())


def _check_bounds(setting: Setting, points: list[Point], listener: Listener) -> None:
    """Say what share of the space the bounds beside the latency admit; nothing is measured."""
    bounds = setting.request.bounds
    if not bounds.stated:
        return
    candidates = [setting.candidate(point) for point in points]
    admitted = sum(bounds.admit(candidate) for candidate in candidates)
    if not admitted:
        least = {
            name: min(figures_of(candidate)[name] for candidate in candidates)
            for name in bounds.stated
        }
        raise BudgetError(
            f"No candidate of {len(candidates)} keeps the bounds {bounds.text}.",
            "The least that one of them has: "
            + ", ".join(f"{name} {amount_text(value)}" for name, value in least.items())
            + ". Allow more.",
        )
    listener.say(f"The bounds {bounds.text} admit {admitted} of {len(candidates)} candidates.")


def _screen(setting: Setting, points: list[Point], listener: Listener) -> Iterator[Latency]:
    listener.stage("Measure the space", len(points))
    for done, point in enumerate(points, start=1):
        try:
            yield setting.latency(setting.candidate(point))
        except (EngineError, ExportError, MeasurementError) as error:
            if done == 1:
                raise  # the smallest candidate: nothing larger will do better
            listener.say(f"A candidate could not be measured: {error}", warning=True)
        listener.advance(done)


def _rounded_up(latency_ms: float) -> Budget:
    step = 10 ** (math.floor(math.log10(latency_ms)) - 2)
    return Budget(float(f"{math.ceil(latency_ms / step) * step:.6g}"))
