"""A network that trains in milliseconds, and search spaces of a few such, for tests that train."""

from __future__ import annotations

from typing import Any

from nas.space.architecture import Architecture

__all__ = ["tiny_architecture", "tiny_space"]


def tiny_space(
    *choices: str,
    name: str = "tiny",
    size: str = "64",
    p3: str = "block: c2f, hidden: $hidden",
    p5: str = "hidden: 8",
    attention: str = "{}",
) -> str:
    """Return a space as YAML.

    Args:
        choices: lines such as `hidden: [8, 16]`.
        name: of the space.
        size: of the input.
        p3: what the stage P3 has beside its channels.
        p5: likewise, beside its block, too.
        attention: where it is.
    """
    lines = "\n".join(f"  {choice}" for choice in choices)
    return f"""\
name: {name}
description: Small networks for tests.
choices:
{lines}
architecture:
  input: {size}
  stem: {{channels: 8}}
  backbone:
    P2: {{block: c2f, channels: 16, hidden: 8}}
    P3: {{channels: 16, {p3}}}
    P4: {{block: c2f, channels: 16, hidden: 8}}
    P5: {{block: c2f, channels: 16, {p5}}}
  attention: {attention}
  neck:
    top_down:
      P4: {{block: c2f, channels: 16, hidden: 8}}
      P3: {{block: c2f, channels: 16, hidden: 8}}
    bottom_up:
      P4: {{block: c2f, channels: 16, hidden: 8}}
      P5: {{block: c2f, channels: 16, hidden: 8}}
  head: {{channels: 16}}
"""


def tiny_architecture(
    *,
    block: str = "conv_csp",
    hidden: int = 8,
    side: int = 64,
    neck: int = 24,
    tokens: int | None = None,
    kind: str = "decoupled",
    **fields: Any,
) -> Architecture:
    """Return a network of ten classes.

    Args:
        block: of all stages and fusions.
        hidden: channels in each of them.
        side: of the input.
        neck: channels of its fusions.
        tokens: of attention at P4; None leaves it out.
        kind: of the head.
        fields: further fields of the architecture.
    """

    def fusion(channels: int) -> dict[str, Any]:
        return {"block": block, "channels": channels, "hidden": hidden}

    return Architecture.parse(
        {
            "input": side,
            "classes": 10,
            "stem": {"channels": 8},
            "backbone": {f"P{n}": fusion(8 * n) for n in range(2, 6)},
            "attention": {"P4": {"tokens": tokens}} if tokens else {},
            "neck": {
                "top_down": {"P4": fusion(neck), "P3": fusion(neck)},
                "bottom_up": {"P4": fusion(neck), "P5": fusion(neck)},
            },
            "head": {"channels": 16, "kind": kind},
            **fields,
        }
    )
