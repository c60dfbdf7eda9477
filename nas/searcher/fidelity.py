"""Part of the validation images first; all of them for candidates that may join the front.

A front is decided on all validation images, and most candidates never come near it. So an engine is
scored on a fixed part of the images first, and compared with the network of the front that it would
have to beat at its latency, on the same images with the same resamples: what the two differ in is
known far better than either score. If the difference leaves a chance of less than 5 %, the
candidate is left at that.

What is reported of it is no score of the part, which is easier or harder than the whole, but the
score that the other has on all images plus the difference on the part: the difference estimator of
double sampling (Cochran, Sampling Techniques, 3rd ed. 1977, chapter 12). The part is drawn from the
very images that decide, without replacement, so the difference on n of N images is off by
sqrt(1 - n/N) of what the bootstrap over images says (the finite population correction, ibid.,
section 2.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.bootstrap import map_with_resamples
from nas.accuracy.dataset import Split
from nas.accuracy.detections import Detections
from nas.accuracy.evaluate import Accuracy, Agreement, Weights, detections_on, score
from nas.latency.runtimes.base import Runtime
from nas.model.detector import needs_nms
from nas.searcher.engines import (
    TrainedGraph,
    agreement_of,
    artifact_of,
    engine_predictor,
    refuse_doubtful,
)
from nas.searcher.estimate import SMALLEST_SUBSET, Estimate
from nas.space.architecture import Candidate

__all__ = [
    "LEAST_CHANCE",
    "Comparison",
    "Parts",
    "Rival",
    "SubsetScore",
    "compare",
    "score_in_parts",
    "subset_size",
]

LEAST_CHANCE = 0.05
"""A candidate with a smaller chance to join the front is stopped."""

_LEAST_IMAGES = 500  # below, a part that decides is most of the whole
_LARGEST_SUBSET = 2000
_SHARE = 5
_SEED = 0  # of the choice of images, and of the resamples


def subset_size(images: int, asked: int | None) -> int | None:
    """Return how many of the validation images are scored first; None: all at once.

    Args:
        images: how many there are.
        asked: by the user; 0 for all at once, None for a fifth, if there are 500 or more.
    """
    if asked is None:
        usual = min(max(SMALLEST_SUBSET, images // _SHARE), _LARGEST_SUBSET)
        return usual if images >= _LEAST_IMAGES else None
    return asked if 0 < asked < images else None


@dataclass(frozen=True, eq=False)
class Parts:
    """A split in two: the images that are scored first, and the rest.

    Attributes:
        whole: n images.
        first: those that are scored first, in the order of the whole.
        rest: the others.
        order: (n,) position in the whole of each image of the first, then of the rest.
    """

    whole: Split
    first: Split
    rest: Split
    order: NDArray[np.intp]

    @classmethod
    def of(cls, split: Split, size: int) -> Parts:
        """Draw `size` images: they depend on it and on the number of images alone."""
        drawn = np.random.default_rng(_SEED).permutation(len(split))
        first, rest = np.sort(drawn[:size]), np.sort(drawn[size:])
        return cls(
            split,
            split.subset(split.name, first.tolist()),
            split.subset(split.name, rest.tolist()),
            np.concatenate([first, rest]),
        )

    def merged(self, first: Sequence[Detections], rest: Sequence[Detections]) -> list[Detections]:
        """Put the detections of both parts into the order of the whole."""
        found = [*first, *rest]
        return [found[position] for position in np.argsort(self.order)]


@dataclass(frozen=True, eq=False)
class SubsetScore:
    """What an engine reaches on the first part.

    Attributes:
        map50_95: on the images as they are; NaN if they have no object.
        resampled: (r,) on each resample of them; the draws are the same for all engines.
        images: how many.
    """

    map50_95: float
    resampled: NDArray[np.float64]
    images: int

    @classmethod
    def of(cls, detections: Sequence[Detections], split: Split) -> SubsetScore:
        """Score the detections of each image of a part."""
        reached, resampled = map_with_resamples(detections, split.annotations, _SEED)
        return cls(reached, resampled, len(split))


@dataclass(frozen=True)
class Rival:
    """The network of the front that a candidate has to beat: the best that is not slower.

    Attributes:
        candidate: what it is.
        map50_95: on all validation images.
    """

    candidate: Candidate
    map50_95: float


@dataclass(frozen=True)
class Comparison:
    """How a candidate differs from its rival in mAP50-95 on all validation images.

    Attributes:
        difference: expected, candidate minus rival.
        low: lower bound of the 95 % interval.
        high: upper bound.
        chance: probability that it is above 0.
    """

    difference: float
    low: float
    high: float
    chance: float

    def estimate(self, rival_map: float, images: int) -> Estimate:
        """Return what the candidate would reach on all images, as its rival did `rival_map`."""
        map50_95, low, high = (
            min(max(rival_map + one, 0.0), 1.0) for one in (self.difference, self.low, self.high)
        )
        return Estimate(map50_95, low, high, fidelity="subset", images=images)


def compare(candidate: SubsetScore, rival: SubsetScore, images: int) -> Comparison:
    """Compare two engines that were scored on one part of `images` images.

    Without an object in the part nothing is known, and the chance is 1.
    """
    if not len(candidate.resampled):
        return Comparison(0.0, -1.0, 1.0, 1.0)
    difference = candidate.map50_95 - rival.map50_95
    draws = candidate.resampled - rival.resampled
    unseen = math.sqrt(1 - candidate.images / images)
    possible = difference + unseen * (draws - draws.mean())
    low, high = np.quantile(possible, [0.025, 0.975])
    return Comparison(difference, float(low), float(high), float((possible > 0).mean()))


def score_in_parts(
    graph: TrainedGraph,
    candidate: Candidate,
    runtime: Runtime,
    parts: Parts,
    goes_on: Callable[[SubsetScore], bool],
    *,
    weights: Weights,
) -> tuple[SubsetScore, Agreement, Accuracy | None]:
    """Build an engine, score it on the first part, and on the whole if that is worth it.

    Args:
        graph: trained.
        candidate: what it is, and the precision.
        runtime: builds the engine.
        parts: of the validation images.
        goes_on: called with the score of the first part; whether the rest is scored.
        weights: recorded in the accuracy.

    Returns:
        The score of the first part, the agreement with fp32 on images of it, and the accuracy on
        the whole, as `score_engine` has it, unless it was stopped.

    Raises:
        EngineError: see `score_engine`.
        DatasetError: the split has no object to find.
    """
    size, nms = candidate.architecture.input, needs_nms(candidate.architecture)
    with runtime.build(graph.engine, candidate.precision) as engine:
        predict = engine_predictor(engine)
        part = parts.first.resized(*size)
        found = detections_on(predict, part, range(len(part)), nms=nms)
        agreement = agreement_of(graph, part, found, nms=nms)
        refuse_doubtful(agreement, candidate.precision, runtime)
        first = SubsetScore.of(found, parts.first)
        if not goes_on(first):
            return first, agreement, None
        rest = parts.rest.resized(*size)
        remaining = detections_on(predict, rest, range(len(rest)), nms=nms)
    detections = parts.merged(found, remaining)
    accuracy = score(
        detections, parts.whole, weights=weights, artifact=artifact_of(runtime), seed=_SEED
    )
    return first, agreement, replace(accuracy, agreement=agreement)
