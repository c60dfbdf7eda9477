"""The check of a study's ranking: landmarks are chosen, trained side by side, stored, compared.

    study -> landmarks -> (landmark x seed: train from scratch, score the engine, store) -> report

Every training is stored as soon as it ends, and its checkpoint is kept until then: the same check
again continues one that was stopped or killed, and trains nothing twice.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress, train_detector
from nas.errors import InputError, NasError, StudyError, TrainingError
from nas.latency.clock import Elapsed
from nas.model.detector import Detector
from nas.searcher.ablation_job import Job, Outcome, run_jobs
from nas.searcher.connection import LockedError, exclusive, translated
from nas.searcher.database import Database
from nas.searcher.landmarks import Landmark, choose_landmarks
from nas.searcher.opening import open_storage, quiet_optuna
from nas.searcher.progress import Listener
from nas.searcher.request import Request
from nas.searcher.result import FULL_TRUST, SHORT_TRUST, StudyResult
from nas.searcher.setting import Setting
from nas.searcher.tables import TrainingRow
from nas.searcher.trust import LEAST_LANDMARKS, THRESHOLD, Trust
from nas.space.architecture import digest_of

__all__ = ["PURPOSE", "Effort", "check_trust", "landmark_seconds"]

PURPOSE = "landmark"
"""How trainings of landmarks are marked in the database."""

_SCRATCH = "scratch"
_TIMED_STEPS = 3  # after the first one, which is slower than the others
_SHORT_SHARE = 4  # a short check has the steps of the recipe divided by this
_QUICK_STEPS = 10  # a quick search shows what a check looks like


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a check may cost.

    Attributes:
        landmarks: networks.
        seeds: trainings of each.
        iterations: steps of a training; None takes the recipe's.
        jobs: processes that train side by side.
        threshold: least tau, overall and within latency windows.

    Raises:
        InputError: a value that cannot be.
    """

    landmarks: int = 12
    seeds: int = 2
    iterations: int | None = None
    jobs: int = 2
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if self.landmarks < LEAST_LANDMARKS:
            raise InputError(
                f"A ranking is checked by at least {LEAST_LANDMARKS} landmarks, "
                f"got {self.landmarks}.",
                "Fewer have too few pairs to say anything; 12 are usual.",
            )
        if min(self.seeds, self.jobs) < 1 or (self.iterations is not None and self.iterations < 1):
            raise InputError(
                f"Seeds, jobs and iterations are at least 1, got {self.seeds}, {self.jobs} and "
                f"{self.iterations}."
            )
        if not -1 < self.threshold < 1:
            raise InputError(f"A threshold for tau lies between -1 and 1, got {self.threshold}.")

    @property
    def options(self) -> list[str]:
        """What `nas trust` needs on its command line to spend as much."""
        values = dataclasses.asdict(self)
        usual = dataclasses.asdict(Effort())
        stated = [(name, value) for name, value in values.items() if value != usual[name]]
        return [word for name, value in stated for word in (f"--{name}", str(value))]

    @classmethod
    def short(cls, request: Request) -> Effort:
        """Return what a search spends: 8 landmarks, 1 seed, a quarter of the recipe's steps."""
        quarter = max(request.recipe().iterations // _SHORT_SHARE, 1)
        iterations = min(quarter, _QUICK_STEPS) if request.quick else quarter
        jobs = min(2, os.cpu_count() or 1)
        return cls(landmarks=8, seeds=1, iterations=iterations, jobs=jobs)


def check_trust(setting: Setting, result: StudyResult, effort: Effort, listener: Listener) -> Trust:
    """Train the landmarks of a study, or those that are left, and compare; the report is stored.

    Args:
        setting: of the search.
        result: the study.
        effort: how much.
        listener: hears how it goes.

    Raises:
        StudyError: the study or its space has too few networks under the budget, or another process
            works on it.
        TrainingError: fewer than 4 landmarks could be trained, or a process was killed.
        KeyboardInterrupt: the user stopped; what was trained is stored, and checkpoints are
            written.
    """
    try:
        with (
            exclusive(setting.database.engine, f"study {result.study}", timeout_s=1),
            _recorded(setting, result.study, effort),
        ):
            return _Check(setting, result, effort, listener).run()
    except LockedError as error:
        raise StudyError(
            f"Only one process may work on the study {result.study!r} at a time, and "
            f"{error.holder} does.",
            "Wait until it ends, or end it.",
        ) from error


def landmark_seconds(database: Database, study: str) -> float:
    """Return what the trainings took that check the ranking of a study, of every effort."""
    return sum(row.seconds for row in database.trainings(study, PURPOSE))


@contextmanager
def _recorded(setting: Setting, study: str, effort: Effort) -> Iterator[None]:
    values: dict[str, Any] = setting.run_values()
    values |= {"command": FULL_TRUST, "arguments": dataclasses.asdict(effort)}
    with setting.database.recorded(study, **values):
        yield


class _TimedError(Exception):
    """Ends a training that was only timed."""


class _Check:
    """One check while this process runs it."""

    def __init__(
        self, setting: Setting, result: StudyResult, effort: Effort, listener: Listener
    ) -> None:
        self._setting = setting
        self._result = result
        self._effort = effort
        self._listener = listener
        # Landmarks learn from labels alone, as whoever does without a search would train them.
        self._whole = setting.request.recipe().untaught()
        steps = effort.iterations or self._whole.iterations
        # The digest of a recipe is stored without its seed, which has a column of its own.
        self._recipe = dataclasses.replace(self._whole, iterations=steps, seed=0)
        self._failed: dict[str, str] = {}

    def run(self) -> Trust:
        kept = {row.architecture for row in self._rows()}
        landmarks = choose_landmarks(
            self._setting, self._result, self._effort.landmarks, kept, self._listener
        )
        if len(landmarks) < LEAST_LANDMARKS:
            raise StudyError(
                f"A ranking is checked by at least {LEAST_LANDMARKS} networks, and the budget of "
                f"{self._result.budget} admits {len(landmarks)}.",
                "Search a larger space, or with a larger budget.",
            )
        self._train(landmarks)
        trust = Trust.of_rows(
            self._result.study,
            landmarks,
            [row for row in self._rows() if row.seed < self._effort.seeds],
            iterations=self._recipe.iterations,
            recipe_iterations=self._whole.iterations,
            threshold=self._effort.threshold,
            failed=self._failed,
        )
        if len(trust.landmarks) < LEAST_LANDMARKS:
            reason = next(iter(self._failed.values()), "")
            raise TrainingError(
                f"At least {LEAST_LANDMARKS} landmarks must be trained, and "
                f"{len(trust.landmarks)} of {len(landmarks)} could be. {reason}",
                "Train with other --iterations, or more --landmarks.",
            )
        self._report(trust)
        return trust

    def _train(self, landmarks: Sequence[Landmark]) -> None:
        jobs = dict(self._jobs(landmarks))
        planned = len(landmarks) * self._effort.seeds
        if len(jobs) < planned:
            self._listener.say(f"{planned - len(jobs)} of {planned} landmarks are trained already.")
        if not jobs:
            return
        self._say_cost(jobs)
        self._listener.stage("Train landmarks", sum(job.recipe.iterations for job in jobs))
        running = run_jobs(
            list(jobs), self._setting.dataset, self._effort.jobs, self._listener.advance
        )
        with closing(running):  # so that its processes end with this block, whatever ends it
            for job, outcome in running:
                landmark = jobs[job]
                if isinstance(outcome, NasError):
                    self._failed[landmark.name] = str(outcome)
                    self._listener.say(f"{job.name} is left out: {outcome}", warning=True)
                    continue
                self._store(landmark, job.recipe.seed, outcome)
                job.checkpoint.unlink(missing_ok=True)

    def _jobs(self, landmarks: Sequence[Landmark]) -> Iterator[tuple[Job, Landmark]]:
        """Yield what is not stored yet, the first seed of all landmarks first."""
        done = {(row.architecture, row.precision, row.seed) for row in self._rows()}
        for seed in range(self._effort.seeds):
            recipe = dataclasses.replace(self._recipe, seed=seed)
            for one in landmarks:
                key = (one.candidate.architecture.digest, one.candidate.precision, seed)
                if key not in done:
                    name, runtime = f"{one.name}, seed {seed}", self._setting.runtime.name
                    path = self._checkpoint(one, recipe)
                    yield Job(name, one.candidate, recipe, runtime, path), one

    def _checkpoint(self, landmark: Landmark, recipe: Recipe) -> Path:
        folder = self._setting.request.workspace.cache / "landmarks"
        folder.mkdir(parents=True, exist_ok=True)
        named = [self._result.study, landmark.candidate.digest, recipe.digest]
        return folder / f"{digest_of([*named, self._setting.dataset.digest])}.checkpoint"

    def _say_cost(self, jobs: Mapping[Job, Landmark]) -> None:
        """Say what the trainings will take, by a few steps of the one in the middle."""
        by_size = sorted(jobs, key=lambda job: jobs[job].macs)
        step_s = self._step_s(by_size[len(by_size) // 2])
        steps = sum(job.recipe.iterations for job in jobs)
        self._listener.say(
            f"The ranking of the search is checked by {len(jobs)} trainings from scratch of "
            f"{self._recipe.iterations} steps: about {max(steps * step_s, 1):.0f} s of CPU, "
            f"{min(self._effort.jobs, len(jobs))} at a time, and what it takes to score them."
        )

    def _step_s(self, job: Job) -> float:
        """Time the first steps of a training that is thrown away, in CPU seconds per step."""
        elapsed, marks = Elapsed(), list[float]()

        def hear(at: Progress) -> None:
            marks.append(elapsed.cpu_s)
            if at.iteration == at.total - 1:
                raise _TimedError  # the rest of a training is no step

        recipe = dataclasses.replace(job.recipe, iterations=_TIMED_STEPS + 2)
        detector = Detector(job.candidate.architecture)
        with suppress(_TimedError):
            train_detector(detector, self._setting.dataset.train, recipe, progress=hear)
        return (marks[-1] - marks[0]) / _TIMED_STEPS

    def _store(self, landmark: Landmark, seed: int, outcome: Outcome) -> None:
        candidate = landmark.candidate
        self._setting.database.add_training(
            self._result.study,
            outcome.accuracy,
            outcome.resampled,
            purpose=PURPOSE,
            name=landmark.name,
            architecture=candidate.architecture.digest,
            precision=candidate.precision,
            start=_SCRATCH,
            recipe=self._recipe.digest,
            seed=seed,
            iterations=outcome.iterations,
            seconds=outcome.cpu_s,
        )

    def _rows(self) -> list[TrainingRow]:
        """Return the stored trainings that are comparable with those of now."""
        rows = self._setting.database.trainings(self._result.study, PURPOSE)
        return [row for row in rows if (row.start, row.recipe) == (_SCRATCH, self._recipe.digest)]

    def _report(self, trust: Trust) -> None:
        """Keep the report, and show its verdict where Optuna's dashboard shows the study."""
        database, study = self._setting.database, self._result.study
        database.add_report(study, SHORT_TRUST if trust.is_short else FULL_TRUST, trust.as_dict())
        with quiet_optuna(), open_storage(database) as storage, translated(database.url):
            stored = optuna.load_study(study_name=study, storage=storage)
            stored.set_user_attr("trust", trust.verdict.text)
