from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_architecture

from nas.accuracy import training
from nas.accuracy.dataset import Dataset, Split
from nas.accuracy.loss import LossParts
from nas.accuracy.recipe import Recipe
from nas.accuracy.sampling import Subnets
from nas.accuracy.training import Progress, train_detector, train_supernet
from nas.errors import InputError, StorageError, TrainingError
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


LARGEST, SMALLEST = tiny_architecture(side=32), tiny_architecture(hidden=4, side=32)
TINY = Recipe(iterations=6, batch_size=2, checkpoint_every=2)


def _sample(_: int, generator: np.random.Generator) -> Architecture:
    hidden, side = (int(generator.choice(values)) for values in ([4, 8], [32, 64]))
    return tiny_architecture(hidden=hidden, side=side)


@pytest.fixture(scope="session")
def train(few_digits: Dataset) -> Split:
    return few_digits.train


Run = Callable[..., Supernet]


@pytest.fixture
def run(train: Split) -> Run:
    """Train a fresh small supernet."""

    def start(recipe: Recipe = TINY, **options: Any) -> Supernet:
        supernet = Supernet([LARGEST])
        options.setdefault("smallest", SMALLEST)
        train_supernet(supernet, _sample, LARGEST, train, recipe, **options)
        return supernet

    return start


def _same(a: Supernet, b: Supernet) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_train_detector__overfits_four_images(train: Split) -> None:
    four = train.subset("train", range(4))
    recipe = Recipe(
        iterations=40, batch_size=4, zoom=0, shift=0, light=0, contrast=0, peak_lr=0.01, topk=4
    )
    losses: list[float] = []
    detector = Detector(tiny_architecture())
    result = train_detector(detector, four, recipe, progress=lambda p: losses.append(p.loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert result.loss == pytest.approx(np.mean(losses[-4:]))
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(norm.track_running_stats and norm.running_var is not None for norm in norms)
    assert any((norm.running_mean != 0).any() for norm in norms if norm.running_mean is not None)


@pytest.mark.parametrize("rule", ["uniform", "sandwich"])
def test_train_supernet__repeats_itself(run: Run, rule: str) -> None:
    recipe = dataclasses.replace(TINY, rule=rule, largest_only=0.3)
    assert _same(run(recipe), run(recipe))
    assert not _same(run(recipe), run(dataclasses.replace(recipe, seed=1)))


def test_train_supernet__in_place_teaching_starts_when_the_recipe_says(run: Run) -> None:
    recipe = dataclasses.replace(
        TINY, rule="sandwich", largest_only=0, in_place=1.0, in_place_from=0.5
    )
    parts: list[dict[str, float]] = []
    taught = run(recipe, progress=lambda p: parts.append(p.parts))
    assert [("taught_boxes" in one) for one in parts] == [False] * 3 + [True] * 3
    assert not _same(taught, run(dataclasses.replace(recipe, in_place=0.0)))
    assert not _same(taught, run(dataclasses.replace(recipe, shared_assignment=True)))


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_train_supernet__resumed_equals_uninterrupted(run: Run, tmp_path: Path, stop: int) -> None:
    path = tmp_path / "checkpoint"

    def interrupt(progress: Progress) -> None:
        if progress.iteration == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=interrupt, checkpoint=path)
    seen: list[int] = []
    resumed = run(progress=lambda p: seen.append(p.iteration), checkpoint=path)
    assert seen == list(range(stop + 1, 7))
    assert _same(resumed, run())


def test_train_supernet__killed_loses_no_more_than_the_last_steps(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def die(progress: Progress) -> None:
        if progress.iteration == 5:
            raise SystemExit  # unlike an interrupt, it writes nothing on the way out

    with pytest.raises(SystemExit):
        run(progress=die, checkpoint=path)
    seen: list[int] = []
    assert _same(run(progress=lambda p: seen.append(p.iteration), checkpoint=path), run())
    assert seen == [5, 6]


def test_train_supernet__finished_checkpoint_needs_no_step(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    first = run(checkpoint=path)
    seen: list[Progress] = []
    assert _same(first, run(progress=seen.append, checkpoint=path))
    assert seen == []


def test_train_detector__resumed_equals_uninterrupted(train: Split, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def interrupt(progress: Progress) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    detectors = [Detector(LARGEST) for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        train_detector(detectors[0], train, TINY, progress=interrupt, checkpoint=path)
    train_detector(detectors[1], train, TINY, checkpoint=path)
    train_detector(detectors[2], train, TINY)
    resumed, whole = (detector.state_dict() for detector in detectors[1:])
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("damage", ["other recipe", "garbage"])
def test_checkpoint__that_does_not_fit_is_refused(run: Run, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint"
    recipe = TINY
    if damage == "garbage":
        path.write_bytes(b"no checkpoint")
    else:
        run(checkpoint=path)
        recipe = dataclasses.replace(TINY, seed=9)
    with pytest.raises(StorageError, match="checkpoint"):
        run(recipe, checkpoint=path)


class _Broken(training.DetectionLoss):
    """A loss that is not a number in some calls."""

    bad: frozenset[int] = frozenset()
    calls: list[int]

    def __call__(self, *args: Any) -> LossParts:
        parts = super().__call__(*args)
        self.calls.append(len(self.calls))
        broken = len(self.calls) in self.bad
        return parts._replace(box=parts.box * math.nan) if broken else parts


def _break(monkeypatch: pytest.MonkeyPatch, bad: range) -> None:
    broken = type("Broken", (_Broken,), {"bad": frozenset(bad), "calls": []})
    monkeypatch.setattr(training, "DetectionLoss", broken)


@pytest.mark.parametrize("bad", [range(2, 4), range(1, 9)], ids=["skipped", "rolled back"])
def test_train_supernet__survives_a_loss_that_is_not_a_number(
    train: Split, monkeypatch: pytest.MonkeyPatch, bad: range
) -> None:
    _break(monkeypatch, bad)
    supernet = Supernet([LARGEST])
    recipe = dataclasses.replace(TINY, iterations=12)
    losses: list[float] = []
    result = train_supernet(
        supernet, _sample, LARGEST, train, recipe, progress=lambda p: losses.append(p.loss)
    )
    assert result.skipped == len(bad) == sum(map(math.isnan, losses))
    assert all(parameter.isfinite().all() for parameter in supernet.parameters())


def test_train_supernet__gives_up_on_a_loss_that_stays_not_a_number(
    train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(monkeypatch, range(1, 1000))
    recipe = dataclasses.replace(TINY, iterations=100)
    with pytest.raises(TrainingError, match="not finite in 20 of 20 steps"):
        train_supernet(Supernet([LARGEST]), _sample, LARGEST, train, recipe)


def test_train_supernet__a_skipped_step_changes_no_statistics(
    train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(monkeypatch, range(1, 3))
    detector = Detector(LARGEST)
    train_detector(detector, train, TINY)
    assert all(tensor.isfinite().all() for tensor in detector.state_dict().values())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_train_supernet__reduced_precision_trains(run: Run, amp: Any) -> None:
    reduced = run(dataclasses.replace(TINY, amp=amp))
    full = run(dataclasses.replace(TINY, amp="off"))
    assert not _same(reduced, full)
    assert all(parameter.dtype == torch.float32 for parameter in reduced.parameters())


def test_train_supernet__leaves_the_mode_as_it_was(train: Split) -> None:
    supernet = Supernet([LARGEST]).eval()
    train_supernet(supernet, _sample, LARGEST, train, dataclasses.replace(TINY, iterations=1))
    assert not supernet.training


@pytest.mark.parametrize(
    ("rule", "step", "expected"),
    [("uniform", 0, 1), ("uniform", 2, 1), ("sandwich", 0, 1), ("sandwich", 2, 3)],
)
def test_subnets__of_a_step(rule: Any, step: int, expected: int) -> None:
    subnets = Subnets(rule, _sample, LARGEST, SMALLEST, warmup=2)
    chosen = subnets(step, np.random.default_rng(step))
    assert len(chosen) == expected
    assert len({one.input for one in chosen}) == 1
    if step < 2 or rule == "sandwich":
        assert chosen[0] == LARGEST.at_input(chosen[0].input)


def test_subnets__warm_up_at_the_median_input() -> None:
    sizes = iter([32] * 30 + [64] * 40 + [96] * 31)
    subnets = Subnets(
        "uniform", lambda *_: tiny_architecture(hidden=4, side=next(sizes)), LARGEST, warmup=9
    )
    for step in range(9):
        assert subnets(step, np.random.default_rng(step)) == (tiny_architecture(),)


def test_subnets__sandwich_needs_a_smallest() -> None:
    with pytest.raises(InputError, match="smallest"):
        Subnets("sandwich", _sample, LARGEST)


@pytest.mark.parametrize(("side", "kind"), [(64, "dense"), (128, "sparse")])
def test_at_input__attention_to_more_tokens_than_there_are(side: int, kind: str) -> None:
    moved = tiny_architecture(side=128, tokens=32).at_input((side, side))
    assert moved.attention.P4 is not None
    assert moved.attention.P4.kind == kind


def test_recipe__learning_rate_rises_then_falls() -> None:
    recipe = Recipe(iterations=100, warmup=0.1, peak_lr=0.01, final_lr=0.05)
    rates = [recipe.learning_rate(step) for step in range(100)]
    assert rates[0] < 0.001
    assert rates[10] == max(rates) == pytest.approx(0.01)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    assert rates[-1] == pytest.approx(0.0005, rel=0.1)


def test_recipe__digest_names_what_decides_the_weights() -> None:
    recipe = Recipe()
    assert recipe.digest == Recipe().digest
    assert recipe.digest == dataclasses.replace(recipe, checkpoint_every=7).digest
    others = [
        dataclasses.replace(recipe, **{name: value})
        for name, value in {"seed": 5, "flip": True, "iterations": 9, "amp": "off"}.items()
    ]
    assert len({recipe.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(
    "options",
    [
        *({"in_place": 1.0}, {"shared_assignment": True}, {"strata": -1}, {"apart": -0.1}),
        {"in_place": -1.0, "rule": "sandwich"},
        *({"iterations": 0}, {"batch_size": 0}, {"peak_lr": 0.0}),
        *({"ema_decay": 1.0}, {"warmup": 1.5}),
    ],
)
def test_recipe__senseless_values(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Recipe(**options)


def test_recipe__stage_of_the_sizes_starts_from_trained_weights() -> None:
    recipe = Recipe(iterations=100, apart=0.5, rule="sandwich", in_place=1.0)
    together, apart = recipe.by_size()
    assert together == recipe
    assert apart is not None
    assert (apart.iterations, apart.largest_only) == (50, 0)
    assert recipe.supernet_iterations == 150
    assert apart.peak_lr < recipe.peak_lr
    assert apart.teaching(0) == 1
    assert Recipe(apart=0.0).by_size()[1] is None
