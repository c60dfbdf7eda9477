"""The layers that own parameters, each aware of how its channels came together.

A supernet shares tensors between networks of different widths and depths. Where a tensor is
concatenated from others, narrowing it means taking the first channels *of each part*, not the first
channels of the whole. So every layer here carries a `Layout`, the widths of the parts, and says
along which dimensions of which parameter they lie. Nothing else in a network needs to be elastic.

Blocks, also those of plug-ins, hold their parameters in these layers only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from itertools import zip_longest
from operator import add
from typing import Self, TypeVar, TypeVarTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import ArchitectureError

__all__ = [
    "BatchNorm2d",
    "Choice",
    "Conv2d",
    "ConvTranspose2d",
    "LayerNorm",
    "Layout",
    "Scale",
    "Shareable",
    "WeightedSum",
    "part",
    "reusing",
    "widest",
]

Layout = tuple[int, ...]
"""Widths of the tensors that are concatenated along one dimension."""

_Module = TypeVar("_Module", bound=nn.Module)
_Arguments = TypeVarTuple("_Arguments")
_parts: ContextVar[dict[Hashable, nn.Module] | None] = ContextVar("_parts", default=None)

_BN_EPS = 1e-3  # the YOLO family's
_BN_MOMENTUM = 0.03
_SUM_EPS = 1e-4


class Shareable(ABC):
    """A layer whose parameters a supernet can share."""

    @abstractmethod
    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """Layouts of the leading dimensions of each parameter; the others never change."""

    @abstractmethod
    def widened(self, other: Self) -> Self:
        """Return a fresh layer that is wide enough for both.

        Raises:
            ArchitectureError: they differ in more than layouts.
        """


class Conv2d(nn.Conv2d, Shareable):
    """A convolution that keeps the size (divided by the stride, rounded up).

    Args:
        in_layout: widths of the tensors concatenated at the input.
        out_layout: widths of the tensors into which the output is split.
        kernel: side of the kernel; 6 is for even inputs at stride 2.
    """

    def __init__(
        self,
        in_layout: Layout,
        out_layout: Layout,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        self.in_layout, self.out_layout = in_layout, out_layout
        super().__init__(
            sum(in_layout),
            sum(out_layout),
            kernel,
            stride,
            padding=(kernel - 1) // 2,
            groups=groups,
            bias=bias,
        )

    def reset_parameters(self) -> None:
        """Initialise as torch does, uniformly by the fan-in; free on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        if self.kernel_size == (1, 1) and self.stride != (1, 1):
            # torch 2.13 corrupts memory in the backward pass of a strided 1x1 convolution over
            # channels_last; this is the same convolution.
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
            return F.conv2d(x, self.weight, self.bias, groups=self.groups)
        return super().forward(x)

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """See `Shareable`."""
        inner = self.in_layout if self.groups == 1 else (self.in_channels // self.groups,)
        found: dict[str, tuple[Layout, ...]] = {"weight": (self.out_layout, inner)}
        return found if self.bias is None else {**found, "bias": (self.out_layout,)}

    def widened(self, other: Self) -> Self:
        """See `Shareable`."""
        mine, theirs = self._fixed(), other._fixed()
        if mine != theirs:
            raise ArchitectureError(f"Convolutions {mine} and {theirs} cannot share weights.")
        in_layout = widest(self.in_layout, other.in_layout)
        return self._like(in_layout, widest(self.out_layout, other.out_layout))

    def _fixed(self) -> dict[str, int | bool]:
        return {
            "kernel": self.kernel_size[0],
            "stride": self.stride[0],
            "groups": self.groups,
            "bias": self.bias is not None,
        }

    def _like(self, in_layout: Layout, out_layout: Layout) -> Self:
        return type(self)(
            in_layout,
            out_layout,
            self.kernel_size[0],
            self.stride[0],
            groups=self.groups,
            bias=self.bias is not None,
        )


class ConvTranspose2d(nn.ConvTranspose2d, Shareable):
    """A 2x2 transposed convolution of stride 2 with bias: doubles height and width."""

    def __init__(self, in_layout: Layout, out_layout: Layout) -> None:
        self.in_layout, self.out_layout = in_layout, out_layout
        super().__init__(sum(in_layout), sum(out_layout), 2, 2)

    def reset_parameters(self) -> None:
        """Initialise as torch does; free on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """See `Shareable`."""
        return {"weight": (self.in_layout, self.out_layout), "bias": (self.out_layout,)}

    def widened(self, other: Self) -> Self:
        """See `Shareable`."""
        in_layout = widest(self.in_layout, other.in_layout)
        return type(self)(in_layout, widest(self.out_layout, other.out_layout))


class BatchNorm2d(nn.BatchNorm2d, Shareable):
    """Batch normalisation with the YOLO family's epsilon and momentum."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        super().__init__(sum(layout), eps=_BN_EPS, momentum=_BN_MOMENTUM)

    def reset_parameters(self) -> None:
        """Initialise as torch does; free on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """See `Shareable`."""
        return {"weight": (self.layout,), "bias": (self.layout,)}

    def widened(self, other: Self) -> Self:
        """See `Shareable`."""
        return type(self)(widest(self.layout, other.layout))


class LayerNorm(nn.LayerNorm, Shareable):
    """Layer normalisation over the channels, which lie in the last dimension."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        super().__init__(sum(layout))

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """See `Shareable`."""
        return {"weight": (self.layout,), "bias": (self.layout,)}

    def widened(self, other: Self) -> Self:
        """See `Shareable`."""
        return type(self)(widest(self.layout, other.layout))


class Scale(nn.Module, Shareable):
    """Multiply by one learnable number."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.factor = nn.Parameter(torch.full((), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Scale a tensor of any shape."""
        return self.factor * x

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """See `Shareable`."""
        return {"factor": ()}

    def widened(self, other: Self) -> Self:
        """See `Shareable`."""
        if self.initial != other.initial:
            raise ArchitectureError(f"Scales start at {self.initial:g} and at {other.initial:g}.")
        return type(self)(self.initial)


class WeightedSum(nn.Module, Shareable):
    """Fast normalised fusion: sum_i w_i x_i / (eps + sum_j w_j), with w_i = relu(learned number).

    The numbers start at 1 and eps is 1e-4 (Tan et al., CVPR 2020, section 3.3).

    Args:
        count: of the terms.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count))

    def forward(self, *terms: Tensor) -> Tensor:
        """Add up `count` tensors of one shape."""
        return _weighted(self._shares().unbind(), terms)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Return the same sum with constants for weights."""
        return _ConstantSum(self._shares().tolist())

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """See `Shareable`."""
        return {"weight": ()}

    def widened(self, other: Self) -> Self:
        """See `Shareable`."""
        mine, theirs = len(self.weight), len(other.weight)
        if mine != theirs:
            raise ArchitectureError(f"Sums of {mine} and of {theirs} terms cannot share weights.")
        return type(self)(mine)

    def _shares(self) -> Tensor:
        positive = self.weight.relu()
        return positive / (positive.sum() + _SUM_EPS)


class _ConstantSum(nn.Module):
    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self.shares = shares

    def forward(self, *terms: Tensor) -> Tensor:
        return _weighted(self.shares, terms)


def _weighted(shares: Sequence[float | Tensor], terms: Sequence[Tensor]) -> Tensor:
    scaled = [share * term for share, term in zip(shares, terms, strict=True)]
    return reduce(add, scaled)


class Choice(nn.Module):
    """A module kept under the name of its type, so that types have weights of their own."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        output: Tensor = self._modules[self.name](x)  # type: ignore[misc]
        return output


def widest(first: Layout, second: Layout) -> Layout:
    """Return the layout with every part of both, each as wide as the wider one."""
    return tuple(max(pair) for pair in zip_longest(first, second, fillvalue=0))


@contextmanager
def reusing(parts: dict[Hashable, nn.Module]) -> Iterator[None]:
    """Within the context, networks share the modules of equal parts at equal places.

    Making hundreds of modules costs more than running a small network on one image. Whoever builds
    many networks whose modules hold nothing of their own can pay for each part once. `parts` keeps
    them.
    """
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)


def part(place: str, build: Callable[[*_Arguments], _Module], *arguments: *_Arguments) -> _Module:
    """Build one part of a network, or take the equal one that `reusing` has for this place.

    Args:
        place: no two parts of a network have the same.
        build: makes the part.
        *arguments: for `build`; they can be hashed.
    """
    known = _parts.get()
    if known is None:
        return build(*arguments)
    key = (place, build, arguments)
    if key not in known:
        known[key] = build(*arguments)
    return known[key]  # type: ignore[return-value]
