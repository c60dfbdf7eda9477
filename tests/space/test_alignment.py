from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.space.alignment import Misaligned, misaligned
from nas.space.architecture import Architecture
from nas.space.space import load_space

FUSION = {"block": "c2f", "channels": 16, "hidden": 8}
ALIGNED: dict[str, Any] = {
    "input": 64,
    "classes": 3,
    "stem": {"channels": 8},
    "backbone": dict.fromkeys(("P2", "P3", "P4", "P5"), FUSION),
    "pooling": {"hidden": 8},
    "neck": {
        "top_down": {"P4": FUSION, "P3": FUSION},
        "bottom_up": {"P4": FUSION, "P5": FUSION},
    },
    "head": {"channels": 16, "box_channels": 8},
}
FIELDS = [
    "stem.channels",
    *(f"backbone.P{n}.{name}" for n in (2, 3, 4, 5) for name in ("channels", "hidden")),
    "pooling.hidden",
    *(f"neck.top_down.P{n}.{name}" for n in (4, 3) for name in ("channels", "hidden")),
    *(f"neck.bottom_up.P{n}.{name}" for n in (4, 5) for name in ("channels", "hidden")),
]


def _copy(data: Any) -> Any:
    return json.loads(json.dumps(data))  # nothing shared between the fusions


def _with(**edits: Any) -> Architecture:
    data = _copy(ALIGNED)
    for path, value in edits.items():
        node = data
        *parents, last = path.split(".")
        for key in parents:
            node = node[key]
        node[last] = value
    return Architecture.parse(data)


def test_misaligned__nothing_to_say_about_multiples() -> None:
    assert misaligned(_with()) == ()


@given(st.sampled_from(FIELDS), st.integers(1, 100), st.sampled_from([4, 8]))
def test_misaligned__names_the_field_and_its_neighbours(
    path: str, width: int, multiple: int
) -> None:
    found = misaligned(_with(**{path: width}), multiple)
    if width % multiple == 0:
        assert found == ()
        return
    assert found == (Misaligned(path, width, multiple),)
    assert found[0].larger - multiple == (found[0].smaller or 0) < width < found[0].larger
    assert found[0].larger % multiple == 0


def test_misaligned__every_level_of_the_head() -> None:
    architecture = _with(**{"head.channels": [16, 20, 24], "head.box_channels": [8, 8, 9]})
    assert [one.path for one in misaligned(architecture)] == [
        "head.channels.P4",
        "head.box_channels.P5",
    ]


def test_misaligned__what_a_neck_halves() -> None:
    data = {"reduce": True, "halve": True, **_copy(ALIGNED["neck"])}
    data["bottom_up"]["P4"]["channels"] = 24
    found = misaligned(_with(neck=data))
    assert [(one.path, one.width) for one in found] == [("neck.bottom_up.P4.channels / 2", 12)]


def test_misaligned__says_rule_value_and_remedy() -> None:
    (found,) = misaligned(_with(**{"backbone.P3.hidden": 12}))
    assert str(found) == (
        "backbone.P3.hidden = 12: engines pad channels to multiples of 8, so 12 runs like 16; "
        "use 8 or 16."
    )
    (tiny,) = misaligned(_with(**{"stem.channels": 6}))
    assert str(tiny).endswith("use 8.")


def test_misaligned__without_pooling_and_bottom_up() -> None:
    neck = {"kind": "fpn", "top_down": ALIGNED["neck"]["top_down"]}
    assert misaligned(_with(neck=neck, pooling=None, **{"stem.channels": 9})) == (
        Misaligned("stem.channels", 9, 8),
    )


@pytest.mark.parametrize(("space", "multiple"), [("digits", 8), ("yolo_nas", 16), ("hsv_det", 16)])
def test_misaligned__shipped_spaces_are_aligned(space: str, multiple: int) -> None:
    found = load_space(space)
    for point in [*found.anchors.values(), *found.neighbours(found.anchors["max"])]:
        assert misaligned(found.candidate(point, 3).architecture, multiple) == ()
