"""Effects that are known, because the studies are made up: are they found, at the stated rate?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.searcher.additive import SPARE, SPARE_FOR_PAIRS, Explained, explain_values
from nas.searcher.importance_sample import NOT_READ

CHOICES = {"a": (1, 2), "b": ("x", "y", "z"), "c": (1, 2, 3), "none": (0, 1), "nil": (0, 1, 2)}
EFFECTS = {"a": (0, 2), "b": (0, 3, 1), "c": (-1, 0, 0.5), "none": (0, 0), "nil": (0, 0, 0)}
FREE = 1 + sum(len(labels) - 1 for labels in CHOICES.values())


def _draw(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A sampler that prefers some options, and takes the first ones of a and b together."""
    shares = {name: generator.dirichlet(np.full(len(o), 3.0)) for name, o in CHOICES.items()}
    codes = np.stack(
        [generator.choice(len(o), size=n, p=shares[name]) for name, o in CHOICES.items()], axis=1
    )
    together = (codes[:, 0] == 0) & (generator.random(n) < 0.5)
    codes[together, 1] = 0
    values = sum(np.array(EFFECTS[name])[codes[:, c]] for c, name in enumerate(CHOICES))
    # Candidates with the last option of c are twice as noisy.
    return codes, values + generator.normal(0, 1, n) * np.where(codes[:, 2] == 2, 2, 1)


def _draw_all(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every option is tried by the first three candidates, and by nobody else alone."""
    codes, values = _draw(np.random.default_rng(seed), n)
    codes[:3] = [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 2, 2, 1, 2]]
    return codes, values


def _truth(codes: np.ndarray, name: str) -> np.ndarray:
    column = codes[:, list(CHOICES).index(name)]
    effects = np.array(EFFECTS[name], dtype=float)
    return effects - effects[column].mean()


@pytest.fixture(scope="module")
def simulated() -> list[tuple[np.ndarray, np.ndarray, Explained]]:
    generator = np.random.default_rng(0)
    studies = []
    for _ in range(150):
        codes, values = _draw(generator, 45)
        studies.append((codes, values, explain_values(CHOICES, codes, values)))
    return studies


def test_intervals__hold_the_true_effect_at_their_rate(simulated) -> None:
    held = [
        option.low <= truth <= option.high
        for codes, _, found in simulated
        for choice in found.choices
        for option, truth in zip(choice.options, _truth(codes, choice.name), strict=True)
        if math.isfinite(option.low)
    ]
    assert len(held) > 1500
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_shares__intervals_hold_the_true_share_at_least_at_their_rate(simulated) -> None:
    held = []
    for codes, values, found in simulated:
        for choice in found.choices:
            column = codes[:, list(CHOICES).index(choice.name)]
            truth = float((_truth(codes, choice.name)[column] ** 2).mean() / values.var())
            held.append(choice.share_low <= truth + 1e-12 and truth <= choice.share_high + 1e-12)
    assert np.mean(held) >= 0.94


def test_told__a_choice_without_effect_is_marked_at_its_rate(simulated) -> None:
    marked = [
        not choice.is_told
        for _, _, found in simulated
        for choice in found.choices
        if choice.name in {"none", "nil"}
    ]
    assert np.mean(marked) == pytest.approx(0.95, abs=0.03)


def test_told__large_effects_are_found_in_spite_of_what_came_along(simulated) -> None:
    told = [one.is_told for _, _, found in simulated for one in found.choices if one.name == "b"]
    assert np.mean(told) > 0.9


def test_interactions__none_stands_out_where_there_are_none(simulated) -> None:
    told = [any(one.is_told for one in found.interactions) for _, _, found in simulated]
    assert np.mean(told) <= 0.11


def test_interactions__a_strong_one_is_named_with_its_size() -> None:
    generator = np.random.default_rng(1)
    codes, values = _draw(generator, 200)
    values = values + 2 * codes[:, 0] * (codes[:, 2] - 1)  # 4 between the corners
    first = explain_values(CHOICES, codes, values).interactions[0]
    assert (first.first, first.second) == ("a", "c")
    assert first.is_told
    assert first.effect == pytest.approx(4, abs=1.5)
    assert first.share > 0.05


def test_interactions__are_not_tested_with_few_candidates_to_spare() -> None:
    codes, values = _draw_all(0, FREE + SPARE_FOR_PAIRS)
    assert explain_values(CHOICES, codes, values).interactions
    assert explain_values(CHOICES, codes[:-1], values[:-1]).interactions == ()


def test_r2__left_out_is_less_than_fitted_and_negative_for_noise() -> None:
    generator = np.random.default_rng(2)
    codes, values = _draw(generator, 60)
    found = explain_values(CHOICES, codes, values)
    assert 0 < found.r2_left_out < found.r2 < 1
    noise = explain_values(CHOICES, codes, generator.normal(0, 1, 60))
    assert noise.r2 > 0
    assert noise.r2_left_out < 0.05


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_effects__follow_the_unit(seed: int, scale: float, shift: float) -> None:
    codes, values = _draw(np.random.default_rng(seed), 30)
    one = explain_values(CHOICES, codes, values)
    other = explain_values(CHOICES, codes, shift + scale * values)
    for choice, same in zip(one.choices, other.choices, strict=True):
        assert same.share == pytest.approx(choice.share, rel=1e-3, abs=1e-6, nan_ok=True)
        for option, scaled in zip(choice.options, same.options, strict=True):
            for end in ("effect", "low", "high"):
                wanted = scale * getattr(option, end)
                assert getattr(scaled, end) == pytest.approx(
                    wanted, rel=1e-3, abs=1e-4 * scale, nan_ok=True
                )


def test_effects__have_the_mean_0_over_the_candidates() -> None:
    codes, values = _draw(np.random.default_rng(3), 50)
    for choice in explain_values(CHOICES, codes, values).choices:
        total = sum(one.tried * one.effect for one in choice.options if one.tried)
        assert total == pytest.approx(0, abs=1e-9)


def test_effects__of_an_exact_sum_are_exact() -> None:
    codes, _ = _draw(np.random.default_rng(4), 40)
    values = np.array(EFFECTS["b"], dtype=float)[codes[:, 1]]
    found = explain_values(CHOICES, codes, values)
    assert found.r2 == pytest.approx(1)
    for choice in found.choices:
        assert choice.is_told == (choice.name == "b")
        for option, truth in zip(choice.options, _truth(codes, choice.name), strict=True):
            expected = truth if choice.name == "b" else 0.0
            assert option.effect == pytest.approx(expected, abs=1e-9)


def test_conditional__a_choice_counts_only_where_it_is_read() -> None:
    generator = np.random.default_rng(5)
    on, k = generator.integers(0, 2, 80), generator.integers(0, 2, 80)
    values = 3.0 * on + np.where(on == 1, 2.0 * k, 0.0) + generator.normal(0, 0.1, 80)
    codes = np.stack([on, np.where(on == 1, k, NOT_READ)], axis=1)
    parent, child = explain_values({"on": (0, 1), "k": (8, 16)}, codes, values).choices
    assert [one.tried for one in child.options] == [
        int(((on == 1) & (k == label)).sum()) for label in (0, 1)
    ]
    assert child.options[1].effect - child.options[0].effect == pytest.approx(2, abs=0.15)
    # The parent brings what its child brings on average.
    average = 3 + 2 * k[on == 1].mean()
    assert parent.options[1].effect - parent.options[0].effect == pytest.approx(average, abs=0.15)


def test_options__that_were_always_tried_together_are_not_told_apart() -> None:
    generator = np.random.default_rng(6)
    a, c = generator.integers(0, 2, 40), generator.integers(0, 2, 40)
    values = a + 0.1 * generator.normal(0, 1, 40)
    found = explain_values(
        {"a": (0, 1), "twin": (0, 1), "c": (0, 1)}, np.stack([a, a, c], axis=1), values
    )
    for choice in found.choices[:2]:
        assert all(math.isnan(option.effect) for option in choice.options)
        assert math.isnan(choice.p)
        assert not choice.is_told
    assert math.isfinite(found.choices[2].share)


def test_options__tried_never_or_once_have_no_interval() -> None:
    codes, values = _draw(np.random.default_rng(7), 60)
    codes[:, 1] = np.where(codes[:, 1] == 2, 0, codes[:, 1])
    never = explain_values(CHOICES, codes, values).choices[1].options[2]
    assert never.tried == 0
    assert math.isnan(never.effect)
    codes[0, 1] = 2
    once = explain_values(CHOICES, codes, values).choices[1].options[2]
    assert once.tried == 1
    assert math.isfinite(once.effect)
    assert math.isnan(once.low)
    assert not once.is_told


def test_few__options_become_steps_and_then_nothing_is_said() -> None:
    codes, values = _draw_all(8, FREE + SPARE)
    assert explain_values(CHOICES, codes, values).coding == "options"
    fewer = explain_values(CHOICES, codes[:-1], values[:-1])
    assert fewer.coding == "trend"
    assert fewer.numbers == 1 + len(CHOICES)
    enough = 1 + len(CHOICES) + SPARE
    assert not explain_values(CHOICES, codes[:enough], values[:enough]).reason
    none = explain_values(CHOICES, codes[: enough - 1], values[: enough - 1], "an accuracy")
    assert none.choices == ()
    for word in (f"{enough - 1} with an accuracy", f"{enough} or {FREE + SPARE}"):
        assert word in none.reason


@pytest.mark.parametrize("n", [0, 1, SPARE])
def test_few__candidates_of_any_number_are_no_crash(n: int) -> None:
    codes, values = _draw(np.random.default_rng(9), n)
    assert "Too few" in explain_values(CHOICES, codes, values).reason


def test_constant__values_explain_nothing() -> None:
    codes, values = _draw(np.random.default_rng(10), 40)
    assert "same value" in explain_values(CHOICES, codes, np.full_like(values, 0.3)).reason


def test_one_candidate__leaves_nothing_to_choose() -> None:
    assert "nothing to choose" in explain_values({}, np.empty((9, 0), int), np.arange(9.0)).reason
