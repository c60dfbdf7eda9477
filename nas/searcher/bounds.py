"""Bounds beside the latency: parameters, MACs, the size of the weights, the memory of a run.

All of them follow from the architecture, so a candidate that breaks one costs neither an engine nor
an accuracy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from nas.errors import InputError
from nas.model.detector import profile
from nas.space.architecture import Architecture, Candidate
from nas.space.layers import IMAGE, layers

__all__ = ["Bounds", "amount_text", "figures_of", "kept_elements", "parse_amount"]

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_AMOUNT = re.compile(r"(?P<value>[0-9]*\.?[0-9]+)(?P<unit>[kKMGT]?)B?")
# Decimal: 1.001 * 1e3 is less than 1001 in binary, and would refuse what the text admits.
_UNITS = {
    unit: Decimal(10) ** power
    for unit, power in {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12}.items()
}
_FOUR_DIGITS = Context(prec=4, rounding=ROUND_CEILING)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Upper bounds on what a network has, each hard; None where there is none.

    Attributes:
        parameters: of the deployed network.
        macs: multiplications with accumulation for one image.
        size: bytes of the weights in the candidate's precision.
        memory: bytes of the weights and of the tensors that layers keep for later ones, at the
            moment when they are the most; what a runtime needs inside a layer comes on top.

    Raises:
        InputError: a bound is not positive and finite.
    """

    parameters: float | None = None
    macs: float | None = None
    size: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.stated.items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"The bound on {name} must be positive, got {value:g}.",
                    "Give a larger one, or leave it out: nothing bounds it then.",
                )

    @classmethod
    def parse(cls, **texts: str | None) -> Bounds:
        """Read `parameters="5M"`, `size="10MB"` and so on.

        Raises:
            InputError: a text is no amount.
        """
        given = {name: text for name, text in texts.items() if text is not None}
        return cls(**{name: parse_amount(text) for name, text in given.items()})

    @property
    def stated(self) -> dict[str, float]:
        """The bounds that there are, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def violations(self, candidate: Candidate) -> dict[str, float]:
        """Return by how much a candidate breaks each stated bound, relative to it; <= 0 keeps it.

        Raises:
            ArchitectureError: parts of the network do not fit together.
        """
        if not self.stated:
            return {}
        figures = figures_of(candidate)
        return {name: figures[name] / bound - 1 for name, bound in self.stated.items()}

    def admit(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps all of them."""
        return all(violation <= 0 for violation in self.violations(candidate).values())

    @property
    def text(self) -> str:
        """The stated bounds for a person; studies that are stored know them by `str`."""
        return ", ".join(f"{name} <= {amount_text(value)}" for name, value in self.stated.items())

    def __str__(self) -> str:
        return ", ".join(f"{name} <= {value:g}" for name, value in self.stated.items())


def figures_of(candidate: Candidate) -> Mapping[str, float]:
    """Return what is bounded: `parameters`, `macs`, `size` and `memory` (bytes)."""
    counted = profile(candidate.architecture)
    width = _BYTES[candidate.precision]
    size = counted.parameters * width
    memory = size + kept_elements(candidate.architecture) * width
    return {
        "parameters": counted.parameters,
        "macs": counted.macs,
        "size": size,
        "memory": memory,
    }


def kept_elements(architecture: Architecture) -> int:
    """Return the most elements that layers put out and later ones still need, at one moment."""
    listed = layers(architecture)
    sizes = {layer.index: sum(math.prod(shape) for shape in layer.shapes) for layer in listed}
    sizes[IMAGE] = 3 * math.prod(architecture.input)
    last = {source: layer.index for layer in listed for source in layer.sources}
    return max(
        sum(size for index, size in sizes.items() if index <= layer.index <= last.get(index, index))
        for layer in listed
    )


def amount_text(amount: float) -> str:
    """Format an amount for `parse_amount`, such as `"142.2k"`, rounded up to four digits."""
    rounded = _FOUR_DIGITS.create_decimal_from_float(amount)
    unit = next((unit for unit in "TGMk" if rounded >= _UNITS[unit]), "")
    return f"{(rounded / _UNITS[unit]).normalize():f}{unit}"


def parse_amount(text: Any) -> float:
    """Read `"5M"`, `"1.5G"`, `"300k"` or `"10MB"`; units are decimal.

    Raises:
        InputError: it is something else.
    """
    match = _AMOUNT.fullmatch(str(text))
    if match is None:
        raise InputError(
            f"An amount is a number with k, M, G or T, got {text!r}.",
            "Write it without a space, such as 5M, 1.5G or 10MB.",
        )
    return float(Decimal(match["value"]) * _UNITS[match["unit"]])
