"""An architecture as the flat list of layers that YOLO users know.

Each layer names what it takes from: earlier layers, or the image. The list is derived from the
architecture, which stays the source of truth; it is what `nas describe` prints and draws, and what
`nas.space.ultralytics` writes and reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["IMAGE", "Layer"]

IMAGE = -1
"""Source of the first layer: the network's input, (3, H, W)."""


@dataclass(frozen=True)
class Layer:
    """One row of the list.

    Attributes:
        index: its place, from 0.
        sources: indices of the layers that it takes, in order; `IMAGE` for the input.
        repeats: bottlenecks of a fusion (its depth); 1 for anything else.
        module: its type, such as `Conv`, `C2f`, `QARepVGGCSP`, `Concat`, `Detect`.
        arguments: what the type needs to know beside its inputs, in the order of its constructor.
        shapes: (C, H, W) of what it puts out; three of them (P3, P4, P5 as it sees them) for the
            head.
        parts: dotted names of the modules of a `nas.model.detector.Detector` that this layer stands
            for; none for a layer without parameters such as `Concat`.
        role: what it is, for a person: `stem`, `P4 features`, `top-down P4`, `attention at P5`.
    """

    index: int
    sources: tuple[int, ...]
    repeats: int
    module: str
    arguments: tuple[Any, ...]
    shapes: tuple[tuple[int, int, int], ...]
    parts: tuple[str, ...]
    role: str
