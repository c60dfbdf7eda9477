from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nas.model.description import Description, describe
from nas.results.description import (
    arguments_text,
    compact,
    description_facts,
    description_rows,
    description_table,
    percent,
)
from nas.space.architecture import Architecture


def _c2f(channels: int, depth: int, *, shortcut: bool) -> dict[str, Any]:
    sizes = {"channels": channels, "hidden": channels // 2, "depth": depth}
    return {"block": "c2f", "shortcut": shortcut, **sizes}


@pytest.fixture(scope="module")
def description() -> Description:
    """HSV-DET: YOLOv8 with sparse attention at P5 and P4, at 1080 x 1920."""
    sizes = {"P2": (128, 3), "P3": (256, 6), "P4": (512, 6), "P5": (512, 3)}
    deep, fine = _c2f(512, 3, shortcut=False), _c2f(256, 3, shortcut=False)
    data = {
        "input": [1080, 1920],
        "classes": 80,
        "activation": "silu",
        "stem": {"channels": 64},
        "backbone": {level: _c2f(*size, shortcut=True) for level, size in sizes.items()},
        "pooling": {"hidden": 256},
        "attention": {"P4": {"tokens": 512}, "P5": {"tokens": 512}},
        "neck": {"top_down": {"P4": deep, "P3": fine}, "bottom_up": {"P4": deep, "P5": deep}},
        "head": {"channels": 256, "box_channels": 64, "depth": 2, "bins": 16},
    }
    return describe(Architecture.parse(data))


def _lines(description: Description, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(description_table(description, "HSV-DET"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_table__every_layer_fits_one_line_of_150_characters(description: Description) -> None:
    lines = _lines(description, 150)
    starts = [line for line in lines if line[:3].strip().isdigit()]
    assert len(starts) == 25
    for cost, line in zip(description.layers, starts, strict=True):
        assert cost.layer.module in line
        assert f"{cost.parameters:,} " in line
        assert cost.layer.role in line
        assert arguments_text(cost.layer.arguments) in line


def test_table__says_the_totals(description: Description) -> None:
    text = " ".join(" ".join(_lines(description, 150)).split())
    for total in (
        f"{description.parameters:,}",
        f"{description.deployed:,} deployed",
        "852 GFLOPs (2 per MAC)",
        "42,600 anchors",
    ):
        assert total in text


def test_rows__survive_json_and_add_up(description: Description) -> None:
    rows = json.loads(json.dumps(description_rows(description)))
    assert rows == description_rows(description)
    assert rows[12]["from"] == [11, 6]
    assert rows[10]["output"] == [[512, 34, 60]]
    assert len(rows[24]["output"]) == 3
    facts = description_facts(description)
    for key in ("parameters", "deployed_parameters", "macs"):
        assert facts[key] == sum(row[key] for row in rows)
    assert facts["layers"] == rows


def test_arguments__named_fields_read_as_a_call() -> None:
    arguments = (80, {"channels": (1, 2, 3), "stem": True})
    assert arguments_text(arguments) == "80, channels=(1, 2, 3), stem=True"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (99_950, "100 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (123_456_789, "123 M"),
        (10**17, "100,000 T"),
    ],
)
def test_compact__three_digits_and_a_unit(number: int, text: str) -> None:
    assert compact(number) == text


@given(st.integers(0, 999_000_000_000_000))
def test_compact__is_right_to_half_a_percent(number: int) -> None:
    digits, _, unit = compact(number).partition(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert float(digits) * scale == pytest.approx(number, rel=0.0051)


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0 %"), (1, "<0.1 %"), (500, "0.1 %"), (123_456, "12.3 %")]
)
def test_percent__a_little_is_not_nothing(part: int, text: str) -> None:
    assert percent(part, 1_000_000) == text
