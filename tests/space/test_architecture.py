from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas.errors import ArchitectureError
from nas.space.architecture import Architecture, AttentionPoint, Candidate


def _fusion(channels: int = 16, hidden: int = 8, **more: Any) -> dict[str, Any]:
    return {"block": "c2f", "channels": channels, "hidden": hidden, **more}


@pytest.fixture
def plain() -> dict[str, Any]:
    return {
        "input": 128,
        "classes": 10,
        "stem": {"channels": 8},
        "backbone": {level: _fusion() for level in ("P2", "P3", "P4", "P5")},
        "neck": {
            # Where these widths double, halving and keeping are one network.
            "top_down": {"P4": _fusion(), "P3": _fusion(8)},
            "bottom_up": {"P4": _fusion(), "P5": _fusion(32)},
        },
        "head": {"channels": 16},
    }


def _with(plain: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(plain)
    node = changed
    *parents, last = path.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return changed


def test_architecture__is_frozen_and_hashable(plain: dict[str, Any]) -> None:
    architecture = Architecture.parse(plain)
    assert len({architecture, Architecture.parse(plain)}) == 1
    with pytest.raises(ValueError, match="frozen"):
        architecture.classes = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("input", [128, 128]),
        ("head.channels", [16, 16, 16]),
        ("head.box_channels", 16),
        ("head.bins", 8),
        ("activation", "relu"),
        ("backbone.P3.depth", 1),
        ("backbone.P3.concat_intermediates", True),
        ("attention.P4", None),
        ("attention", {}),
        ("pooling", None),
        ("neck.halve", True),
    ],
)
def test_digest__same_network_in_other_words(plain: dict[str, Any], path: str, value: Any) -> None:
    other = Architecture.parse(_with(plain, path, value))
    assert other.digest == Architecture.parse(plain).digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("input", 160),
        ("classes", 11),
        ("activation", "silu"),
        ("backbone.P3.depth", 2),
        ("backbone.P3.hidden", 16),
        ("backbone.P3.shortcut", False),
        ("attention.P4", {"tokens": 16}),
        ("attention.P4", {"kind": "dense"}),
        ("head.box_channels", 24),
        ("pooling", {"hidden": 8}),
    ],
)
def test_digest__another_network(plain: dict[str, Any], path: str, value: Any) -> None:
    other = Architecture.parse(_with(plain, path, value))
    assert other.digest != Architecture.parse(plain).digest


def test_attention__to_every_token_is_dense(plain: dict[str, Any]) -> None:
    sparse = Architecture.parse(_with(plain, "attention.P4", {"tokens": 64}))
    dense = Architecture.parse(_with(plain, "attention.P4", {"kind": "dense"}))
    assert sparse == dense
    assert AttentionPoint(kind="dense") == sparse.attention.P4


def test_feature_size__rounds_up_at_odd_sizes(plain: dict[str, Any]) -> None:
    architecture = Architecture.parse(_with(plain, "input", [1080, 1920]))
    assert architecture.feature_size("P3") == (135, 240)
    assert architecture.feature_size("P5") == (34, 60)
    assert architecture.tokens_at("P5") == 2040


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("heda", 1, ["'heda'", "'head'"]),
        ("backbone.P3.hiden", 8, ["backbone.P3", "'hiden'", "'hidden'"]),
        ("backbone.P3.block", "c2g", ["backbone.P3", "'c2g'", "'c2f'"]),
        ("classes", "10", ["classes", "'10'"]),
        ("classes", True, ["classes"]),
        ("classes", 0, ["classes", "0"]),
        ("input", 100, ["multiples of 8", "100"]),
        ("input", 24, ["32..8192", "24"]),
        ("attention.P4", {"tokens": 65}, ["P4", "65", "64"]),
        ("attention.P4", {"tokens": 4000}, ["3840", "4000"]),
        ("attention.P4", {"kind": "dense", "tokens": 4}, ["dense", "tokens=4"]),
        ("attention.P2", {"tokens": 4}, ["'P2'"]),
        ("pooling", {"hidden": 8, "kernels": [5, 9]}, ["sppf", "[5, 9]"]),
        ("neck.three_inputs", True, ["reduce"]),
        ("stem", {"channels": 8, "convolution": "qarepvgg", "kernel": 6}, ["qarepvgg", "6"]),
        ("head.channels", [16, 16], ["head.channels"]),
        ("stem", None, ["stem"]),
    ],
)
def test_parse__names_rule_and_value(
    plain: dict[str, Any], path: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ArchitectureError) as caught:
        Architecture.parse(_with(plain, path, value))
    for word in words:
        assert word in str(caught.value)


def test_yaml__round_trips(plain: dict[str, Any]) -> None:
    architecture = Architecture.parse(_with(plain, "attention.P4", {"tokens": 16}))
    assert Architecture.from_yaml(architecture.to_yaml()) == architecture


def test_load__checks_the_stated_digest(plain: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "architecture.yaml"
    architecture = Architecture.parse(plain)
    bundle = {"digest": architecture.digest, "architecture": architecture.canonical()}
    path.write_text(yaml.safe_dump(bundle))
    assert Architecture.load(path) == architecture
    path.write_text(yaml.safe_dump({**bundle, "digest": "0" * 16}))
    with pytest.raises(ArchitectureError, match="0000000000000000"):
        Architecture.load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input: 96\nhead: [1, 2", ["line 2"]),
        ("input: 3\ninput: 4\n", ["line 2", "twice"]),
        ("- 1\n", ["mapping"]),
        ("input: !!python/object:os.system {}\n", ["line 1"]),
        ("architecture: 3\n", ["mapping"]),
        ("classes: 10\nbackbone:\n  P3:\n    hiden: 3\n", ["line 3", "hiden"]),
    ],
)
def test_load__names_the_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ArchitectureError) as caught:
        Architecture.load(path)
    for word in [*words, "broken.yaml"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"a: b\n" * 300_000])
def test_load__refuses_what_is_no_text_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchitectureError, match=r"x\.yaml"):
        Architecture.load(path)


def test_candidate__differs_by_precision(plain: dict[str, Any]) -> None:
    architecture = Architecture.parse(plain)
    fp32 = Candidate(architecture=architecture)
    bf16 = Candidate(architecture=architecture, precision="bf16")
    assert fp32.digest != bf16.digest
