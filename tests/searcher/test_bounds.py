from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.searcher.bounds import Bounds, amount_text, figures_of, kept_elements, parse_amount
from nas.space.architecture import Candidate
from nas.space.space import load_space

SPACE = load_space("digits")


def _candidate(anchor: str, precision: str = "fp32") -> Candidate:
    architecture = SPACE.candidate(SPACE.anchors[anchor], 10).architecture
    return Candidate.model_validate({"architecture": architecture, "precision": precision})


@pytest.mark.parametrize(
    ("text", "value"),
    [("5M", 5e6), ("1.5G", 1.5e9), ("300k", 3e5), ("10MB", 1e7), ("7", 7.0), (".5M", 5e5)],
)
def test_parse__amounts(text: str, value: float) -> None:
    assert parse_amount(text) == value


@pytest.mark.parametrize("text", ["", "M", "5 M", "-5M", "5X", "1e6", "many"])
def test_parse__something_else(text: str) -> None:
    with pytest.raises(InputError, match="such as 5M"):
        parse_amount(text)


@example(1001)  # 1.001 * 1e3 is less in binary
@given(st.integers(1, 10**13))
def test_amount_text__is_read_back_as_an_amount_that_admits_it(amount: int) -> None:
    assert amount <= parse_amount(amount_text(amount)) <= amount * 1.0011
    assert amount_text(142_176) == "142.2k"


def test_bounds__an_empty_text_is_no_bound_that_was_left_out() -> None:
    assert Bounds.parse(parameters=None, macs="2G") == Bounds(macs=2e9)
    with pytest.raises(InputError, match="got ''"):
        Bounds.parse(parameters="")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bounds__must_be_positive(value: float) -> None:
    with pytest.raises(InputError, match="macs") as error:
        Bounds(macs=value)
    assert "leave it out" in error.value.remedy


@settings(deadline=None)  # the first call counts the network
@given(st.floats(0.1, 10))
def test_violations__are_relative_and_equality_keeps_a_bound(share: float) -> None:
    candidate = _candidate("middle")
    parameters = figures_of(candidate)["parameters"]
    bounds = Bounds(parameters=parameters * share)
    (violation,) = bounds.violations(candidate).values()
    assert violation == pytest.approx(1 / share - 1, abs=1e-9)
    assert bounds.admit(candidate) == (violation <= 0)
    assert Bounds(parameters=parameters).admit(candidate)


def test_figures__grow_with_the_network_and_the_width_of_a_number() -> None:
    small, large = figures_of(_candidate("min")), figures_of(_candidate("max"))
    assert all(small[name] < large[name] for name in small)
    int8, fp32 = figures_of(_candidate("max", "int8")), figures_of(_candidate("max"))
    assert 4 * int8["size"] == fp32["size"] == 4 * fp32["parameters"]
    assert 4 * int8["memory"] == fp32["memory"] > fp32["size"]


def test_kept_elements__holds_what_later_layers_read() -> None:
    """At the stem, the image and its output are needed; nothing later needs more here."""
    architecture = SPACE.candidate(SPACE.anchors["middle"], 10).architecture
    height, width = architecture.input
    image, stem = 3 * height * width, 16 * (height // 2) * (width // 2)
    assert kept_elements(architecture) >= image + stem
    assert kept_elements(architecture) < image + 2 * stem


def test_no_bounds__admit_everything() -> None:
    assert Bounds().violations(_candidate("max")) == {}
    assert Bounds().admit(_candidate("max"))
    assert Bounds(parameters=5e6, macs=2e9).text == "parameters <= 5M, macs <= 2G"


def test_bounds__stored_studies_know_them_by_these_words() -> None:
    assert str(Bounds(parameters=5e6, macs=2e9)) == "parameters <= 5e+06, macs <= 2e+09"
