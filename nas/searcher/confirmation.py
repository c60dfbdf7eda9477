"""The trainings that confirm a winner: further training of candidates with several seeds.

    inherited weights -> (network x seed: fine-tune, score the engine on validation, store)
                                                        -> after the choice: score on test, once

Everything is chosen by validation. A test score is stored once per network and seed and never
computed again, and nothing here hands one out to be chosen by. Every training is stored as soon as
it ends, so a run that was stopped or killed continues, and trains nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file

from nas.accuracy.evaluate import Accuracy
from nas.accuracy.recipe import Recipe
from nas.errors import NasError, StudyError
from nas.model.detector import Detector, profile
from nas.searcher.ablation_job import Job, Outcome, run_jobs, write_weights
from nas.searcher.engines import artifact_of
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.progress import Listener
from nas.searcher.setting import Setting
from nas.searcher.tables import TrainingRow
from nas.space.architecture import Candidate, digest_of

__all__ = ["PURPOSE", "Contestant", "FineTunings", "Start", "distinct"]

PURPOSE = "confirmation"
"""How these trainings are marked in the database."""

Start = Literal["inherited", "scratch"]
"""From the supernet's weights, or from random ones: a network outside the space inherits none."""

Scored = tuple[Accuracy, Sequence[float]]
"""An accuracy, and mAP50-95 on each resample of the images."""


@dataclass(frozen=True)
class Contestant:
    """A network that is fine-tuned and scored as all others are.

    Attributes:
        name: for a person, such as `trial 12` or `most MACs that fits`.
        candidate: the network and the precision of its engine.
        trial: of the study, if it is one of its candidates.
        start: where its weights come from.
        rule: the plain rule that takes it; empty for one of the front.
    """

    name: str
    candidate: Candidate
    trial: int | None = None
    start: Start = "inherited"
    rule: str = ""

    @property
    def weights(self) -> Literal["fine-tuned", "trained"]:
        """What its weights are called."""
        return "fine-tuned" if self.start == "inherited" else "trained"


def distinct(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Return the first contestant of each candidate."""
    found: dict[str, Contestant] = {}
    for one in contestants:
        found.setdefault(one.candidate.digest, one)
    return list(found.values())


class FineTunings:
    """The trainings of one study that confirm its winner.

    Args:
        setting: of the search.
        study: its name.
        judge: gives networks the weights that they inherit; None where nothing is inherited.
        weights_digest: of the supernet that these come from.
        listener: hears how it goes.
    """

    def __init__(
        self,
        setting: Setting,
        study: str,
        judge: AccuracyJudge | None,
        weights_digest: str,
        listener: Listener,
    ) -> None:
        self._setting = setting
        self._study = study
        self._judge = judge
        self._supernet = weights_digest
        self._listener = listener
        self._folder = setting.request.workspace.cache / PURPOSE
        self.seeds = tuple(setting.request.fine_tunings)

    def recipe(self, start: Start) -> Recipe:
        """Return how networks are trained, apart from the seed."""
        recipe = dataclasses.replace(self._setting.request.recipe(), seed=0)
        return recipe.fine_tuning() if start == "inherited" else recipe

    def inherited(self, contestant: Contestant) -> Detector:
        """Return a network as it is before: with inherited weights, or with random ones."""
        architecture = contestant.candidate.architecture
        if self._judge is None or contestant.start == "scratch":
            return Detector(architecture)
        return self._judge.detector(architecture)

    def train(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Train what is not trained yet, side by side, and return those that have all seeds.

        Raises:
            TrainingError: a process was killed.
            KeyboardInterrupt: the user stopped; checkpoints are written first.
        """
        jobs = [
            (self._job(one, seed), one)
            for seed in self.seeds
            for one in distinct(contestants)
            if not self._is_done(one, seed)
        ]
        if jobs:
            self._run(jobs)
        return [one for one in contestants if len(self.validation(one)) == len(self.seeds)]

    def validation(self, contestant: Contestant) -> list[TrainingRow]:
        """Return what a network reached on the validation split, by seed."""
        return self._rows(contestant, "validation")

    def test_once(
        self, contestant: Contestant, seed: int, score: Callable[[], Scored]
    ) -> TrainingRow:
        """Return what a network reached on the test split, which is scored only if it never was.

        Args:
            contestant: chosen already, or compared with the chosen one.
            seed: of its training.
            score: scores the engine of that training.
        """
        stored = self._stored(contestant, "test", seed)
        if stored is None:
            accuracy, resampled = score()
            trained = self._stored(contestant, "validation", seed)
            if trained is None:
                raise StudyError(f"{contestant.name} with seed {seed} was never trained.")
            self._store(contestant, seed, accuracy, resampled, trained.iterations, 0.0)
            stored = self._stored(contestant, "test", seed)
            assert stored is not None
        return stored

    def accuracy(self, contestant: Contestant, seed: int, split: str) -> Accuracy:
        """Return a stored accuracy in full."""
        found = self._setting.database.find_accuracy(
            contestant.candidate.architecture.digest,
            contestant.candidate.precision,
            data=self._setting.dataset.digest,
            split=split,
            weights=contestant.weights,
            artifact=artifact_of(self._setting.runtime),
            weights_digest=self._weights_digest(contestant, seed),
        )
        if found is None:
            raise StudyError(f"{contestant.name} with seed {seed} was never scored on {split}.")
        return found[1]

    def seconds(self, contestants: Sequence[Contestant]) -> float:
        """Return what the trainings of some networks took, each counted once."""
        rows = (row for one in contestants for row in self.validation(one))
        return sum({row.id: row.seconds for row in rows}.values())

    def detector(self, contestant: Contestant, seed: int) -> Detector:
        """Load a trained network."""
        detector = Detector(contestant.candidate.architecture)
        detector.load_state_dict(load_file(self._path(contestant, seed)))
        return detector

    def _run(self, jobs: Sequence[tuple[Job, Contestant]]) -> None:
        workers = self._setting.request.workers
        total = sum(job.recipe.iterations for job, _ in jobs)
        networks = len(distinct([one for _, one in jobs]))
        self._listener.stage(f"Fine-tune, networks: {networks}, trainings: {len(jobs)}", total)
        contestants = {job.checkpoint: one for job, one in jobs}
        outcomes = run_jobs(
            [job for job, _ in jobs], self._setting.dataset, workers, self._listener.advance
        )
        with closing(outcomes):
            for job, outcome in outcomes:
                one = contestants[job.checkpoint]
                if isinstance(outcome, NasError):
                    self._listener.say(f"{job.name} was not trained: {outcome}", warning=True)
                    continue
                self._store_outcome(one, job.recipe.seed, outcome)
                job.checkpoint.unlink(missing_ok=True)

    def _job(self, contestant: Contestant, seed: int) -> Job:
        recipe = dataclasses.replace(self.recipe(contestant.start), seed=seed)
        path = self._path(contestant, seed)
        start = self._start(contestant) if contestant.start == "inherited" else None
        name = f"{contestant.name}, seed {seed}"
        checkpoint = path.with_suffix(".checkpoint")
        path.parent.mkdir(parents=True, exist_ok=True)
        runtime = self._setting.runtime.name
        return Job(name, contestant.candidate, recipe, runtime, checkpoint, start=start, keep=path)

    def _start(self, contestant: Contestant) -> Path:
        """Write the weights that a network inherits, once."""
        key = digest_of([self._supernet, contestant.candidate.architecture.digest])
        path = self._folder / f"{key}.inherited.safetensors"
        if not path.exists():
            write_weights(self.inherited(contestant), path)
        return path

    def _path(self, contestant: Contestant, seed: int) -> Path:
        key = [self._weights_digest(contestant, seed), contestant.candidate.digest]
        return self._folder / f"{digest_of(key)}.safetensors"

    def _weights_digest(self, contestant: Contestant, seed: int) -> str:
        recipe = dataclasses.replace(self.recipe(contestant.start), seed=seed)
        supernet = self._supernet if contestant.start == "inherited" else ""
        return digest_of([PURPOSE, self._study, supernet, recipe.digest])

    def _is_done(self, contestant: Contestant, seed: int) -> bool:
        """Whether a training is stored, with its weights: a cache may have been emptied."""
        stored = self._stored(contestant, "validation", seed)
        return stored is not None and self._path(contestant, seed).exists()

    def _stored(self, contestant: Contestant, split: str, seed: int) -> TrainingRow | None:
        return next((row for row in self._rows(contestant, split) if row.seed == seed), None)

    def _rows(self, contestant: Contestant, split: str) -> list[TrainingRow]:
        candidate = contestant.candidate
        recipe = self.recipe(contestant.start).digest
        rows = (
            row
            for row in self._setting.database.trainings(self._study, PURPOSE)
            if (row.architecture, row.precision)
            == (candidate.architecture.digest, candidate.precision)
            and (row.start, row.recipe, row.split) == (contestant.start, recipe, split)
            and row.seed in self.seeds
        )
        return sorted(rows, key=lambda row: row.seed)

    def _store_outcome(self, contestant: Contestant, seed: int, outcome: Outcome) -> None:
        accuracy, resampled = outcome.accuracy, outcome.resampled
        self._store(contestant, seed, accuracy, resampled, outcome.iterations, outcome.seconds)

    def _store(
        self,
        contestant: Contestant,
        seed: int,
        accuracy: Accuracy,
        resampled: Sequence[float],
        iterations: int,
        seconds: float,
    ) -> None:
        database, candidate = self._setting.database, contestant.candidate
        architecture = candidate.architecture
        counts = profile(architecture)
        database.add_architecture(
            architecture.digest,
            space=self._setting.space.digest,
            text=architecture.to_yaml(),
            parameters=counts.parameters,
            macs=counts.macs,
        )
        database.add_accuracy(
            architecture.digest,
            candidate.precision,
            accuracy,
            data=self._setting.dataset.digest,
            weights_digest=self._weights_digest(contestant, seed),
            seconds=seconds,
        )
        database.add_training(
            self._study,
            accuracy,
            resampled,
            purpose=PURPOSE,
            name=contestant.name,
            architecture=architecture.digest,
            precision=candidate.precision,
            start=contestant.start,
            recipe=self.recipe(contestant.start).digest,
            seed=seed,
            iterations=iterations,
            seconds=seconds,
        )
