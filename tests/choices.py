"""Two small search spaces as YAML, with choices of every kind that a file may have."""

from __future__ import annotations

from pathlib import Path

from nas.space.space import SearchSpace, load_space

__all__ = ["NESTED", "SMALL", "load_text"]

SMALL = """\
name: small
description: Two stages of choice.
choices:
  input: [64, 96]
  hidden: [8, 16]
  attention: [null, {kind: sparse, tokens: 16}, {kind: dense}]
architecture:
  input: $input
  stem: {channels: 8}
  backbone:
    P2: {block: c2f, channels: 16, hidden: $hidden}
    P3: {block: c2f, channels: 16, hidden: $hidden}
    P4: {block: c2f, channels: 16, hidden: 8}
    P5: {block: c2f, channels: 16, hidden: 8}
  attention: {P4: $attention}
  neck:
    top_down:
      P4: {block: c2f, channels: 16, hidden: 8}
      P3: {block: c2f, channels: 16, hidden: 8}
    bottom_up:
      P4: {block: c2f, channels: 16, hidden: 8}
      P5: {block: c2f, channels: 16, hidden: 8}
  head: {channels: 16}
anchors:
  wide: {hidden: 16}
"""
NESTED = """\
name: nested
description: Choices within choices, and records of which one field is taken.
choices:
  insertion:
    none: {}
    P5: {P5: &attention {tokens: $k, selection: $selection, gate: $gate}}
    P4+P5: {P4: *attention, P5: *attention}
  k: [4, 9, all]
  selection: [learned, squared_l2]
  gate: [none, learned]
  width: {small: {p3: 16, inner: {p2: 4}}, large: {p3: 24, inner: {p2: 8}}}
  input: [64, 96]
  mode: [{engine: bf16}, {engine: fp32}]
precision: $mode.engine
architecture:
  input: $input
  stem: {channels: 8}
  backbone:
    P2: {block: c2f, channels: 8, hidden: $width.inner.p2}
    P3: {block: c2f, channels: $width.p3, hidden: 4}
    P4: {block: c2f, channels: 8, hidden: 4}
    P5: {block: c2f, channels: 8, hidden: 4}
  attention: $insertion
  neck:
    top_down:
      P4: {block: c2f, channels: 8, hidden: 4}
      P3: {block: c2f, channels: 8, hidden: 4}
    bottom_up:
      P4: {block: c2f, channels: 8, hidden: 4}
      P5: {block: c2f, channels: 8, hidden: 4}
  head: {channels: 8}
"""


def load_text(tmp_path: Path, text: str) -> SearchSpace:
    """Read a space as a user would."""
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(str(path))
