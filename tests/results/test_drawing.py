from __future__ import annotations

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.model.description import Description, describe
from nas.results.drawing import draw, fitted, text_width
from nas.space.architecture import Architecture
from nas.space.layers import IMAGE

SVG = "{http://www.w3.org/2000/svg}"
NECKS: dict[str, dict[str, Any]] = {
    "yolov8": {},
    "yolo-nas": {"reduce": True, "three_inputs": True, "halve": True, "upsample": "transposed"},
}
TAGS = {"svg", "title", "rect", "defs", "marker", "path", "g", "text"}
ATTENTION = {"P3": {"tokens": 9}, "P4": {"tokens": 64}, "P5": {"kind": "dense"}}


def _block(channels: int, depth: int = 1) -> dict[str, Any]:
    return {
        "block": "qarepvgg_csp",
        "channels": channels,
        "hidden": channels // 2,
        "depth": depth,
    }


def _describe(neck: str, **fields: Any) -> Description:
    paths = {
        "top_down": {"P4": _block(64, 2), "P3": _block(32, 2)},
        "bottom_up": {"P4": _block(64), "P5": _block(96)},
    }
    data = {
        "input": [256, 320],
        "classes": 80,
        "stem": {"channels": 16},
        "backbone": {f"P{i}": _block(16 * i, i) for i in range(2, 6)},
        "pooling": {"kind": "spp", "hidden": 8, "kernels": [5, 9, 13]},
        "neck": NECKS[neck] | paths,
        "head": {"channels": [32, 64, 96], "depth": 2, "bins": 16, "stem": True},
    }
    return describe(Architecture.parse({**data, **fields}))


@pytest.fixture(
    scope="module",
    params=[
        ("yolov8", {}),
        ("yolov8", {"attention": ATTENTION, "input": [2160, 3840]}),
        ("yolov8", {"pooling": None, "input": 40}),
        ("yolo-nas", {"attention": ATTENTION}),
    ],
    ids=str,
)
def description(request: pytest.FixtureRequest) -> Description:
    neck, fields = request.param
    return _describe(neck, **fields)


@pytest.fixture(scope="module")
def root(description: Description) -> ET.Element:
    return ET.fromstring(draw(description, "Test & <network>"))


def _groups(root: ET.Element) -> dict[int, ET.Element]:
    found = root.iterfind(f".//{SVG}g[@class='layer']")
    return {int(group.attrib["data-layer"]): group for group in found}


def test_draw__shows_every_layer_and_its_shape(description: Description, root: ET.Element) -> None:
    groups = _groups(root)
    assert sorted(groups) == [IMAGE, *range(len(description.layers))]
    for cost in description.layers:
        text = " ".join(groups[cost.layer.index].itertext())
        assert f"{cost.layer.index} {cost.layer.module}" in text
        for shape in cost.layer.shapes:
            assert " × ".join(map(str, shape)) in text  # noqa: RUF001


def test_draw__shows_every_edge(description: Description, root: ET.Element) -> None:
    arrows = root.iterfind(f".//{SVG}path[@class='arrow']")
    drawn = sorted((int(a.attrib["data-from"]), int(a.attrib["data-to"])) for a in arrows)
    layers = [cost.layer for cost in description.layers]
    assert drawn == sorted((source, layer.index) for layer in layers for source in layer.sources)


def test_draw__says_name_digest_and_totals(description: Description, root: ET.Element) -> None:
    text = " ".join(root.itertext())
    assert f"Test & <network> · {description.architecture.digest}" in text
    assert f"{description.parameters:,} parameters" in text
    assert f"{description.anchors:,} anchors" in text


def test_draw__text_stays_within_its_box(root: ET.Element) -> None:
    for group in _groups(root).values():
        frame = group.find(f"{SVG}rect")
        assert frame is not None
        width, height = (float(frame.attrib[side]) for side in ("width", "height"))
        lines: dict[str, float] = {}
        for text in group.iterfind(f"{SVG}text"):
            bold = text.attrib.get("font-weight") == "600"
            size = float(text.attrib["font-size"])
            assert size >= 11
            assert size < float(text.attrib["y"]) < height - 2
            room = text_width(text.text or "", size, bold=bold)
            lines[text.attrib["y"]] = lines.get(text.attrib["y"], 0.0) + room
        assert max(lines.values()) <= width - 10


def test_draw__lines_of_a_box_do_not_overlap(root: ET.Element) -> None:
    for group in _groups(root).values():
        ys = sorted({float(text.attrib["y"]) for text in group.iterfind(f"{SVG}text")})
        assert all(b - a >= 12 for a, b in pairwise(ys))


def test_draw__needs_nothing_from_elsewhere(root: ET.Element) -> None:
    defined = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in TAGS
        for value in element.attrib.values():
            assert "//" not in value
            if value.startswith("url("):
                assert value[5:-1] in defined


def test_draw__the_dearest_layer_is_the_darkest(description: Description, root: ET.Element) -> None:
    dearest = max(description.layers, key=lambda cost: cost.macs).layer.index
    fills = {
        index: next(rect.attrib["fill"] for rect in reversed(group.findall(f"{SVG}rect")))
        for index, group in _groups(root).items()
        if index != IMAGE
    }
    blue = {
        cost.layer.index: int(fills[cost.layer.index][-2:], 16)
        for cost in description.layers
        if not cost.layer.role.startswith("attention")  # its last rectangle is the mark
    }
    if dearest in blue:
        assert blue[dearest] == min(blue.values())
    free = [c.layer.index for c in description.layers if c.layer.module == "Concat"]
    assert {fills[index] for index in free} == {"#ffffff"}


def test_draw__marks_attention_where_there_is_any() -> None:
    with_it, without = _describe("yolov8", attention=ATTENTION), _describe("yolov8")
    assert ">attention<" in draw(with_it)
    assert ">attention<" not in draw(without)


@given(st.text(st.characters(codec="latin-1"), max_size=60), st.floats(20, 300), st.booleans())
def test_fitted__is_never_wider(text: str, width: float, bold: bool) -> None:
    result = fitted(text, width, 11, bold=bold)
    assert text_width(result, 11, bold=bold) <= width
    if text_width(text, 11, bold=bold) <= width:
        assert result == text
    else:
        assert result.endswith("…")
