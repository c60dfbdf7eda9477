"""What a search scores candidates with: weights that all share, or a training of each."""

from __future__ import annotations

from typing import Protocol

from nas.accuracy.evaluate import Accuracy
from nas.errors import InputError, StudyError
from nas.latency.latency import Latency
from nas.searcher.estimate import Estimate
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.fidelity import Rival, subset_size
from nas.searcher.progress import Listener
from nas.searcher.rungs import OwnTraining
from nas.searcher.setting import Setting
from nas.searcher.study import Study
from nas.searcher.supernets import supernet_of, weights_of
from nas.searcher.trials import Told
from nas.space.architecture import Candidate, digest_of

__all__ = ["Judge", "SharedWeights", "inheriting", "open_judge", "own_training"]


class Judge(Protocol):
    """Scores candidates, wholly or in part."""

    def score(
        self, candidate: Candidate, latency: Latency, study: Study
    ) -> tuple[int, Accuracy] | Estimate:
        """Return the row of an accuracy and the accuracy, or what stands in its place."""

    def known(self, candidate: Candidate) -> tuple[int, Accuracy] | None:
        """Return what is stored about a candidate that was scored wholly: row and accuracy."""

    def promotion(self, study: Study, *, closing: bool) -> Told | None:
        """Return a candidate that was scored in part and shall be scored further, if there is one.

        Args:
            study: what is known.
            closing: no further candidate will be asked for.
        """

    def end(self) -> None:
        """Free what only a search that goes on needs."""


class SharedWeights:
    """Scores candidates with the weights of a supernet, against what is as fast as they are."""

    def __init__(self, setting: Setting, judge: AccuracyJudge) -> None:
        self._setting = setting
        self._judge = judge
        self._reconsidered: set[str] = set()

    def score(
        self, candidate: Candidate, latency: Latency, study: Study
    ) -> tuple[int, Accuracy] | Estimate:
        """Score on all validation images, unless a part of them shows that it cannot advance."""
        # As fast as it may well be: a prediction could name a rival that is faster than it.
        told = study.rival(latency.low_ms)
        if told is None or told.accuracy is None:
            return self._judge.against(candidate, None)
        rival = Rival(self._setting.candidate(told.choices), told.accuracy)
        return self._judge.against(candidate, rival)

    def known(self, candidate: Candidate) -> tuple[int, Accuracy] | None:
        """Return what is stored about a candidate that was scored wholly: row and accuracy."""
        return self._judge.known(candidate)

    def promotion(self, study: Study, *, closing: bool) -> Told | None:
        """Return in the end what was stopped for a network that has left the front since.

        Else nothing is scored further later: whatever may advance is scored wholly at once.
        """
        left = (told for told in study.unbeaten() if told.digest not in self._reconsidered)
        found = next(left, None) if closing else None
        if found is not None:
            self._reconsidered.add(found.digest)
        return found

    def end(self) -> None:
        """Keep everything: weights and their statistics serve other studies."""


def open_judge(setting: Setting, study: str, listener: Listener) -> Judge:
    """Make what a search was asked to score with; a supernet is trained first, if there is none.

    Args:
        setting: of the search.
        study: its name.
        listener: hears how it goes.

    Raises:
        StorageError, TrainingError, StudyError, KeyboardInterrupt: as `supernet_of`.
    """
    request = setting.request
    if request.accuracy == "training":
        if request.parent:
            raise StudyError(
                f"A re-targeted study needs a supernet, and {request.parent.study!r} has none: "
                "its candidates were trained one by one.",
                "Start a new search for the other target; it finds the trainings that ended.",
            )
        return own_training(setting, study, listener)
    if not request.parent and request.workspace.supernet(weights_of(setting)).exists():
        listener.say("The supernet of this space, data and recipe is trained already.")
    subset = subset_size(len(setting.dataset.validation), request.subset)
    return SharedWeights(setting, inheriting(setting, listener, subset))


def inheriting(setting: Setting, listener: Listener, subset: int | None = None) -> AccuracyJudge:
    """Make a judge that gives networks the weights of the supernet, trained first if there is none.

    Args:
        setting: of the search.
        listener: hears of the training, and of engines that depart from their networks.
        subset: see `AccuracyJudge`.

    Raises:
        StorageError, TrainingError, KeyboardInterrupt: as `supernet_of`.
    """
    return AccuracyJudge(
        supernet_of(setting, listener),
        weights_of(setting),
        setting.dataset,
        setting.runtime,
        setting.database,
        listener,
        setting.request.workspace.statistics,
        subset,
    )


def own_training(setting: Setting, study: str, listener: Listener) -> OwnTraining:
    """Make a judge that trains every candidate on its own; arguments as of `open_judge`.

    Raises:
        InputError: the recipe needs a teacher, whose input size would have to be each candidate's.
    """
    if setting.request.recipe().needs_teacher:
        raise InputError(
            "A search that trains every candidate by itself has no teacher, and the recipe needs "
            "one.",
            "Leave out distillation and pseudo-labels, or search with a supernet.",
        )
    return OwnTraining(
        setting.dataset,
        setting.runtime,
        setting.database,
        setting.request.recipe(),
        weights_of(setting),
        setting.request.workspace.cache / "rungs" / digest_of([setting.request.url, study]),
        listener,
    )
