"""Convolution, normalisation and activation, and their re-parameterized relatives.

Three units train with different branches and deploy as one convolution with bias:

- `ConvBN`: y = act(BN(W x)).
- `QARepVGG`: y = act(BN_post(BN_3(W_3 x) + W_1 x + x)), the block that survives 8-bit
  quantization (Chu et al., "Make RepVGG Greater Again: A Quantization-aware Approach", AAAI 2024).
  The 1x1 branch and the identity have no normalisation of their own; the sum has.
- `RepVGG`: y = act(BN_3(W_3 x) + BN_1(W_1 x) + BN_0(x)) (Ding et al., CVPR 2021).

The identity exists where input and output have one shape. Folding is done in float64: the error of
a float32 network is then that of rounding the result once.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import ArchitectureError
from nas.model.blocks.layers import BatchNorm2d, Conv2d, Layout
from nas.space.architecture import Convolution

__all__ = ["ConvBN", "QARepVGG", "RepVGG", "Unit", "activation", "strided"]


class Unit(nn.Module, ABC):
    """A convolution with normalisation and activation that folds into one convolution.

    Args:
        in_layout: widths of the tensors concatenated at the input.
        out_layout: widths of the tensors into which the output is split.
        kernel: side of the deployed kernel.
        stride: of both dimensions.
        groups: of every convolution.
        act: name of the activation.
    """

    def __init__(
        self,
        in_layout: Layout,
        out_layout: Layout,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str = "relu",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = sum(in_layout), sum(out_layout)
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.conv = Conv2d(in_layout, out_layout, kernel, stride, groups=groups)
        self.bn = BatchNorm2d(out_layout)
        self.act = activation(act)
        self._add_branches(in_layout, out_layout)

    def _add_branches(self, in_layout: Layout, out_layout: Layout) -> None:
        """Build what a kind of unit has beside `conv` and `bn`."""

    @abstractmethod
    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the deployed kernel (out, in / groups, k, k) and bias (out,) in float64."""

    @torch.no_grad()
    def fuse(self) -> nn.Sequential:
        """Return the deployed form, `conv` then `act`, with the running statistics folded in."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel,
            self.stride,
            padding=(self.kernel - 1) // 2,
            groups=self.groups,
            device="meta",
        )
        like = self.conv.weight
        weight, bias = self.folded()
        conv.weight = nn.Parameter(weight.to(like))
        conv.bias = nn.Parameter(bias.to(like))
        # An activation has no weights, but a mode of its own.
        return nn.Sequential(OrderedDict(conv=conv, act=copy.copy(self.act))).train(self.training)

    def _identity(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    def _kernel1(self, weight: Tensor) -> Tensor:
        """Pad a 1x1 kernel with zeros to the deployed size, in float64."""
        return F.pad(weight.double(), [self.kernel // 2] * 4)

    def _identity_kernel(self) -> Tensor:
        """Return the 1x1 kernel (out, in / groups, 1, 1) that passes its input on, in float64."""
        per_group = self.in_channels // self.groups
        rows = torch.eye(per_group, dtype=torch.float64, device=self.conv.weight.device)
        return rows.repeat(self.groups, 1)[:, :, None, None]


class ConvBN(Unit):
    """The plain unit; its kernel has any odd side, or 6 at stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        output: Tensor = self.act(self.bn(self.conv(x)))
        return output

    def folded(self) -> tuple[Tensor, Tensor]:
        """See `Unit`."""
        return _fold(self.conv.weight, self.bn)


class QARepVGG(Unit):
    """The quantization-aware unit; its kernel is 3x3."""

    def _add_branches(self, in_layout: Layout, out_layout: Layout) -> None:
        self.conv1 = Conv2d(in_layout, out_layout, 1, self.stride, groups=self.groups)
        self.post_bn = BatchNorm2d(out_layout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        total = self.bn(self.conv(x)) + self.conv1(x)
        if self._identity():
            total = total + x
        output: Tensor = self.act(self.post_bn(total))
        return output

    def folded(self) -> tuple[Tensor, Tensor]:
        """See `Unit`."""
        kernel, bias = _fold(self.conv.weight, self.bn)
        kernel = kernel + self._kernel1(self.conv1.weight)
        if self._identity():
            kernel = kernel + self._kernel1(self._identity_kernel())
        return _fold(kernel, self.post_bn, bias)


class RepVGG(Unit):
    """The unit with normalisation in every branch; its kernel is 3x3."""

    def _add_branches(self, in_layout: Layout, out_layout: Layout) -> None:
        self.conv1 = Conv2d(in_layout, out_layout, 1, self.stride, groups=self.groups)
        self.bn1 = BatchNorm2d(out_layout)
        self.bn0 = BatchNorm2d(in_layout) if self._identity() else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        total = self.bn(self.conv(x)) + self.bn1(self.conv1(x))
        if self.bn0 is not None:
            total = total + self.bn0(x)
        output: Tensor = self.act(total)
        return output

    def folded(self) -> tuple[Tensor, Tensor]:
        """See `Unit`."""
        kernel, bias = _fold(self.conv.weight, self.bn)
        pointwise, bias1 = _fold(self.conv1.weight, self.bn1)
        kernel, bias = kernel + self._kernel1(pointwise), bias + bias1
        if self.bn0 is None:
            return kernel, bias
        identity, bias0 = _fold(self._identity_kernel(), self.bn0)
        return kernel + self._kernel1(identity), bias + bias0


_UNITS: dict[Convolution, type[Unit]] = {"conv": ConvBN, "qarepvgg": QARepVGG, "repvgg": RepVGG}


def strided(kind: Convolution, in_channels: int, out_channels: int, kernel: int, act: str) -> Unit:
    """Build a unit of stride 2.

    Raises:
        ArchitectureError: a 6x6 kernel for a unit that exists as 3x3 only.
    """
    if kernel != 3 and kind != "conv":
        raise ArchitectureError(
            f"A {kind} convolution is 3x3, got {kernel}x{kernel}.",
            "Set its kernel to 3, or its convolution to conv.",
        )
    return _UNITS[kind]((in_channels,), (out_channels,), kernel, 2, act=act)


def activation(name: str) -> nn.Module:
    """Build `relu` or `silu`."""
    return {"relu": nn.ReLU, "silu": nn.SiLU}[name]()


def _fold(weight: Tensor, bn: BatchNorm2d, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fold a normalisation into the convolution before it, in float64.

    With s = gamma / sqrt(var + eps): W' = s W and b' = s (b - mean) + beta.
    """
    if bn.running_var is None or bn.running_mean is None:
        raise RuntimeError("Folding needs running statistics.")
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    offset = -bn.running_mean.double() if bias is None else bias - bn.running_mean.double()
    return weight.double() * scale[:, None, None, None], scale * offset + bn.bias.double()
