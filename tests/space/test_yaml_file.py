from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import SpaceError
from nas.space.yaml_file import parse_yaml, read_yaml

WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=4).map(lambda word: f"k{word}")
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


def _refusal(text: str) -> str:
    with pytest.raises(SpaceError) as caught:
        parse_yaml(text, "some.yaml", SpaceError)
    assert "some.yaml" in str(caught.value)
    return str(caught.value)


def _paths(node: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    items: Any = node.items() if isinstance(node, dict) else ()
    items = enumerate(node) if isinstance(node, list) else items
    below = [_paths(value, (*path, str(key))) for key, value in items]
    return set().union({path}, *below)


@given(st.dictionaries(WORDS, TREES, max_size=3))
def test_parse_yaml__reads_what_yaml_writes_and_knows_every_line(data: dict[str, Any]) -> None:
    document = parse_yaml(yaml.safe_dump(data), "some.yaml", SpaceError)
    assert document.data == data
    assert set(document.lines) == _paths(data) - {()}


def test_parse_yaml__an_alias_stands_for_its_anchor() -> None:
    document = parse_yaml("a: &a\n  p: 1\nb:\n  c: *a\n", "some.yaml", SpaceError)
    assert document.data == {"a": {"p": 1}, "b": {"c": {"p": 1}}}
    assert document.where(("b", "c", "p")) == "some.yaml, line 2"
    assert document.where(("b", "c")) == "some.yaml, line 4"


def test_parse_yaml__a_merge_key_takes_the_fields_of_an_anchor() -> None:
    document = parse_yaml("a: &a {p: 1, q: 2}\nb:\n  <<: *a\n  q: 3\n", "x.yaml", SpaceError)
    assert document.data["b"] == {"p": 1, "q": 3}
    assert document.where(("b", "q")) == "x.yaml, line 4"


@pytest.mark.parametrize("cycle", ["a: &a [*a]", "a: &a {b: *a}", "a: &a [[{b: [1, *a]}]]"])
def test_parse_yaml__refuses_an_alias_within_its_anchor(cycle: str) -> None:
    message = _refusal(f"name: x\n{cycle}\n")
    assert "line 2" in message
    assert "alias" in message


@pytest.mark.parametrize("depth", [33, 300, 3_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ("{a: ", "}")])
def test_parse_yaml__refuses_absurd_depth(depth: int, left: str, right: str) -> None:
    assert "deeper than 32" in _refusal("a: " + left * depth + right * depth)


def test_parse_yaml__refuses_depth_made_of_aliases() -> None:
    chain = "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))
    assert "deeper than 32" in _refusal(f"a0: &a0 [1]\n{chain}")


def test_parse_yaml__refuses_aliases_that_stand_for_billions() -> None:
    assert "100000 entries" in _refusal(BOMB)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3", "'a'", "twice"]),
        ("1: x\ntrue: y\n", ["line 2", "'true'", "twice"]),
        ("1: x\n'1': y\n", ["line 2", "'1'", "twice"]),
        ("a: 1\n? [1, 2]\n: 3\n", ["line 2", "key"]),
        ("a: *b\n", ["line 1", "undefined alias"]),
        ("a: 1\n---\nb: 2\n", ["line 2", "another document"]),
        ("a: 2020-99-99\n", ["month"]),
        ("", ["mapping"]),
        ("- 1\n", ["mapping", "list"]),
    ],
)
def test_parse_yaml__names_rule_and_line(text: str, words: list[str]) -> None:
    message = _refusal(text)
    for word in words:
        assert word in message


def test_read_yaml__names_the_file(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"absent\.yaml"):
        read_yaml(tmp_path / "absent.yaml", SpaceError)
