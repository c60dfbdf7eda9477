"""The bidirectional feature pyramid with weighted fusion: BiFPN (Tan et al., CVPR 2020, section 3).

On three levels, with f the fusion block of each node and + a weighted sum:

    P4' = f(P4 + up(P5))            P3out = f(P3 + up(P4'))
    P4out = f(P4 + P4' + down(P3out))    P5out = f(P5 + down(P4out))

and P3out, P4out, P5out are what the next repeat takes. The terms of a sum have the width of the
node's fusion: the backbone's features are projected once to the widths that a repeat puts out, and
a term of another width than its node is projected there. Projections are linear: 1x1 convolution
and normalisation, as in the authors' implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from nas.model.blocks.backbone import fusion
from nas.model.blocks.convolution import ConvBN, strided
from nas.model.blocks.layers import Choice, WeightedSum, part
from nas.model.blocks.neck_parts import Features, Neck, Style, Upsample
from nas.space.architecture import Architecture, Fusion
from nas.space.record import LEVELS, Size

__all__ = ["WeightedPyramid"]

_Term = tuple[Literal["same", "up", "down"], int]
"""From where a node takes a term: its level, the one above or the one below; and its channels."""


class WeightedPyramid(Neck):
    """Features of the backbone to one feature for each of P3, P4, P5, by repeats of one pattern.

    Attention stands at the backbone's P5 and at the top-down features of the first repeat.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.project = nn.ModuleDict(
            {
                level: part(
                    f"project.{level}",
                    _projection,
                    getattr(architecture.backbone, level).channels,
                    width,
                )
                for level, width in zip(LEVELS, architecture.neck_channels, strict=True)
            }
        )
        self.layers = nn.ModuleList(
            _Repeat(architecture, number) for number in range(architecture.neck.repeats)
        )
        self._add_attention(architecture)

    def forward(self, features: Features) -> list[Tensor]:
        """Map P2, P3, P4, P5 to the neck's P3, P4, P5."""
        _, p3, p4, p5 = features
        p5 = self._attend("P5", p5)
        outputs = [self.project[name](x) for name, x in zip(LEVELS, (p3, p4, p5), strict=True)]
        for number, layer in enumerate(self.layers):
            outputs = layer(outputs, _pass_on if number else self._attend)
        return outputs


class _Repeat(nn.Module):
    """The four nodes of one repeat."""

    def __init__(self, architecture: Architecture, number: int) -> None:
        super().__init__()
        top, down = architecture.neck.top_down, architecture.neck.bottom_up
        assert down is not None  # the architecture's rule for this kind
        style = Style.of(architecture)
        in3, in4, in5 = architecture.neck_channels
        top4, out3, out4 = top.P4.channels, top.P3.channels, down.P4.channels

        def node(path: str, level: str, spec: Fusion, *terms: _Term) -> _Node:
            size = architecture.feature_size(level)
            return part(f"bifpn.{number}.{path}.{level}", _Node, style, spec, terms, size)

        self.top_down = nn.ModuleDict(
            {
                "P4": node("top_down", "P4", top.P4, ("same", in4), ("up", in5)),
                "P3": node("top_down", "P3", top.P3, ("same", in3), ("up", top4)),
            }
        )
        terms: tuple[_Term, ...] = ("same", in4), ("same", top4), ("down", out3)
        self.bottom_up = nn.ModuleDict(
            {
                "P4": node("bottom_up", "P4", down.P4, *terms),
                "P5": node("bottom_up", "P5", down.P5, ("same", in5), ("down", out4)),
            }
        )

    def forward(
        self, features: list[Tensor], attend: Callable[[str, Tensor], Tensor]
    ) -> list[Tensor]:
        p3, p4, p5 = features
        top4 = attend("P4", self.top_down["P4"](p4, p5))
        out3 = attend("P3", self.top_down["P3"](p3, top4))
        out4 = self.bottom_up["P4"](p4, top4, out3)
        return [out3, out4, self.bottom_up["P5"](p5, out4)]


class _Node(nn.Module):
    """Bring every term to the node's level and width, add them up by weight, fuse."""

    def __init__(self, style: Style, spec: Fusion, terms: tuple[_Term, ...], size: Size) -> None:
        super().__init__()
        self.terms = nn.ModuleList(_term(style, term, spec.channels, size) for term in terms)
        self.sum = WeightedSum(len(terms))
        self.block = fusion((spec.channels,), spec, style.act)

    def forward(self, *features: Tensor) -> Tensor:
        terms = (term(x) for term, x in zip(self.terms, features, strict=True))
        output: Tensor = self.block(self.sum(*terms))
        return output


def _term(style: Style, term: _Term, width: int, size: Size) -> nn.Module:
    way, channels = term
    if way == "down":
        down = strided(style.convolution, channels, width, 3, style.act)
        return Choice(style.convolution, down)
    project = _projection(channels, width) if channels != width else nn.Identity()
    # Projected first: upsampled, the same would cost four times as much.
    return nn.Sequential(project, Upsample(style, width, size)) if way == "up" else project


def _projection(channels: int, width: int) -> ConvBN:
    unit = ConvBN((channels,), (width,), 1)
    unit.act = nn.Identity()
    return unit


def _pass_on(_level: str, x: Tensor) -> Tensor:
    return x
