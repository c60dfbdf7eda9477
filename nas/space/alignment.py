"""Channel widths that an engine pads: they cost as much as the next multiple, and learn less.

CPU engines keep channels in blocks of 8 or 16 and fill the last block with zeros (oneDNN,
"Understanding Memory Formats": nChw8c, nChw16c). Tensor cores multiply tiles of 8 channels in 16
bits and of 16 in 8 bits, and libraries pad to them (NVIDIA, "Optimizing Convolutional Layers",
"Tensor Core Usage").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nas.space.architecture import Architecture
from nas.space.record import LEVELS

__all__ = ["Misaligned", "misaligned"]


@dataclass(frozen=True)
class Misaligned:
    """A width that is no multiple.

    Attributes:
        path: of the field, such as `backbone.P3.hidden`; `head.channels.P4` for one of three.
        width: channels.
        multiple: that engines pad to.
    """

    path: str
    width: int
    multiple: int

    @property
    def smaller(self) -> int | None:
        """The next multiple below, or None if that is 0."""
        return self.width // self.multiple * self.multiple or None

    @property
    def larger(self) -> int:
        """The next multiple above: what the width runs like."""
        return -(-self.width // self.multiple) * self.multiple

    def __str__(self) -> str:
        use = f"{self.larger}" if self.smaller is None else f"{self.smaller} or {self.larger}"
        return (
            f"{self.path} = {self.width}: engines pad channels to multiples of {self.multiple}, "
            f"so {self.width} runs like {self.larger}; use {use}."
        )


def misaligned(architecture: Architecture, multiple: int = 8) -> tuple[Misaligned, ...]:
    """Find the channel widths of an architecture that are no multiple, in its own order.

    Classes and bins are left out: the data decides the former, and both are outputs.

    Args:
        architecture: what to look at.
        multiple: 8; 16 for INT8 on tensor cores or AVX-512.
    """
    return tuple(
        Misaligned(path, width, multiple)
        for path, width in _widths(architecture)
        if width % multiple
    )


def _widths(architecture: Architecture) -> Iterator[tuple[str, int]]:
    yield "stem.channels", architecture.stem.channels
    for level, stage in architecture.backbone:
        yield f"backbone.{level}.channels", stage.channels
        yield f"backbone.{level}.hidden", stage.hidden
    if architecture.pooling is not None:
        yield "pooling.hidden", architecture.pooling.hidden
    yield from _neck_widths(architecture)
    head = architecture.head
    for name, widths in (("channels", head.channels), ("box_channels", head.box_channels)):
        for level, width in zip(LEVELS, widths, strict=True):
            yield f"head.{name}.{level}", width


def _neck_widths(architecture: Architecture) -> Iterator[tuple[str, int]]:
    neck = architecture.neck
    for way, fusions in (("top_down", neck.top_down), ("bottom_up", neck.bottom_up)):
        for level, fusion in fusions or ():
            yield f"neck.{way}.{level}.channels", fusion.channels
            yield f"neck.{way}.{level}.hidden", fusion.hidden
            if neck.halve and way == "bottom_up":
                yield f"neck.{way}.{level}.channels / 2", max(1, fusion.channels // 2)
