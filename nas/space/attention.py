"""Attention inserted at a level of the neck, as data: which family, over what, behind which gate.

Every family puts out y = x + g u(x). For `sparse`, `dense`, `windowed`, `strided`, `lsh` and
`deformable`, u(x) is the projected result of the attention; for `aifi` and `psa`, which are
published as whole blocks f, it is f(x) - x, so that g = 1 is the published block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nas.space.record import LEVELS, Record, Size, map_size

__all__ = ["LARGEST_TOPK", "AttentionPoint", "AttentionPoints", "Gate", "Kind", "Selection", "fit"]

LARGEST_TOPK = 3840
"""TensorRT's TopK takes no larger K (its ITopKLayer, 10.16 and 11.4)."""

Kind = Literal["sparse", "dense", "aifi", "psa", "windowed", "strided", "lsh", "deformable"]
Selection = Literal["squared_l2", "l2", "learned", "random", "strided"]
Gate = Literal["learned", "fixed", "none"]

_SIZED_BY: dict[str, str] = {
    "sparse": "tokens",
    "windowed": "window",
    "strided": "stride",
    "lsh": "buckets",
    "deformable": "points",
}


class AttentionPoint(Record):
    """Attention inserted at one level.

    Attributes:
        kind: `sparse`: among `tokens` selected positions. `dense`: among all positions. `aifi`: the
            encoder layer of RT-DETR. `psa`: partial self-attention of YOLOv10. `windowed`: within
            square windows. `strided`: from every position to those of every `stride`-th row and
            column. `lsh`: among positions whose features hash alike. `deformable`: from every
            position to `points` places that it learns to look at.
        tokens: k of `sparse`; `all` is the same network as `dense`.
        selection: how `sparse` chooses: the largest squared L2 norm, the largest L2 norm (the same
            positions, by one more operator), the largest learned score, a fixed random set, or
            evenly spaced positions.
        gate: g is a learned number that starts at 0, the number 0.5 (`fixed`), or 1 (`none`).
        window: side of the windows, in positions.
        stride: of the rows and columns that are looked at.
        buckets: into which positions are hashed; they have equal sizes.
        points: places that each position looks at.
    """

    kind: Kind = "sparse"
    tokens: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    selection: Selection = "squared_l2"
    gate: Gate = "learned"
    window: Annotated[int, Field(ge=2, le=256)] | None = None
    stride: Annotated[int, Field(ge=2, le=64)] | None = None
    buckets: Annotated[int, Field(ge=2, le=1024)] | None = None
    points: Annotated[int, Field(ge=1, le=32)] | None = None

    @model_validator(mode="after")
    def _has_its_own_size(self) -> Self:
        for kind, name in _SIZED_BY.items():
            value = getattr(self, name)
            if self.kind == kind and value is None:
                raise ValueError(f"{kind} attention needs {name}")
            if self.kind != kind and value is not None:
                raise ValueError(f"{self.kind} attention has no {name}, got {name}={value}")
        if self.kind != "sparse" and self.selection != "squared_l2":
            raise ValueError(f"{self.kind} attention selects nothing, got {self.selection!r}")
        return self

    @model_validator(mode="after")
    def _keep_within_topk(self) -> Self:
        if isinstance(self.tokens, int) and self.tokens > LARGEST_TOPK:
            raise ValueError(
                f"tokens must be at most {LARGEST_TOPK} (the limit of TopK in TensorRT), "
                f"got {self.tokens}"
            )
        return self

    def on(self, size: Size) -> Self:
        """Return the canonical form on a map of so many rows and columns.

        Raises:
            ValueError: it does not go with that map.
        """
        positions = math.prod(size)
        where = f"and the map has {positions} positions ({size[0]}x{size[1]})"
        if isinstance(self.tokens, int) and self.tokens > positions:
            raise ValueError(f"wants {self.tokens} tokens, {where}")
        if self.buckets is not None and self.buckets > positions:
            raise ValueError(f"wants {self.buckets} buckets, {where}")
        if self.kind == "lsh" and positions > LARGEST_TOPK:
            raise ValueError(
                f"sorts all positions by TopK, which TensorRT does up to {LARGEST_TOPK}, {where}"
            )
        if self.tokens in ("all", positions):
            # With nothing left to select it is dense attention: one network, one description.
            return type(self)(kind="dense", gate=self.gate)
        return self


class AttentionPoints(Record):
    """Where attention stands: on the feature of that level as the top-down path carries it.

    P5 is the backbone's output after pooling; P4 and P3 are the outputs of the top-down fusions.
    """

    P3: AttentionPoint | None = None
    P4: AttentionPoint | None = None
    P5: AttentionPoint | None = None

    def on(self, image: Size) -> Self:
        """Return the canonical form for an input of so many pixels.

        Raises:
            ValueError: a point does not go with its map; the message names the level.
        """
        found = {}
        for level in LEVELS:
            point: AttentionPoint | None = getattr(self, level)
            try:
                found[level] = point and point.on(map_size(image, level))
            except ValueError as error:
                raise ValueError(
                    f"attention at {level} {error}, for an input of {image[0]}x{image[1]}"
                ) from error
        return type(self)(**found)


def fit(points: Mapping[str, Any], image: Size) -> dict[str, Any]:
    """Let sparse attention to more tokens than its map has mean all of them.

    Whoever writes an architecture is told of such a number; but a choice of k meets every input
    size of a space, and a network is trained at several sizes.

    Args:
        points: plain data of an `AttentionPoints`.
        image: height and width of the input, pixels.
    """
    fitted = dict(points)
    for level in LEVELS:
        point = fitted.get(level)
        tokens = point.get("tokens") if isinstance(point, Mapping) else None
        if isinstance(tokens, int) and tokens > math.prod(map_size(image, level)):
            fitted[level] = {**point, "tokens": "all"}  # type: ignore[dict-item]
    return fitted
