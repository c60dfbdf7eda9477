"""What a row of a layer list can mean: the parts of a network, and what each puts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nas.space.architecture import Fusion, Head, Pooling
from nas.space.attention import AttentionPoint
from nas.space.ultralytics_rows import Row

__all__ = ["Concat", "Detection", "Node", "Spec", "Sum", "Unit", "Upsample"]


class Unit(NamedTuple):
    """A convolution with normalisation, and with activation unless it is linear."""

    convolution: str
    channels: int
    kernel: int
    stride: int
    linear: bool = False


class Upsample(NamedTuple):
    """Twice the height and width: `nearest` or `transposed`."""

    upsample: str


class Concat(NamedTuple):
    """Maps side by side, along the channels."""

    inputs: int


class Sum(NamedTuple):
    """A weighted sum of maps."""

    inputs: int


class Detection(NamedTuple):
    """The head, with the number of classes that it tells apart."""

    classes: int
    head: Head


Spec = Unit | Fusion | Pooling | AttentionPoint | Upsample | Concat | Sum | Detection


@dataclass(frozen=True)
class Node:
    """A row that is understood.

    Attributes:
        row: what the file states.
        spec: what it means.
        channels: of what it puts out; 0 for the head.
        stride: of what it puts out; 0 for the head.
    """

    row: Row
    spec: Spec
    channels: int
    stride: int

    def like(self, other: Node) -> bool:
        """Whether both compute the same from their inputs."""
        mine = (type(self.spec), self.spec, self.channels, self.stride)
        return mine == (type(other.spec), other.spec, other.channels, other.stride)
