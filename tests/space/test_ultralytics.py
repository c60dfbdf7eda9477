from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nas.errors import ArchitectureError
from nas.space.architecture import Architecture
from nas.space.layers import layers
from nas.space.space import load_space, shipped_spaces
from nas.space.ultralytics import from_ultralytics, is_layer_list, to_ultralytics

BLOCKS = ("c2f", "qarepvgg_csp", "repvgg_csp", "conv_csp")
CONVOLUTIONS = ("conv", "qarepvgg", "repvgg")
INPUTS = ([64, 64], [72, 120], [136, 96])

# A network of the YOLOv8 kind, as a person writes it: three sizes, shortcuts left to defaults.
BY_HAND = """\
# A detector for parcels on a belt
nc: 12
scales: # depth, width, most channels
  n: [0.34, 0.25, 512]
  m: [1.00, 0.75, 384]
  l: [1.00, 1.00, 512]

backbone:
  - [-1, 1, Conv, [48, 3, 2]]  # 0
  - [-1, 1, Conv, [96, 3, 2]]
  - [-1, 3, C2f, [96, True]]
  - [-1, 1, Conv, [192, 3, 2]]
  - [-1, 6, C2f, [192, True]]  # 4
  - [-1, 1, Conv, [384, 3, 2]]
  - [-1, 6, C2f, [384, True]]  # 6
  - [-1, 1, Conv, [768, 3, 2]]
  - [-1, 3, C2f, [768, True]]
  - [-1, 1, SPPF, [768, 5]]  # 9

head:
  - [-1, 1, nn.Upsample, [None, 2, "nearest"]]
  - [[-1, 6], 1, Concat, [1]]
  - [-1, 3, C2f, [384]]  # 12
  - [-1, 1, nn.Upsample, [None, 2, "nearest"]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 3, C2f, [192]]  # 15
  - [-1, 1, Conv, [192, 3, 2]]
  - [[-1, 12], 1, Concat, [1]]
  - [-1, 3, C2f, [384]]  # 18
  - [-1, 1, Conv, [384, 3, 2]]
  - [[-1, 9], 1, Concat, [1]]
  - [-1, 3, C2f, [768]]  # 21
  - [[15, 18, 21], 1, Detect, [nc]]
"""
FIRST_ROW = 9  # its line in the file; two more lines stand before the head's first row


def _fusions() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "block": st.sampled_from(BLOCKS),
            "channels": st.integers(1, 40),
            "hidden": st.integers(1, 40),
            "depth": st.integers(1, 4),
            "shortcut": st.booleans(),
            "concat_intermediates": st.booleans(),
        }
    )


def _attention() -> st.SearchStrategy[dict[str, Any] | None]:
    gate = st.sampled_from(["learned", "fixed", "none"])
    selection = st.sampled_from(["squared_l2", "l2", "learned", "random", "strided"])
    sized = {"windowed": "window", "strided": "stride", "lsh": "buckets", "deformable": "points"}
    sparse = st.fixed_dictionaries(
        {
            "kind": st.just("sparse"),
            "tokens": st.integers(1, 4),
            "selection": selection,
            "gate": gate,
        }
    )
    whole = st.fixed_dictionaries({"kind": st.sampled_from(["dense", "aifi", "psa"]), "gate": gate})
    families = [
        st.fixed_dictionaries({"kind": st.just(kind), size: st.integers(2, 4), "gate": gate})
        for kind, size in sized.items()
    ]
    return st.one_of(st.none(), sparse, whole, *families)


def _pooling() -> st.SearchStrategy[dict[str, Any] | None]:
    sizes = st.sampled_from([3, 5, 7, 9, 11, 13])
    hidden = st.integers(1, 40)
    sppf = st.fixed_dictionaries(
        {"hidden": hidden, "kernels": st.lists(sizes, min_size=1, max_size=1)}
    )
    kernels = st.lists(sizes, min_size=1, max_size=3)
    spp = st.fixed_dictionaries({"kind": st.just("spp"), "hidden": hidden, "kernels": kernels})
    return st.one_of(st.none(), sppf, spp)


@st.composite
def _necks(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["pan", "fpn", "bifpn"]))
    fusion = _fusions()
    neck: dict[str, Any] = {
        "kind": kind,
        "upsample": draw(st.sampled_from(["nearest", "transposed"])),
        "top_down": {"P4": draw(fusion), "P3": draw(fusion)},
    }
    if kind != "fpn":
        neck["bottom_up"] = {"P4": draw(fusion), "P5": draw(fusion)}
        neck["convolution"] = draw(st.sampled_from(CONVOLUTIONS))
    if kind == "pan":
        neck["reduce"], neck["halve"] = draw(st.booleans()), draw(st.booleans())
        neck["three_inputs"] = neck["reduce"] and draw(st.booleans())
    if kind == "bifpn":
        neck["repeats"] = draw(st.integers(1, 3))
    return neck


@st.composite
def _heads(draw: st.DrawFn) -> dict[str, Any]:
    width = st.integers(1, 40)
    return {
        "kind": draw(st.sampled_from(["decoupled", "one_to_one"])),
        "channels": [draw(width), draw(width), draw(width)],
        "box_channels": draw(width),
        "depth": draw(st.integers(1, 3)),
        "stem": draw(st.booleans()),
        "bins": draw(st.integers(2, 20)),
    }


@st.composite
def _architectures(draw: st.DrawFn) -> Architecture:
    stages = {
        level: {**draw(_fusions()), "convolution": draw(st.sampled_from(CONVOLUTIONS))}
        for level in ("P2", "P3", "P4", "P5")
    }
    stem = st.one_of(
        st.fixed_dictionaries(
            {"channels": st.integers(1, 40), "convolution": st.sampled_from(CONVOLUTIONS)}
        ),
        st.fixed_dictionaries({"channels": st.integers(1, 40), "kernel": st.just(6)}),
    )
    return Architecture.parse(
        {
            "input": draw(st.sampled_from(INPUTS)),
            "classes": draw(st.integers(1, 200)),
            "activation": draw(st.sampled_from(["relu", "silu"])),
            "stem": draw(stem),
            "backbone": stages,
            "pooling": draw(_pooling()),
            "attention": {level: draw(_attention()) for level in ("P3", "P4", "P5")},
            "neck": draw(_necks()),
            "head": draw(_heads()),
        }
    )


@settings(max_examples=100, deadline=None)
@given(architecture=_architectures())
def test_ultralytics__round_trip_keeps_the_digest(architecture: Architecture) -> None:
    assert from_ultralytics(to_ultralytics(architecture)).digest == architecture.digest


@pytest.mark.parametrize("name", shipped_spaces())
def test_ultralytics__round_trip_of_shipped_spaces(name: str) -> None:
    space, generator = load_space(name), np.random.default_rng(0)
    points = [*space.anchors.values(), *(space.sample(generator) for _ in range(40))]
    for point in points:
        architecture = space.candidate(point, classes=7).architecture
        assert from_ultralytics(to_ultralytics(architecture)).digest == architecture.digest


@pytest.mark.parametrize(
    ("scale", "stem", "p5", "depth"),
    # 48 x 0.25 = 12 -> 16; 768 is cut to 512 or 384 first; 6 x 0.34 = 2.04 -> 2
    [(None, 16, 128, 2), ("n", 16, 128, 2), ("m", 40, 288, 6), ("l", 48, 512, 6)],
)
def test_from_ultralytics__applies_the_scale(
    scale: str | None, stem: int, p5: int, depth: int
) -> None:
    found = from_ultralytics(BY_HAND, scale=scale)
    assert found.stem.channels == stem
    assert found.backbone.P5.channels == p5
    assert found.backbone.P3.depth == depth
    assert found.backbone.P2.depth == (1 if depth == 2 else 3)


def test_from_ultralytics__fills_in_what_yolo_users_leave_out() -> None:
    found = from_ultralytics(BY_HAND, scale="l")
    assert (found.input, found.classes, found.activation) == ((640, 640), 12, "silu")
    assert found.backbone.P2.shortcut
    assert not found.neck.top_down.P4.shortcut
    assert found.pooling is not None
    assert found.pooling.hidden == 256
    # class branches: max(192, min(12, 100)); box branches: max(16, 192 / 4, 64)
    assert (found.head.channels, found.head.box_channels) == ((192,) * 3, (64,) * 3)
    assert (found.head.depth, found.head.bins) == (2, 16)
    assert (found.neck.kind, found.neck.reduce, found.neck.halve) == ("pan", False, False)


def test_from_ultralytics__takes_the_input_that_it_is_given() -> None:
    assert from_ultralytics(BY_HAND, size=(320, 416)).input == (320, 416)
    assert from_ultralytics(f"input: [96, 128]\n{BY_HAND}").input == (96, 128)


def test_from_ultralytics__order_of_rows_does_not_matter() -> None:
    architecture = _yolo_nas_like()
    listed = layers(architecture)
    moved = next(layer.index for layer in listed if layer.role == "P4 reduced")
    # The reduction of P4 needs nothing of the neck: it may stand at the head's beginning.
    order = [index for index in range(len(listed)) if index != moved]
    order.insert(10, moved)
    data = yaml.safe_load(to_ultralytics(architecture))
    rows = [*data["backbone"], *data["head"]]
    for layer in listed:
        sources = [order.index(source) if source >= 0 else source for source in layer.sources]
        rows[layer.index][0] = sources
    data["backbone"], data["head"] = [rows[i] for i in order[:10]], [rows[i] for i in order[10:]]
    assert from_ultralytics(yaml.safe_dump(data)).digest == architecture.digest


def _yolo_nas_like() -> Architecture:
    def fusion(channels: int) -> dict[str, Any]:
        return {"block": "qarepvgg_csp", "channels": channels, "hidden": 8}

    return Architecture.parse(
        {
            "input": 64,
            "classes": 3,
            "stem": {"channels": 8, "convolution": "qarepvgg"},
            "backbone": {level: fusion(16) for level in ("P2", "P3", "P4", "P5")},
            "pooling": {"kind": "spp", "hidden": 8, "kernels": [5, 9, 13]},
            "neck": {
                "reduce": True,
                "three_inputs": True,
                "halve": True,
                "upsample": "transposed",
                "top_down": {"P4": fusion(16), "P3": fusion(8)},
                "bottom_up": {"P4": fusion(16), "P5": fusion(32)},
            },
            "head": {"channels": 8, "stem": True, "bins": 17},
        }
    )


def _bifpn_like() -> Architecture:
    def fusion(channels: int) -> dict[str, Any]:
        return {"block": "c2f", "channels": channels, "hidden": 8}

    return Architecture.parse(
        {
            "input": 64,
            "classes": 3,
            "stem": {"channels": 8},
            "backbone": {level: fusion(16) for level in ("P2", "P3", "P4", "P5")},
            "attention": {"P3": {"kind": "dense"}, "P4": {"tokens": 8}, "P5": {"kind": "aifi"}},
            "neck": {
                "kind": "bifpn",
                "repeats": 2,
                "top_down": {"P4": fusion(8), "P3": fusion(16)},
                "bottom_up": {"P4": fusion(16), "P5": fusion(24)},
            },
            "head": {"channels": 8},
        }
    )


def _replaced(old: str, new: str) -> str:
    assert BY_HAND.count(old) >= 1
    return BY_HAND.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "layer", "words"),
    [
        # cycles and missing layers
        ("[[-1, 6], 1, Concat", "[[-1, 11], 1, Concat", 11, ["itself", "cycle"]),
        ("[[-1, 6], 1, Concat", "[[-1, 20], 1, Concat", 11, ["layer 20", "after", "cycle"]),
        ("[[-1, 6], 1, Concat", "[[-1, 60], 1, Concat", 11, ["layer 60", "0 to 22"]),
        ("[[-1, 6], 1, Concat", "[[-1, -60], 1, Concat", 11, ["layer -49", "0 to 22"]),
        ("SPPF", "SPFF", 9, ["'SPFF'", "'SPPF'"]),
        # maps that do not meet: P4 is 40x40 and P3 80x80 at 640x640
        ("[[-1, 6], 1, Concat", "[[-1, 4], 1, Concat", 11, ["(128, 40, 40)", "(48, 80, 80)"]),
        ("[[15, 18, 21]", "[[15, 18]", 22, ["3 inputs", "2"]),
        ("[[15, 18, 21]", "[[15, 21, 18]", 22, ["8, 16, 32", "8, 32, 16", "(96, 40, 40)"]),
        ("SPPF, [768, 5]", "SPPF, [384, 5]", 9, ["96", "(128, 20, 20)"]),
        # arguments
        ("Conv, [48, 3, 2]", "Conv, [48, 3, two]", 0, ["stride", "'two'"]),
        ("Conv, [48, 3, 2]", "Conv, [48.5, 3, 2]", 0, ["channels", "48.5"]),
        ("Conv, [48, 3, 2]", "Conv, [true, 3, 2]", 0, ["channels", "True"]),
        ("Conv, [48, 3, 2]", "Conv, []", 0, ["[c, kernel, stride, padding", "[]"]),
        ("Conv, [48, 3, 2]", "Conv, [48, 3, 3]", 0, ["strides are 1 or 2", "3"]),
        ("Conv, [48, 3, 2]", "Conv, [48, 6, 2]", 0, ["padded by 2", "3"]),
        ("C2f, [96, True]", "C2f, [96, True, 2]", 2, ["group", "2"]),
        ("C2f, [96, True]", "C2f, [96, True, 1, 0.5, 7]", 2, ["expansion", "7"]),
        ("C2f, [96, True]", "C2f, [96, 1]", 2, ["shortcut", "True or False", "1"]),
        ("SPPF, [768, 5]", "SPPF, [768, 4]", 9, ["kernels", "4"]),
        ("[None, 2, ", "[None, 3, ", 10, ["factor", "2", "3"]),
        ("Concat, [1]", "Concat, [2]", 11, ["dimension 1", "2"]),
        ("Detect, [nc]", "Detect, [80]", 22, ["80", "12"]),
        ("Detect, [nc]", "Detect, [nc, {wide: 3}]", 22, ["wide"]),
        # rows that are none
        ("[-1, 1, SPPF, [768, 5]]", "[-1, 1, SPPF]", 9, ["list of four", "SPPF"]),
        ("[-1, 1, SPPF, [768, 5]]", "SPPF", 9, ["list of four", "'SPPF'"]),
        ("[-1, 1, SPPF, [768, 5]]", "[-1, 1, 7, [768, 5]]", 9, ["module", "7"]),
        ("[-1, 1, SPPF, [768, 5]]", "[-1, 0, SPPF, [768, 5]]", 9, ["repeats", "0"]),
        ("[-1, 1, SPPF, [768, 5]]", "[-1, 5, SPPF, [768, 5]]", 9, ["only fusions repeat"]),
        ("[-1, 1, SPPF, [768, 5]]", "[-1, 1, SPPF, 768]", 9, ["arguments", "768"]),
        ("[-1, 1, SPPF, [768, 5]]", "[[], 1, SPPF, [768, 5]]", 9, ["from", "[]"]),
        ("[-1, 1, SPPF, [768, 5]]", "[x, 1, SPPF, [768, 5]]", 9, ["from", "'x'"]),
        # attention without its feature
        (
            "[-1, 1, SPPF, [768, 5]]",
            "[2, 1, DenseGlobalBlock, [96]]",
            9,
            ["P3, P4, P5", "(24, 160, 160)", "stride 4"],
        ),
        (
            "[-1, 1, SPPF, [768, 5]]",
            "[-1, 1, SparseGlobalBlockGated, [768, 401]]",
            9,
            ["401", "400 positions"],
        ),
        (
            "[-1, 1, SPPF, [768, 5]]",
            "[-1, 1, SparseGlobalBlock, [768, 8, best, learned]]",
            9,
            ["selection", "best"],
        ),
        # networks without a place in the schema
        (
            "[-1, 3, C2f, [384]]  # 12",
            "[-1, 1, Conv, [384, 3]]",
            12,
            ["a fusion", "top-down P4", "Conv"],
        ),
        (
            "[-1, 3, C2f, [192]]  # 15",
            "[-1, 1, Conv, [192, 1]]",
            15,
            ["a fusion", "top-down P3", "Conv"],
        ),
        ("[-1, 6, C2f, [384, True]]", "[-1, 1, Conv, [384, 3]]", 6, ["P4 features", "Conv"]),
        (
            "[-1, 6, C2f, [384, True]]",
            "[-1, 1, DenseGlobalBlock, [384]]",
            6,
            ["P4 features", "pooling"],
        ),
        (
            "[[-1, 12], 1, Concat",
            "[[12, -1], 1, Concat",
            17,
            ["first input", "down to P4", "layer 16"],
        ),
        ("[[-1, 9], 1, Concat", "[[-1, 8], 1, Concat", 20, ["pooling at P5", "C2f"]),
        ("Conv, [192, 3, 2]]\n  - [[-1, 12]", "Conv, [64, 3, 2]]\n  - [[-1, 12]", 16, ["48", "16"]),
        (
            "Conv, [192, 3, 2]]\n  - [[-1, 12]",
            "Conv, [192, 5, 2]]\n  - [[-1, 12]",
            16,
            ["3, 2]", "5"],
        ),
        ("[[15, 18, 21], 1, Detect, [nc]]", "[-1, 1, Conv, [8]]", 22, ["last layer", "Detect"]),
    ],
)
def test_from_ultralytics__names_layer_line_and_rule(
    old: str, new: str, layer: int, words: list[str]
) -> None:
    with pytest.raises(ArchitectureError) as caught:
        from_ultralytics(_replaced(old, new), "belt.yaml")
    message = str(caught.value)
    line = FIRST_ROW + layer + (2 if layer > 9 else 0)
    assert f"ayer {layer} (" in message
    assert f"belt.yaml, line {line}" in message
    for word in words:
        assert word in message


def test_from_ultralytics__refuses_a_layer_that_nothing_takes() -> None:
    text = BY_HAND.replace("[[15, 18, 21]", "[-1, 3, C2f, [64]]\n  - [[15, 18, 21]")
    with pytest.raises(ArchitectureError, match=r"Layer 22 \(C2f; .*nothing takes"):
        from_ultralytics(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BY_HAND.replace("nc: 12", "nc: many"), ["line 2", "nc", "'many'"]),
        (BY_HAND.replace("nc: 12\n", ""), ["nc", "None"]),
        (BY_HAND.replace("backbone:", "backbon:"), ["'backbon'", "'backbone'"]),
        (BY_HAND.split("head:", maxsplit=1)[0], ["`head`"]),
        (BY_HAND.replace("[0.34, 0.25, 512]", "[0.34, 0.25]"), ["line 3", "'n'"]),
        (BY_HAND.replace("[0.34, 0.25, 512]", "[0.34, wide, 512]"), ["positive", "'wide'"]),
        (f"activation: nn.GELU()\n{BY_HAND}", ["line 1", "nn.GELU()"]),
        (f"input: [640]\n{BY_HAND}", ["line 1", "[640]"]),
        (f"input: [641, 640]\n{BY_HAND}", ["line 1", "multiples of 8", "641"]),
        (f"ch: 1\n{BY_HAND}", ["line 1", "3 channels", "1"]),
        ("backbone: [1, 2\n", ["line"]),
        ("7\n", ["mapping"]),
    ],
)
def test_from_ultralytics__names_the_line_of_a_key(text: str, words: list[str]) -> None:
    with pytest.raises(ArchitectureError) as caught:
        from_ultralytics(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "row", "words"),
    [
        (14, ["-1", 1, "Conv", [8]], ["from", "'-1'"]),
        ("summed at P4", {3: [7]}, ["[nothing]", "[7]"]),
        ("summed at P4", {2: "Concat", 3: [1]}, ["WeightedSum", "Concat"]),
        ("down to P5", {3: [24, 1, 1]}, ["different sizes", "(24, 4, 4)", "(24, 2, 2)"]),
        ("down to P5", {3: [16, 3, 2]}, ["different channels", "(24, 2, 2)", "(16, 2, 2)"]),
        ("P5 projected", {3: [24]}, ["Conv [24, 1, 1, 0, 1, 1, False]", "Conv [24]"]),
    ],
)
def test_from_ultralytics__refuses_another_pyramid(
    layer: int | str, row: Any, words: list[str]
) -> None:
    architecture = _bifpn_like()
    index = layer
    if isinstance(layer, str):
        index = next(each.index for each in layers(architecture) if each.role == layer)
    data = yaml.safe_load(to_ultralytics(architecture))
    rows = [*data["backbone"], *data["head"]]
    changes = row if isinstance(row, dict) else dict(enumerate(row))
    for place, value in changes.items():
        rows[int(index)][place] = value
    with pytest.raises(ArchitectureError) as caught:
        from_ultralytics(yaml.safe_dump({**data, "head": rows[len(data["backbone"]) :]}))
    for word in words:
        assert word in str(caught.value)


def test_from_ultralytics__refuses_a_scale_that_is_not_there() -> None:
    with pytest.raises(ArchitectureError, match=r"'x'.*n, m, l"):
        from_ultralytics(BY_HAND, scale="x")


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-30, 60),
    st.integers(),
    st.floats(),
    st.sampled_from(["Conv", "C2f", "SPP", "Detect", "WeightedSum", "AIFI", "nc", "None", ""]),
    st.text(max_size=5),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@st.composite
def _mutations(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Steps that each change one place of a list of rows."""
    step = st.tuples(
        st.sampled_from(["drop", "repeat", "swap", "from", "repeats", "module", "argument", "row"]),
        st.tuples(st.integers(0, 60), st.integers(0, 60), _VALUES),
    )
    return draw(st.lists(step, min_size=1, max_size=3))


def _mutated(rows: list[Any], steps: list[tuple[str, Any]]) -> list[Any]:
    rows = copy.deepcopy(rows)
    for what, (first, second, value) in steps:
        i, j = first % len(rows), second % len(rows)
        row = rows[i]
        if what == "drop" and len(rows) > 1:
            del rows[i]
        elif what == "repeat":
            rows.insert(j, copy.deepcopy(row))
        elif what == "swap":
            rows[i], rows[j] = rows[j], row
        elif what == "row":
            rows[i] = value
        elif isinstance(row, list) and len(row) == 4:
            _mutate_row(row, what, second, value)
    return rows


def _mutate_row(row: list[Any], what: str, place: int, value: Any) -> None:
    if what == "argument" and isinstance(row[3], list) and row[3]:
        row[3][place % len(row[3])] = value
    else:
        row[{"from": 0, "repeats": 1, "module": 2, "argument": 3}[what]] = value


@settings(max_examples=150, deadline=None)
@given(
    architecture=st.sampled_from([_yolo_nas_like(), _bifpn_like(), from_ultralytics(BY_HAND)]),
    steps=_mutations(),
)
@example(architecture=_yolo_nas_like(), steps=[("repeats", (1, 0, 10**400))])
@example(architecture=_yolo_nas_like(), steps=[("argument", (1, 0, 10**400))])
def test_from_ultralytics__damaged_rows_give_an_architecture_or_its_error(
    architecture: Architecture, steps: list[tuple[str, Any]]
) -> None:
    data = yaml.safe_load(to_ultralytics(architecture))
    count = len(data["backbone"])
    rows = _mutated([*data["backbone"], *data["head"]], steps)
    data["backbone"], data["head"] = rows[:count], rows[count:]
    try:
        found = from_ultralytics(yaml.safe_dump(data, allow_unicode=True))
    except ArchitectureError as error:
        assert error.message  # noqa: PT017 - either outcome is right, any other exception is not
    else:
        assert from_ultralytics(to_ultralytics(found)).digest == found.digest


def test_is_layer_list__tells_the_two_forms_apart() -> None:
    architecture = _yolo_nas_like()
    assert is_layer_list(yaml.safe_load(to_ultralytics(architecture)))
    assert is_layer_list(yaml.safe_load(BY_HAND))
    assert not is_layer_list(yaml.safe_load(architecture.to_yaml()))
    assert not is_layer_list(json.loads("[1]"))
