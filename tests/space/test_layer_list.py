from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.space.architecture import Architecture
from nas.space.layers import IMAGE, Layer, layers


def _c2f(channels: int, depth: int, *, shortcut: bool = False) -> dict[str, Any]:
    hidden = channels // 2
    return {
        "block": "c2f",
        "channels": channels,
        "hidden": hidden,
        "depth": depth,
        "shortcut": shortcut,
    }


def _hsv_det() -> Architecture:
    """HSV-DET as its authors list it: YOLOv8 with sparse attention at P5 and P4."""
    sparse = {"kind": "sparse", "tokens": 512}
    return Architecture.parse(
        {
            "input": [1080, 1920],
            "classes": 80,
            "activation": "silu",
            "stem": {"channels": 64},
            "backbone": {
                "P2": _c2f(128, 3, shortcut=True),
                "P3": _c2f(256, 6, shortcut=True),
                "P4": _c2f(512, 6, shortcut=True),
                "P5": _c2f(512, 3, shortcut=True),
            },
            "pooling": {"hidden": 256},
            "attention": {"P4": sparse, "P5": sparse},
            "neck": {
                "top_down": {"P4": _c2f(512, 3), "P3": _c2f(256, 3)},
                "bottom_up": {"P4": _c2f(512, 3), "P5": _c2f(512, 3)},
            },
            "head": {"channels": 256, "box_channels": 64, "depth": 2, "bins": 16},
        }
    )


# sources, repeats, module, arguments, (C, H, W): from the list that its authors published.
_PUBLISHED: list[tuple[tuple[int, ...], int, str, tuple[Any, ...], tuple[int, int, int]]] = [
    ((IMAGE,), 1, "Conv", (64, 3, 2), (64, 540, 960)),
    ((0,), 1, "Conv", (128, 3, 2), (128, 270, 480)),
    ((1,), 3, "C2f", (128, True), (128, 270, 480)),
    ((2,), 1, "Conv", (256, 3, 2), (256, 135, 240)),
    ((3,), 6, "C2f", (256, True), (256, 135, 240)),
    ((4,), 1, "Conv", (512, 3, 2), (512, 68, 120)),
    ((5,), 6, "C2f", (512, True), (512, 68, 120)),
    ((6,), 1, "Conv", (512, 3, 2), (512, 34, 60)),
    ((7,), 3, "C2f", (512, True), (512, 34, 60)),
    ((8,), 1, "SPPF", (512, 5), (512, 34, 60)),
    ((9,), 1, "SparseGlobalBlockGated", (512, 512), (512, 34, 60)),
    ((10,), 1, "nn.Upsample", (None, 2, "nearest"), (512, 68, 120)),
    ((11, 6), 1, "Concat", (1,), (1024, 68, 120)),
    ((12,), 3, "C2f", (512, False), (512, 68, 120)),
    ((13,), 1, "SparseGlobalBlockGated", (512, 512), (512, 68, 120)),
    ((14,), 1, "nn.Upsample", (None, 2, "nearest"), (512, 135, 240)),
    ((15, 4), 1, "Concat", (1,), (768, 135, 240)),
    ((16,), 3, "C2f", (256, False), (256, 135, 240)),
    ((17,), 1, "Conv", (256, 3, 2), (256, 68, 120)),
    ((18, 14), 1, "Concat", (1,), (768, 68, 120)),
    ((19,), 3, "C2f", (512, False), (512, 68, 120)),
    ((20,), 1, "Conv", (512, 3, 2), (512, 34, 60)),
    ((21, 10), 1, "Concat", (1,), (1024, 34, 60)),
    ((22,), 3, "C2f", (512, False), (512, 34, 60)),
]


@pytest.mark.parametrize("index", range(len(_PUBLISHED)))
def test_layers__of_hsv_det_are_the_published_ones(index: int) -> None:
    layer = layers(_hsv_det())[index]
    assert layer.index == index
    found = (layer.sources, layer.repeats, layer.module, layer.arguments, *layer.shapes)
    assert found == _PUBLISHED[index]


def test_layers__of_hsv_det_end_in_its_head() -> None:
    *_, head = layers(_hsv_det())
    assert (head.index, head.sources, head.module, head.arguments) == (
        24,
        (17, 20, 23),
        "Detect",
        (80,),
    )
    assert head.shapes == ((256, 135, 240), (512, 68, 120), (512, 34, 60))


@given(hidden=st.integers(1, 8192), channels=st.integers(1, 8192))
def test_layers__expansion_gives_the_hidden_width_back(hidden: int, channels: int) -> None:
    data = _hsv_det().model_dump(mode="json")
    data["backbone"]["P2"] |= {"hidden": hidden, "channels": channels}
    layer: Layer = layers(Architecture.parse(data))[2]
    width, _, *rest = layer.arguments
    assert width == channels
    assert int(channels * (rest[1] if rest else 0.5)) == hidden
