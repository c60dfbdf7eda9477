"""Winners are confirmed: real trainings of tiny networks, with latencies that are made up."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from heard import Heard

from nas.accuracy.dataset import SplitName
from nas.accuracy.evaluate import Accuracy
from nas.errors import BudgetError, StudyError
from nas.latency.environment import Environment
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.oracle import LatencyOracle, Network
from nas.model.supernet import Supernet
from nas.results.builds import KIND as BUILDS
from nas.results.confirming import Confirmer
from nas.results.delivery import deliver
from nas.results.worth import KIND, Worth
from nas.searcher.confirmation import PURPOSE, Contestant, FineTunings
from nas.searcher.loop import search
from nas.searcher.progress import Silent
from nas.searcher.request import Confirmation, Request, Workspace
from nas.searcher.result import StudyResult
from nas.searcher.setting import Setting, open_setting
from nas.searcher.supernets import weights_of
from nas.searcher.tables import TrainingRow
from nas.space.architecture import Candidate
from nas.units import Budget

SPACE = """\
name: tiny
description: Four networks.
choices:
  input: [64, 96]
  hidden: [8, 16]
architecture:
  input: $input
  stem: {channels: 8}
  backbone:
    P2: {block: c2f, channels: 8, hidden: 8}
    P3: {block: c2f, channels: 8, hidden: $hidden}
    P4: {block: c2f, channels: 8, hidden: 8}
    P5: {block: c2f, channels: 8, hidden: 8}
  neck: {kind: fpn, top_down: {P4: {block: c2f, channels: 8, hidden: 8},
    P3: {block: c2f, channels: 8, hidden: 8}}}
  head: {channels: 8}
"""
BUDGET = Budget(10.0)


class Scripted(LatencyOracle):
    """A device of which everything is known: 1 ms and more, the same at every build but the noisy.

    Attributes:
        noisy: networks whose builds differ by a tenth.
        builds: how often each was built.
        known: latencies that the search has; the usual ones of all others.
        kills: the builds at which the process is killed.
    """

    measures = True

    def __init__(self) -> None:
        super().__init__(Hardware.named("cpu"), ("fp32",))
        self.noisy: set[str] = set()
        self.builds: dict[str, int] = {}
        self.known: dict[str, float] = {}
        self.kills: set[int] = set()
        self.closed = 0

    def environment(self, precision: str) -> Environment:
        return Environment(
            device="a script",
            runtime="openvino",
            runtime_version="1",
            precision=precision,
            threads=1,
            protocol="hot",
            clock="none",
            reference="none",
        )

    def answer(self, network: Network, precision: str, budget: Budget | None = None) -> Latency:
        del budget
        assert network.architecture is not None
        ms = self._ms(network)
        return Latency(ms, 0.99 * ms, 1.01 * ms, "measured", self.environment(precision))

    def confirm(self, network: Network, engine: bytes, precision: str) -> Latency:
        del engine
        if sum(self.builds.values()) in self.kills:
            self.kills.clear()
            raise KeyboardInterrupt
        count = self.builds[network.key] = self.builds.get(network.key, 0) + 1
        factor = 0.9 + 0.1 * (count % 3) if network.key in self.noisy else 1.0
        ms = 9.0 * factor
        return Latency(ms, 0.99 * ms, 1.01 * ms, "measured", self.environment(precision))

    def close(self) -> None:
        self.closed += 1

    def _ms(self, network: Network) -> float:
        assert network.architecture is not None
        usual = 1 + float(np.prod(network.architecture.input)) / 96**2
        return self.known.get(network.key, usual)


@pytest.fixture
def setting(tmp_path: Path, make_shapes: Callable[..., Path]) -> Iterator[Setting]:
    """A search on small data whose supernet was never trained: what it finds does not matter."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    request = Request(
        budget=BUDGET,
        data=str(make_shapes(tmp_path / "data", "coco", train=6, val=4, test=4)),
        space=str(tmp_path / "tiny.yaml"),
        sampler="random",
        evaluations=3,
        study="s",
        workspace=Workspace(tmp_path / "studies"),
        quick=True,
        confirmation=Confirmation(candidates=2, seeds=1),
    )
    with open_setting(request, Silent()) as opened:
        supernet = Supernet(opened.space.covering(opened.classes), seed=0)
        path = request.workspace.supernet(weights_of(opened))
        path.parent.mkdir(parents=True)
        supernet.save(path)
        yield scripted(opened, Scripted())


def scripted(setting: Setting, oracle: Scripted) -> Setting:
    answers = dataclasses.replace(setting.answers, oracle=oracle)
    latency = type(setting.latency)(oracle, setting.database, setting.space.digest)
    return dataclasses.replace(setting, answers=answers, latency=latency)


def with_confirmation(setting: Setting, **changes: object) -> Setting:
    confirmation = dataclasses.replace(setting.request.confirmation, **changes)
    request = dataclasses.replace(setting.request, confirmation=confirmation)
    return dataclasses.replace(setting, request=request)


def test_deliver__confirms_compares_and_trains_nothing_twice(setting: Setting) -> None:
    setting = with_confirmation(setting, seeds=2, baselines="all", against=("min",))
    result = search(setting, Silent())
    delivered = deliver(setting, result, Silent())
    bundle = delivered.bundle
    worth = bundle.worth
    assert worth is not None
    names = [one.name for one in worth.rivals]
    rules = ["most MACs that fits", "uniform scaling", "random search"]
    assert names == [*rules, "min"]
    assert worth.seeds == (0, 1)
    assert [one.split for one in bundle.accuracies] == ["validation", "test"]
    assert bundle.latency.source == "measured"
    for name in ("worth.html", "worth.csv", "card.md"):
        assert (delivered.folder / name).exists()
    assert "Was the search worth it?" in (delivered.folder / "card.md").read_text()
    stored = setting.database.find_report("s", KIND)
    assert stored is not None
    assert Worth.from_dict(stored).as_dict() == worth.as_dict()

    rows = setting.database.trainings("s", PURPOSE)
    heard = Heard()
    again = deliver(setting, result, heard)
    assert not any(stage.startswith("Fine-tune") for stage in heard.stages)
    assert [row.created for row in setting.database.trainings("s", PURPOSE)] == [
        row.created for row in rows
    ]
    assert again.bundle.accuracies == bundle.accuracies
    per_network = {(row.architecture, row.seed, row.split) for row in rows}
    assert len(per_network) == len(rows)


def test_deliver__a_named_trial_alone(setting: Setting) -> None:
    result = search(setting, Silent())
    trial = int(result.front["trial"].iloc[-1])
    delivered = deliver(setting, result, Silent(), trial)
    assert (delivered.trial, delivered.bundle.worth) == (trial, None)
    assert len({row.architecture for row in setting.database.trainings("s", PURPOSE)}) == 1


def test_winner__that_may_break_the_budget_gives_its_place_away(setting: Setting) -> None:
    """Its mean keeps the budget; its builds differ too much for the next one to be sure."""
    oracle = setting.oracle
    assert isinstance(oracle, Scripted)
    setting = with_confirmation(setting, baselines="none")
    result = everything(search(setting, Silent()))
    first, *others = result.front["architecture"]
    oracle.noisy = {first}
    heard = Heard()
    delivered = deliver(setting, result, heard)
    assert delivered.bundle.candidate.architecture.digest in others
    assert any("may break the budget" in line for line in heard.lines)
    assert oracle.builds[first] == 3  # further ones could hardly make it sure
    trained = {row.architecture for row in setting.database.trainings("s", PURPOSE)}
    assert first not in trained
    assert oracle.closed >= 3


def test_winner__too_near_the_budget_is_not_built(setting: Setting) -> None:
    """Three networks have shown how much builds differ, before the confirmation was killed."""
    oracle = setting.oracle
    assert isinstance(oracle, Scripted)
    environment = oracle.environment("fp32").digest
    for graph, ms in itertools.product("abc", (5.0, 5.05, 5.1)):
        interval = {"ms": ms, "low_ms": 0.99 * ms, "high_ms": 1.01 * ms}
        row = {"graph": graph, "environment": environment, **interval}
        setting.database.add_report("s", BUILDS, row)
    setting = with_confirmation(setting, baselines="none", candidates=1)
    result = everything(search(setting, Silent()))
    first, *others = result.front["architecture"]
    oracle.known = {first: 9.99}
    heard = Heard()
    delivered = deliver(setting, result, heard)
    assert delivered.bundle.candidate.architecture.digest in others
    assert first not in oracle.builds
    assert sum("1 candidate within the budget of 10ms is too near it" in one for one in heard.lines)


def test_deliver__builds_nothing_twice_after_a_kill(setting: Setting) -> None:
    oracle = setting.oracle
    assert isinstance(oracle, Scripted)
    result = search(setting, Silent())
    deliver(setting, result, Silent())
    whole = dict(oracle.builds)
    kill = sum(whole.values()) - 1
    oracle.builds.clear()
    oracle.kills = {kill}
    with pytest.raises(KeyboardInterrupt):
        deliver(setting, result, Silent())
    assert sum(oracle.builds.values()) == kill  # measured afresh: the first confirmation ended
    deliver(setting, result, Silent())
    assert oracle.builds == whole


def test_winner__may_be_what_a_plain_rule_takes(setting: Setting) -> None:
    """Both rules take the largest network, though the search never scored it."""
    setting = with_confirmation(setting, candidates=1)
    largest = setting.candidate(setting.space.anchors["max"])
    result = without(everything(search(setting, Silent())), largest)
    first = deliver(setting, result, Silent())
    found, by_rule = result.front["architecture"].iloc[0], largest.architecture.digest
    reached = validated(setting)
    # Equal ones stay in the order of the front before the rules.
    expected = by_rule if reached[by_rule] > reached[found] else found
    assert first.bundle.candidate.architecture.digest == expected
    assert (first.bundle.provenance.rule != "") == (expected == by_rule)

    promote(setting, found)
    assert deliver(setting, result, Silent()).bundle.provenance.rule == ""
    promote(setting, by_rule)
    delivered = deliver(setting, result, Silent())
    bundle, worth = delivered.bundle, delivered.bundle.worth
    assert bundle.candidate == largest
    assert (delivered.trial, bundle.provenance.rule) == (None, "most MACs that fits")
    card = (delivered.folder / "card.md").read_text()
    assert "the study `s`, chosen by the plain rule 'most MACs that fits'" in card
    assert worth is not None
    same = [one.name for one in worth.rivals if one.same]
    assert same == ["most MACs that fits", "uniform scaling"]


def test_deliver__nothing_if_nothing_surely_keeps_the_budget(setting: Setting) -> None:
    oracle = setting.oracle
    assert isinstance(oracle, Scripted)
    result = search(setting, Silent())
    points = itertools.product(*setting.space.choices.values())
    for labels in points:  # those too that only a plain rule would take
        candidate = setting.candidate(dict(zip(setting.space.choices, labels, strict=True)))
        oracle.noisy.add(candidate.architecture.digest)
    with pytest.raises(BudgetError, match="surely keeps the budget"):
        deliver(setting, result, Silent())
    assert not setting.database.trainings("s", PURPOSE)


def test_choice__does_not_look_at_the_test_split(setting: Setting) -> None:
    """Whatever stands in the test rows, the same network and seed are chosen."""
    setting = with_confirmation(setting, baselines="none")
    result = everything(search(setting, Silent()))
    rows = [row for _, row in result.front.iterrows()]
    before = Confirmer(setting, result, Silent()).winner(rows, compared=False)
    assert before is not None
    for row in setting.database.trainings("s", PURPOSE):
        best = (row.architecture, row.seed) == (
            before.contestant.candidate.architecture.digest,
            before.seed,
        )
        store_again(setting, row, "test", 0.0 if best else 1.0)
    after = Confirmer(setting, result, Silent()).winner(rows, compared=False)
    assert after is not None
    assert (after.contestant, after.seed) == (before.contestant, before.seed)


def test_test_score__is_stored_once_and_never_computed_again(setting: Setting) -> None:
    result = search(setting, Silent())
    confirmer = Confirmer(setting, result, Silent())
    tunings: FineTunings = confirmer.tunings
    point = setting.space.anchors["min"]
    contestant = Contestant("min", setting.candidate(point))
    (trained,) = tunings.train([contestant])
    validation = setting.dataset.validation
    assert setting.dataset.test is not None
    asked = []

    def score():  # type: ignore[no-untyped-def]
        asked.append(1)
        graph = confirmer.bench.graph(tunings.detector(contestant, 0), contestant.candidate)
        return confirmer.bench.scored(graph, contestant.candidate, setting.dataset.test, "trained")

    first = tunings.test_once(trained, 0, score)
    assert tunings.test_once(trained, 0, score).id == first.id
    assert len(asked) == 1
    with pytest.raises(StudyError, match="never trained"):
        tunings.test_once(trained, 9, score)
    assert len(validation) == 4


def test_train__again_where_the_weights_are_gone(setting: Setting) -> None:
    result = search(setting, Silent())
    tunings = Confirmer(setting, result, Silent()).tunings
    contestant = Contestant("max", setting.candidate(setting.space.anchors["max"]))
    tunings.train([contestant])
    before = tunings.validation(contestant)
    for path in (setting.request.workspace.cache / PURPOSE).glob("*.safetensors"):
        path.unlink()
    heard = Heard()
    again = Confirmer(setting, result, heard).tunings
    again.train([contestant])
    assert heard.stages == ["Fine-tune, networks: 1, trainings: 1"]
    assert [row.map50_95 for row in again.validation(contestant)] == [
        row.map50_95 for row in before
    ]


def test_against__a_network_outside_the_space_is_trained_from_scratch(
    setting: Setting, tmp_path: Path
) -> None:
    architecture = setting.candidate(setting.space.anchors["min"]).architecture
    data = architecture.canonical()
    data["head"] = {**data["head"], "channels": 16}
    path = tmp_path / "other.yaml"
    path.write_text(type(architecture).parse({**data, "classes": 7}).to_yaml())
    setting = with_confirmation(
        setting, candidates=1, seeds=1, baselines="none", against=(str(path),)
    )
    heard = Heard()
    worth = deliver(setting, search(setting, Silent()), heard).bundle.worth
    assert worth is not None
    (other,) = worth.rivals
    assert (other.name, other.start) == (str(path), "scratch")
    assert any("outside the space" in line for line in heard.lines)


def without(result: StudyResult, candidate: Candidate) -> StudyResult:
    table = result.evaluations
    other = table["architecture"] != candidate.architecture.digest
    return dataclasses.replace(result, evaluations=table[other])


def store_again(setting: Setting, row: TrainingRow, split: SplitName, reached: float) -> None:
    """Store a training as if it had reached something else on a split."""
    values = {one.name: getattr(row, one.name) for one in row.__table__.columns}
    for name in ("id", "study_name", "resampled"):
        del values[name]
    accuracy = Accuracy(
        *(reached, reached, None, None, None),
        images=4,
        split=split,
        weights="fine-tuned",
        artifact="engine",
    )
    setting.database.add_training("s", accuracy, row.resampled, **values)


def validated(setting: Setting) -> dict[str, float]:
    """Return what every network reached on validation; each was trained once."""
    rows = setting.database.trainings("s", PURPOSE)
    return {row.architecture: row.map50_95 for row in rows if row.split == "validation"}


def promote(setting: Setting, architecture: str) -> None:
    """Store that a network reached everything on validation, and all others nothing."""
    for row in setting.database.trainings("s", PURPOSE):
        if row.split == "validation":
            store_again(setting, row, "validation", float(row.architecture == architecture))


def everything(result: StudyResult) -> StudyResult:
    """Put every candidate on the front: the slower the better."""
    table = result.evaluations.copy()
    order = np.argsort(np.argsort(table["latency_ms"] + table["macs"] * 1e-12))
    table["map50_95"] = 0.1 + 0.01 * order
    table["latency_ms"] = 1.0 + 0.1 * order
    return dataclasses.replace(result, evaluations=table)
