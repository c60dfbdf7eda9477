"""Searches repeated with many seeds, in several processes; what is finished is kept."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from nas.latency.clock import Elapsed

from .strategies import Strategy
from .tasks import Pool, Task

# Answers from memory in a row, after which a random network is queried instead.
REPETITIONS = 1000


@dataclass(frozen=True)
class Method:
    """A strategy by name.

    Args:
        name: in results.
        make: from what may be queried and a seed.
        seeds: how many searches.
        code: files and folders that the strategy is written in; kept runs of others are not used.
        most: queries, where the group's are too many for it.
    """

    name: str
    make: Callable[[Pool, int], Strategy]
    seeds: int
    code: tuple[Path, ...]
    most: int = sys.maxsize


@dataclass(frozen=True)
class Run:
    """One search.

    Args:
        rows: queried, in order. The search ends early once the optimum is found without noise.
        picks: number of queries -> the row reported then; only where queries have noise.
        cpu_s: CPU seconds of the whole search.
    """

    rows: list[int]
    picks: dict[int, int]
    cpu_s: float


@dataclass(frozen=True)
class Group:
    """Tasks that are reported together: the same seed of each makes one sample."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def queries(self) -> int:
        """Of each search, at most."""
        return self.tasks[0].queries


def replay(task: Task, strategy: Strategy, seed: int, most: int = sys.maxsize) -> Run:
    """Let a strategy search a table, with as many queries as the task says, or fewer."""
    elapsed, noise = Elapsed(), np.random.default_rng([seed, 1])
    known: dict[int, float] = {}
    picks: dict[int, int] = {}
    repeated, most = 0, min(most, task.queries, task.pool.n_allowed)
    while len(known) < most and not _solved(task, known):
        row = strategy.ask() if repeated < REPETITIONS else strategy.fresh()
        repeated = repeated + 1 if row in known else 0
        if row not in known:
            known[row] = float(task.table.accuracy[row] + task.noise * noise.standard_normal())
        strategy.tell(row, known[row])
        if task.noise and not repeated and len(known) % 10 == 0:
            picks[len(known)] = strategy.pick()
    return Run(list(known), picks, round(elapsed.cpu_s, 3))


def _solved(task: Task, known: dict[int, float]) -> bool:
    if task.front or task.noise or not known:
        return False
    return max(known.values()) >= float(task.optima[0])


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Args:
        groups: of tasks.
        methods: group -> those that search it.
        kept: folder of finished runs.
    """

    groups: tuple[Group, ...]
    methods: dict[str, tuple[Method, ...]]
    kept: Path
    digests: dict[tuple[str, str], str] = field(init=False)

    def __post_init__(self) -> None:
        # Taken now, when the code has just been loaded: files may change while it runs.
        found = {
            (group.name, method.name): _digest(group, method)
            for group in self.groups
            for method in self.methods[group.name]
        }
        object.__setattr__(self, "digests", found)

    def repeat(self, processes: int) -> Iterator[Sample]:
        """Run what was not run yet, and yield all, in no certain order."""
        jobs = [
            (seed, group, method)
            for group in range(len(self.groups))
            for method, found in enumerate(self.methods[self.groups[group].name])
            for seed in range(found.seeds)
        ]
        if processes == 1:
            yield from (self.run(*job) for job in jobs)
            return
        # Fresh interpreters, so that each reads the limit of threads before it loads a library.
        with get_context("spawn").Pool(processes, _start, (self,)) as pool:
            yield from pool.imap_unordered(_run, jobs)

    def run(self, seed: int, group: int, method: int) -> Sample:
        """Run one seed, or read what is kept of it."""
        tasks = self.groups[group]
        way = self.methods[tasks.name][method]
        path = self.kept / tasks.name.replace("/", "-") / way.name
        path = path / self.digests[tasks.name, way.name] / f"{seed}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps([asdict(run) for run in _runs(tasks, way, seed)]))
            partial.replace(path)  # a kill leaves no half of a file behind
        queries = min(tasks.queries, way.most)
        return Sample(tasks.name, way.name, seed, queries, _read(path))


@dataclass(frozen=True)
class Sample:
    """One seed of a method on all tasks of a group, each with so many queries."""

    group: str
    method: str
    seed: int
    queries: int
    runs: tuple[Run, ...]


def _runs(group: Group, method: Method, seed: int) -> Iterator[Run]:
    for place, task in enumerate(group.tasks):
        own = seed * 1000 + place  # tasks of a group are searches of their own, and so are seeds
        yield replay(task, method.make(task.pool, own), own, method.most)


def _read(path: Path) -> tuple[Run, ...]:
    kept = [Run(**item) for item in json.loads(path.read_text())]
    return tuple(Run(r.rows, {int(n): pick for n, pick in r.picks.items()}, r.cpu_s) for r in kept)


_PLAN: list[Plan] = []


def _start(plan: Plan) -> None:
    os.nice(10)
    _PLAN.append(plan)


def _run(job: tuple[int, int, int]) -> Sample:
    return _PLAN[0].run(*job)


def _digest(group: Group, method: Method) -> str:
    first = group.tasks[0]
    digest = hashlib.sha256()
    for part in (first.table.codes, first.table.accuracy, first.pool.latency_ms):
        digest.update(np.ascontiguousarray(part).tobytes())
    asked = [(task.name, task.budgets_ms, task.noise, task.queries) for task in group.tasks]
    digest.update(repr((asked, method.most)).encode())
    for file in _files(method.code):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _files(code: tuple[Path, ...]) -> list[Path]:
    return [file for path in code for file in (sorted(path.rglob("*.py")) or [path])]
