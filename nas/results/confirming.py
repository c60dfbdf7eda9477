"""The winner is confirmed: fine-tuned, rebuilt, measured again, and compared with plain choices.

    candidates and plain rules -> rebuilt, measured: keeps the budget? -> fine-tuned, several seeds
          -> the best on validation -> its trained engine rebuilt and measured: keeps the budget?
          -> test split, once -> beside the rivals, which went the same way

The best of the front compete with the largest and the slowest candidate of the search, and with
what the plain rules take, which is trained for the comparison anyway: who ships the winner should
not lose to a rule. Random search and the networks that a user names are compared, and never
delivered. A candidate whose fresh builds may break the budget gives its place to the next one of
the front, or of its rule, before training is spent on it and again afterwards. Of the winner's
trainings, the one that is the best on validation is delivered; what is said about the winner beside
its rivals is about all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from nas.accuracy.dataset import Split
from nas.accuracy.evaluate import Accuracy
from nas.errors import EngineError, ExportError
from nas.latency.rebuilt import BUDGET_CONFIDENCE, LEAST_CHANCE, Rebuilt
from nas.model.detector import Detector
from nas.results.ablation import Estimate
from nas.results.bench import Bench
from nas.results.builds import Builds
from nas.results.comparison import Scores, TrainingNoise, paired_difference
from nas.results.worth import Rival, Worth
from nas.searcher.baselines import Rule, Rules, named_candidate
from nas.searcher.confirmation import Contestant, FineTunings, Start, distinct
from nas.searcher.costs import search_seconds
from nas.searcher.engines import TrainedGraph
from nas.searcher.evaluation import AccuracyJudge
from nas.searcher.judges import inheriting
from nas.searcher.progress import Listener
from nas.searcher.result import StudyResult, candidate_of
from nas.searcher.setting import Setting
from nas.searcher.supernets import training_seconds, weights_of
from nas.searcher.tables import TrainingRow
from nas.searcher.trust_job import landmark_seconds
from nas.space.architecture import Candidate
from nas.units import percent

__all__ = ["Confirmer", "Winner"]

_MOST_TRIED = 20  # choices of one rule that are measured before it is given up


@dataclass(frozen=True)
class Winner:
    """What was chosen, on validation and by its latency.

    Attributes:
        contestant: the network.
        seed: of the training that is delivered.
        detector: with the weights of that training.
        graph: what its engine is built from.
        rebuilt: the latencies of its builds.
    """

    contestant: Contestant
    seed: int
    detector: Detector
    graph: TrainedGraph
    rebuilt: Rebuilt


@dataclass
class _Queue:
    """Contestants in the order in which they are preferred, and how many are wanted.

    Attributes:
        name: for a person.
        waiting: the contestants.
        wanted: of them.
        left: how many may be built before it is given up.
        admitted: those whose fresh builds keep the budget.
    """

    name: str
    waiting: Iterator[Contestant]
    wanted: int
    left: float = math.inf
    admitted: list[Contestant] = field(default_factory=list)

    def take(self, hopeless: Callable[[Contestant], bool]) -> list[Contestant]:
        """Return whom to build next, if there are any, without those who have no chance."""
        missing = min(self.wanted - len(self.admitted), self.left)
        promising = (one for one in self.waiting if not hopeless(one))
        taken = list(itertools.islice(promising, int(missing)))
        self.left -= len(taken)
        return taken


class Confirmer:
    """Confirms winners of one study.

    Args:
        setting: of the search.
        result: the study.
        listener: hears how it goes.

    Attributes:
        bench: where trained networks are examined.
        builds: the fresh builds of all that were measured.
        tunings: the trainings.
    """

    def __init__(self, setting: Setting, result: StudyResult, listener: Listener) -> None:
        self._setting = setting
        self._result = result
        self._listener = listener
        self.bench = Bench(setting.dataset, setting.runtime, setting.oracle)
        self.builds = Builds(self.bench, result.budget, setting.database, result.study)
        self._weights = weights_of(setting)
        self._judge = _judge_of(setting, listener)
        self.tunings = FineTunings(setting, result.study, self._judge, self._weights, listener)
        self._measured: dict[str, Rebuilt] = {}
        self._rules: list[Contestant] = []
        self._others: list[Contestant] = []
        self._confirmed: list[Contestant] = []
        self._missing: tuple[str, ...] = ()

    def winner(self, rows: Sequence[pd.Series], *, compared: bool) -> Winner | None:
        """Choose among candidates of the study; None if none surely keeps the budget.

        Args:
            rows: of the study, the preferred one first.
            compared: also train what the winner is to be compared with.

        Raises:
            EngineError: no candidate's engine can be built.
            TrainingError: a process was killed.
        """
        front = _Queue(
            "front", self._contestants(rows), self._setting.request.confirmation.candidates
        )
        self._admit_all(front, compared=compared)
        entrants = [*front.admitted, *self._rules]
        while entrants:
            trained = self.tunings.train([*entrants, *self._others])
            self._confirmed += front.admitted
            self._rules, self._others = (
                [one for one in rivals if one in trained] for rivals in (self._rules, self._others)
            )
            ranked = [one for one in distinct(entrants) if one in trained]
            for one in sorted(ranked, key=self._validated, reverse=True):
                found = self._built(one)
                if found is not None:
                    return found
            front.admitted.clear()
            self._admit([front])
            entrants = front.admitted
        return None

    def accuracies(self, winner: Winner) -> tuple[Accuracy, ...]:
        """Return what the delivered engine reached on validation, and on test if there is one."""
        one, seed = winner.contestant, winner.seed
        found = [self.tunings.accuracy(one, seed, "validation")]
        if self._setting.dataset.test is not None:
            self._tested(one, winner)
            found.append(self.tunings.accuracy(one, seed, "test"))
        return tuple(found)

    def worth(self, winner: Winner) -> Worth:
        """Compare the winner with its rivals; this scores all of them on the test split, once."""
        split = self._setting.dataset.test or self._setting.dataset.validation
        if self._setting.dataset.test is None:
            self._listener.say(
                "The data has no test split: the comparison is on validation, which chose the "
                "winner and flatters it.",
                warning=True,
            )
        seeds = self.tunings.seeds
        place = seeds.index(winner.seed)
        ours = self._tested(winner.contestant, winner)
        chosen = Scores(ours.reached[[place]], ours.resampled[[place]])
        return Worth(
            study=self._result.study,
            budget_ms=self._result.budget.latency_ms,
            confidence=BUDGET_CONFIDENCE if self._setting.oracle.measures else 0.0,
            split=split.name,
            images=len(split),
            seeds=seeds,
            iterations=self.tunings.recipe(self._usual_start).iterations,
            delivered_seed=winner.seed,
            delivered=chosen.over_images,
            winner=self._described(winner.contestant, winner.rebuilt, ours, None),
            rivals=self._compared(winner.contestant, ours),
            seconds=self._seconds(),
            missing=self._missing,
        )

    @property
    def _rivals(self) -> list[Contestant]:
        return [*self._rules, *self._others]

    def _admit_all(self, front: _Queue, *, compared: bool) -> None:
        """Admit those of the front, and whom the winner shall be compared with."""
        if not compared:
            self._admit([front])
            return
        wanted = self._setting.request.confirmation.baselines
        known = Rules(self._setting, self._result, self._judge, self._listener)
        plain = [] if wanted == "none" else known.plain()
        random = known.random_search() if wanted == "all" else None
        rules = [_Queue(rule.name, self._tried(rule), 1, _MOST_TRIED) for rule in plain]
        others = [_Queue(random.name, self._tried(random), 1, _MOST_TRIED)] if random else []
        largest = self._largest()
        self._admit([front, *largest, *rules, *others])
        front.admitted += [one for queue in largest for one in queue.admitted]
        self._rules = [one for queue in rules for one in queue.admitted]
        self._others = [one for queue in others for one in queue.admitted]
        self._missing = tuple(one.name for one in (*rules, *others) if not one.admitted)
        entrants = [*front.admitted, *self._rules]
        if entrants:
            self._others += self._named(entrants[0].candidate.precision)

    def _contestants(self, rows: Sequence[pd.Series]) -> Iterator[Contestant]:
        for row in rows:
            trial = int(row["trial"])
            candidate = candidate_of(row, self._setting.database)
            yield Contestant(f"trial {trial}", candidate, trial, self._usual_start)

    def _largest(self) -> list[_Queue]:
        """Return the largest and the slowest candidates of the search, whatever their scores.

        Scores of the best lie within each other's noise, and size decides among equals. A quick
        search, which tries things out, does without.
        """
        if self._setting.request.quick:
            return []
        queues = []
        for column in ("macs", "latency_ms"):
            table = self._result.scored.sort_values(column, ascending=False, kind="stable")
            rows = [row for _, row in table.iterrows()]
            queues.append(_Queue(column, self._contestants(rows), 1, _MOST_TRIED))
        return queues

    def _tried(self, rule: Rule) -> Iterator[Contestant]:
        for candidate in rule.choices:
            trial = self._result.trial_of(candidate)
            yield Contestant(rule.name, candidate, trial, self._usual_start, rule.name)

    @property
    def _usual_start(self) -> Start:
        """Where nothing is inherited, every network is trained by the whole recipe."""
        return "scratch" if self._judge is None else "inherited"

    def _named(self, precision: str) -> list[Contestant]:
        """Return what the user named, whether or not it keeps the budget, and measure it."""
        found = []
        for subject in self._setting.request.confirmation.against:
            candidate = named_candidate(self._setting, subject, precision)
            found.append(Contestant(subject, candidate, start=self._start(candidate)))
        self._measure(found)
        return found

    def _start(self, candidate: Candidate) -> Start:
        if self._judge is None:
            return "scratch"
        space, architecture = self._setting.space, candidate.architecture
        inside = any(
            space.contains(
                Candidate.model_validate({"architecture": architecture, "precision": one})
            )
            for one in space.precisions
        )
        if not inside:
            self._listener.say(
                f"{architecture.digest} lies outside the space and inherits no weights: it is "
                f"trained from scratch, {self.tunings.recipe('scratch').iterations} steps.",
            )
        return "inherited" if inside else "scratch"

    def _admit(self, queues: Sequence[_Queue]) -> None:
        """Fill every queue with contestants whose fresh builds keep the budget."""
        self._listener.stage("Measure fresh builds", 0)
        skipped: list[Contestant] = []

        def hopeless(one: Contestant) -> bool:
            found = self._is_hopeless(one)
            skipped.extend([one] if found else [])
            return found

        while picks := [(queue, one) for queue in queues for one in queue.take(hopeless)]:
            self._measure([one for _, one in picks])
            for queue, one in picks:
                rebuilt = self._measured.get(one.candidate.digest)
                if rebuilt is not None and self._keeps(one, rebuilt):
                    queue.admitted.append(one)
        self._tell_skipped(skipped)

    def _is_hopeless(self, one: Contestant) -> bool:
        """Whether builds would be wasted on a network, by what the search knows of its latency."""
        if one.candidate.digest in self._measured:
            return False
        return self.builds.hopeless(self._setting.latency(one.candidate, self._result.budget))

    def _tell_skipped(self, skipped: Sequence[Contestant]) -> None:
        if count := len({one.candidate.digest for one in skipped}):
            who = f"{count} candidates" if count > 1 else "1 candidate"
            self._listener.say(
                f"{who} within the budget of {self._result.budget} {'are' if count > 1 else 'is'} "
                "too near it: as builds differ here, the chance that fresh ones surely keep it is "
                f"below {percent(LEAST_CHANCE)}. Nothing was built."
            )

    def _measure(self, contestants: Sequence[Contestant]) -> None:
        graphs = {}
        for one in contestants:
            digest = one.candidate.digest
            if digest not in self._measured and digest not in graphs:
                try:
                    graph = self.bench.graph(self.tunings.inherited(one), one.candidate)
                except (EngineError, ExportError) as error:
                    self._listener.say(f"{one.name} cannot be built: {error}", warning=True)
                    continue
                graphs[digest] = (graph, one.candidate)
        found = self.builds.rebuilt(list(graphs.values()))
        self._measured |= dict(zip(graphs, found, strict=True))

    def _keeps(self, one: Contestant, rebuilt: Rebuilt) -> bool:
        budget = self._result.budget
        # Where nothing is measured nothing is promised; few estimates would be below it for sure.
        surest = rebuilt.bound_ms() if self._setting.oracle.measures else rebuilt.ms
        if budget.admits(surest):
            return True
        self._listener.say(
            f"{one.name} takes {rebuilt.ms:.3f} ms in {len(rebuilt.builds)} builds, and a fresh "
            f"one up to {surest:.3f} ms ({percent(BUDGET_CONFIDENCE)} confidence), which may break "
            f"the budget of {budget}: it is left out.",
            warning=True,
        )
        return False

    def _validated(self, one: Contestant) -> float:
        """Score a trained network by the mean over its seeds on validation."""
        accuracy = float(np.mean([row.map50_95 for row in self.tunings.validation(one)]))
        return self._result.score(accuracy, self._measured[one.candidate.digest].ms)

    def _built(self, one: Contestant) -> Winner | None:
        """Build and measure the best training of a network; None if it may break the budget."""
        best = max(self.tunings.validation(one), key=lambda row: row.map50_95)
        self._warn_unless_better(one, best.map50_95)
        detector = self.tunings.detector(one, best.seed)
        graph = self.bench.graph(detector, one.candidate)
        (rebuilt,) = self.builds.rebuilt([(graph, one.candidate)])
        if not self._keeps(one, rebuilt):
            return None
        return Winner(one, best.seed, detector, graph, rebuilt)

    def _warn_unless_better(self, one: Contestant, after: float) -> None:
        if one.trial is None or one.start == "scratch":
            return
        before = float(self._result.row(one.trial)["map50_95"])
        if after < before:
            self._listener.say(
                f"Fine-tuning did not help {one.name}: mAP50-95 {before:.3f} to {after:.3f} on "
                "validation. A longer recipe may.",
                warning=True,
            )

    def _tested(self, one: Contestant, winner: Winner | None = None) -> Scores:
        """Return what every training of a network reached where nothing was chosen."""
        test = self._setting.dataset.test
        rows = self.tunings.validation(one)
        if test is not None:
            rows = [self._test(one, row.seed, test, winner) for row in rows]
        reached = np.array([row.map50_95 for row in rows])
        return Scores(reached, np.array([row.resampled for row in rows]))

    def _test(self, one: Contestant, seed: int, test: Split, winner: Winner | None) -> TrainingRow:
        def score() -> tuple[Accuracy, list[float]]:
            delivered = winner is not None and seed == winner.seed
            graph = (
                winner.graph
                if winner is not None and delivered
                else self.bench.graph(self.tunings.detector(one, seed), one.candidate)
            )
            return self.bench.scored(graph, one.candidate, test, one.weights)

        return self.tunings.test_once(one, seed, score)

    def _compared(self, winner: Contestant, ours: Scores) -> tuple[Rival, ...]:
        """Compare the winner with every rival; how trainings vary is learnt from all alike."""
        scores = {one: self._tested(one) for one in self._rivals}
        alike = distinct([winner, *(one for one in scores if one.start == winner.start)])
        noise = TrainingNoise.of([ours, *(scores[one] for one in alike[1:])])
        found = []
        for one, theirs in scores.items():
            common = noise if one.start == winner.start else None
            same = one.candidate.digest == winner.candidate.digest
            gain = None if same else paired_difference(ours, theirs, common)
            rebuilt = self._measured[one.candidate.digest]
            found.append(self._described(one, rebuilt, theirs, gain))
        return tuple(found)

    def _described(
        self, one: Contestant, rebuilt: Rebuilt, scores: Scores, gain: Estimate | None
    ) -> Rival:
        """Describe a network; one without a gain is the winner's."""
        measures, budget = self._setting.oracle.measures, self._result.budget
        return Rival(
            name=one.name,
            architecture=one.candidate.architecture.digest,
            precision=one.candidate.precision,
            start=one.start,
            latency_ms=rebuilt.ms,
            bound_ms=rebuilt.bound_ms(),
            keeps=budget.admits(rebuilt.bound_ms() if measures else rebuilt.ms),
            over_images=scores.over_images,
            over_seeds=scores.over_seeds,
            gain=gain or Estimate(0.0, 0.0, 0.0),
            same=gain is None,
        )

    def _seconds(self) -> dict[str, float | None]:
        confirmed = {one.candidate.digest for one in self._confirmed}
        others = [one for one in self._rivals if one.candidate.digest not in confirmed]
        place, database, study = (
            self._setting.request.workspace,
            self._setting.database,
            self._result.study,
        )
        return {
            "supernet": training_seconds(place, self._weights),
            "search": search_seconds(database, study),
            "ranking check": landmark_seconds(database, study),
            "confirmation": self.tunings.seconds(self._confirmed),
            "baselines": self.tunings.seconds(others),
        }


def _judge_of(setting: Setting, listener: Listener) -> AccuracyJudge | None:
    """Return who hands down the weights of the supernet; None where there is none."""
    if setting.request.accuracy == "training":
        return None
    return inheriting(setting, listener)
