"""What a network consists of, layer by layer, with the cost of each: counted without weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from nas.model.detector import Detector, counts
from nas.space.architecture import Architecture
from nas.space.layers import Layer, layers

__all__ = ["Description", "LayerCost", "describe"]


@dataclass(frozen=True)
class LayerCost:
    """A layer and what it costs, for one image.

    Attributes:
        layer: which.
        parameters: learnable numbers as trained, with normalisation and parallel branches.
        deployed: weights and biases after folding.
        macs: multiplications with accumulation, after folding.
    """

    layer: Layer
    parameters: int
    deployed: int
    macs: int


@dataclass(frozen=True)
class Description:
    """All layers of an architecture with their costs; nothing of the network lies outside them."""

    architecture: Architecture
    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Learnable numbers of the network as it is trained."""
        return sum(cost.parameters for cost in self.layers)

    @property
    def deployed(self) -> int:
        """Weights and biases of the network as it runs on a device."""
        return sum(cost.deployed for cost in self.layers)

    @property
    def macs(self) -> int:
        """Multiplications with accumulation for one image, as it runs on a device."""
        return sum(cost.macs for cost in self.layers)

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations for one image: two for each MAC."""
        return 2e-9 * self.macs

    @property
    def anchors(self) -> int:
        """Positions of P3, P4 and P5 together: boxes that the network puts out."""
        return sum(self.architecture.tokens_at(level) for level in ("P3", "P4", "P5"))


def describe(architecture: Architecture) -> Description:
    """Count every layer of a network on the meta device, where it has no weights.

    What the detector computes after its head, the expectation of distances, counts as the head's.

    Raises:
        ArchitectureError: parts of it do not fit together.
    """
    listed = layers(architecture)
    owner = _Owners(listed)
    with torch.device("meta"):
        detector = Detector(architecture)
    trained = {name: tensor.numel() for name, tensor in detector.named_parameters()}
    counted = counts(architecture)
    parameters = owner.total(trained)
    deployed = owner.total({name: one.parameters for name, one in counted.items()})
    macs = owner.total({name: one.macs for name, one in counted.items()})
    costs = zip(listed, parameters, deployed, macs, strict=True)
    return Description(architecture, tuple(LayerCost(*cost) for cost in costs))


class _Owners:
    """Which layer stands for which module of a detector."""

    def __init__(self, listed: Iterable[Layer]) -> None:
        self._layers = tuple(listed)
        self._index = {part: layer.index for layer in self._layers for part in layer.parts}

    def total(self, counted: Mapping[str, int]) -> list[int]:
        """Add up what is counted under dotted names, for each layer in turn."""
        totals = [0] * len(self._layers)
        for name, number in counted.items():
            totals[self._of(name)] += number
        return totals

    def _of(self, name: str) -> int:
        if not name:
            return self._layers[-1].index
        part = name
        while part not in self._index:
            part, dot, _ = part.rpartition(".")
            if not dot:
                raise LookupError(f"No layer of the list stands for the module {name!r}.")
        return self._index[part]
