from __future__ import annotations

import re
from pathlib import Path

import pytest
from choices import NESTED, SMALL, load_text

from nas.errors import SpaceError, UnknownNameError
from nas.space.space import load_space


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("choices:", "choises:", ["line 3", "choises", "'choices'"]),
        ("hidden: [8, 16]", "hidden: []", ["line 5", "hidden"]),
        ("hidden: [8, 16]", "hidden: {}", ["line 5", "hidden"]),
        ("hidden: [8, 16]", "hidden: 8", ["line 5", "hidden", "[8]"]),
        ("hidden: [8, 16]", "hidden: [8, 8]", ["line 5", "equal", "8"]),
        ("hidden: [8, 16]", "hidden: {none: 8, null: 16}", ["line 5", "equal", "'none'"]),
        ("hidden: [8, 16]", "hidden: {a: 8, a: 16}", ["line 5", "'a'", "twice"]),
        ("hidden: [8, 16]", "hidden: &a [8, *a]", ["line 5", "alias"]),
        ("hidden: [8, 16]", "hidden: [8, $hidden]", ["line 5", "$hidden -> $hidden"]),
        ("hidden: [8, 16]", "hidden: [8, $hiden]", ["line 5", "hiden", "'hidden'"]),
        ("hidden: [8, 16]", f"hidden: [8, {'[' * 500}{']' * 500}]", ["deeper"]),
        ("$input", "$inptu", ["inptu", "'input'"]),
        ("input: $input", "input: 64", ["line 4", "nothing refers"]),
        ("hidden: [8, 16]", "hidden: [8, big]", ["big", "hidden"]),
        ("P4: $attention", "P6: $attention", ["P6"]),
        ("{hidden: 16}", "{hidden: 17}", ["17"]),
        ("{hidden: 16}", "{hiden: 16}", ["hiden"]),
        ("name: small", "name: Small Space", ["name"]),
        ("stem: {channels: 8}", "stem: {channels: 8", ["line"]),
        ("  stem:", "  classes: 10\n  stem:", ["classes"]),
        ("architecture:", "precision: fp8\narchitecture:", ["fp8"]),
    ],
)
def test_load__names_rule_value_and_place(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in SMALL
    with pytest.raises(SpaceError) as caught:
        load_text(tmp_path, SMALL.replace(old, new, 1))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("$width.p3", "$width.p9", ["line 20", "'p9'", "'small'", "'p3'"]),
        ("$width.p3", "$width.inner.p4", ["line 20", "'p4'", "p2"]),
        ("$width.p3", "$input.p3", ["line 20", "'p3'", "64"]),
        ("$width.p3", "$width", ["backbone.P3.channels"]),
        ("tokens: $k", "tokens: $kk", ["line 6", "'kk'", "'k'"]),
        ("k: [4, 9, all]", "k: [4, $gate]\n  deep: [$k]", ["line 9", "nothing refers", "deep"]),
        ("P4+P5: {P4: *", "P6+P5: {P6: *", ["'P6'", "'P5'", "'max'"]),
        ("k: [4, 9, all]", "k: [4, 9, most]", ["most", "attention.P5"]),
        ("k: [4, 9, all]", "k: [4, 3841]", ["3841", "3840"]),
        ("selection: [learned", "selection: [learnt", ["learnt", "'selection'"]),
    ],
)
def test_load__nested_names_rule_value_and_place(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in NESTED
    with pytest.raises(SpaceError) as caught:
        load_text(tmp_path, NESTED.replace(old, new, 1))
    for word in words:
        assert word in str(caught.value)


def test_load__shows_the_circle_of_choices(tmp_path: Path) -> None:
    text = NESTED.replace("gate: [none, learned]", "gate: {a: $k, b: learned}").replace(
        "k: [4, 9, all]", "k: [4, {x: [$selection]}]"
    )
    with pytest.raises(SpaceError, match=re.escape("$k -> $selection -> $gate -> $k")):
        load_text(tmp_path, text.replace("selection: [learned, ", "selection: [$gate, "))


def test_load__refuses_a_long_chain_of_choices(tmp_path: Path) -> None:
    chain = "".join(f"  c{n}: [$c{n - 1}]\n" for n in range(1, 400))
    text = NESTED.replace("  k: [4, 9, all]\n", f"  k: [$c399]\n  c0: [4]\n{chain}")
    with pytest.raises(SpaceError, match="more than 16 levels"):
        load_text(tmp_path, text)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(5, ["P5", "5 tokens", "4 positions"]), (9, ["64x64"]), (3841, ["3840", "3841"])],
)
def test_load__stated_tokens_must_fit_every_input(
    tmp_path: Path, tokens: int, words: list[str]
) -> None:
    small = re.sub("  attention: .null.*\n", "", SMALL)
    text = small.replace("{P4: $attention}", f"{{P5: {{tokens: {tokens}}}}}")
    assert load_text(tmp_path, text.replace(f"tokens: {tokens}", "tokens: 4")).size == 4
    with pytest.raises(SpaceError) as caught:
        load_text(tmp_path, text)
    for word in words:
        assert word in str(caught.value)


def test_load__unknown_name_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="digits"):
        load_space("digitz")
