from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import SpaceError
from nas.space.references import Reference, check_references, flatten
from nas.space.yaml_file import Document

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
GRAPHS = st.dictionaries(NAMES, st.lists(NAMES, max_size=2), min_size=1)


def _check(choices: dict[str, list[Any]]) -> None:
    uses = [f"${name}" for name in choices]
    document = Document("some.yaml", {"choices": choices, "architecture": {"uses": uses}}, {})
    labelled = {name: dict(enumerate(options)) for name, options in choices.items()}
    check_references(labelled, document)


def _ends(graph: dict[str, list[str]]) -> bool:
    """Whether choices can be taken away, one that needs no other at a time, until none is left."""
    left = dict(graph)
    while free := [name for name, needs in left.items() if not set(needs) & left.keys()]:
        for name in free:
            del left[name]
    return not left


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("$width", Reference("width", ())),
        ("$width.p3.hidden", Reference("width", ("p3", "hidden"))),
        ("width", None),
        (3, None),
        (None, None),
    ],
)
def test_reference__is_a_word_that_starts_with_a_dollar(
    node: object, expected: Reference | None
) -> None:
    assert Reference.of(node) == expected


def test_within__finds_references_by_path() -> None:
    found = Reference.within({"a": ["$x", 1], "b": {"c": "$y.z"}})
    assert found == {("a", "0"): Reference("x", ()), ("b", "c"): Reference("y", ("z",))}


def test_flatten__leaves_scalars_by_path() -> None:
    assert flatten({"a": [1, {"b": None}], "c": {}}) == {("a", "0"): 1, ("a", "1", "b"): None}


def test_take__names_the_fields_there_are() -> None:
    reference = Reference("width", ("p3",))
    assert reference.take({"p3": 8}, "p3", "small") == 8
    with pytest.raises(SpaceError, match=r"'small' of the choice 'width'.*'p4'.*'p3'"):
        reference.take({"p3": 8}, "p4", "small")


@given(GRAPHS)
def test_check_references__refuses_exactly_what_does_not_end(graph: dict[str, list[str]]) -> None:
    graph = {name: [other for other in others if other in graph] for name, others in graph.items()}
    choices: dict[str, list[Any]] = {
        name: [0, *(f"${other}" for other in others)] for name, others in graph.items()
    }
    if _ends(graph):
        _check(choices)
        return
    with pytest.raises(SpaceError, match="in a circle") as caught:
        _check(choices)
    shown = str(caught.value).split("circle: ")[1].split(".")[0].split(" -> ")
    assert shown[0] == shown[-1]
    for one, other in pairwise(shown):
        assert other[1:] in graph[one[1:]]
