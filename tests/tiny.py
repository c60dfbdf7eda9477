"""Search spaces of a few small networks, for tests that run everything."""

from __future__ import annotations

__all__ = ["tiny_space"]


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
