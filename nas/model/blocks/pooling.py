"""Spatial pyramid pooling: context of several sizes at the deepest level."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nas.model.blocks.convolution import ConvBN
from nas.space.architecture import Pooling

__all__ = ["SPP", "SPPF", "pooling"]


class _Pyramid(nn.Module, ABC):
    """1x1 to `hidden`, several max pools, concatenation, 1x1 back to `channels`."""

    def __init__(self, channels: int, hidden: int, pools: int, activation: str) -> None:
        super().__init__()
        self.conv1 = ConvBN((channels,), (hidden,), 1, act=activation)
        self.conv2 = ConvBN((hidden,) * (1 + pools), (channels,), 1, act=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        output: Tensor = self.conv2(torch.cat(self._levels(self.conv1(x)), 1))
        return output

    @abstractmethod
    def _levels(self, x: Tensor) -> list[Tensor]: ...


class SPP(_Pyramid):
    """Pools of several odd kernels, side by side (He et al., 2014; YOLOv3-SPP)."""

    def __init__(
        self, channels: int, hidden: int, kernels: tuple[int, ...], activation: str
    ) -> None:
        super().__init__(channels, hidden, len(kernels), activation)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in kernels)

    def _levels(self, x: Tensor) -> list[Tensor]:
        return [x, *(pool(x) for pool in self.pools)]


class SPPF(_Pyramid):
    """One kernel k three times in a chain: equal to `SPP` with k, 2k - 1, 3k - 2, and faster."""

    def __init__(self, channels: int, hidden: int, kernel: int, activation: str) -> None:
        super().__init__(channels, hidden, 3, activation)
        self.pool = nn.MaxPool2d(kernel, 1, kernel // 2)

    def _levels(self, x: Tensor) -> list[Tensor]:
        levels = [x]
        for _ in range(3):
            levels.append(self.pool(levels[-1]))
        return levels


def pooling(spec: Pooling | None, channels: int, activation: str) -> nn.Module:
    """Build what the record describes; nothing at all is an identity."""
    if spec is None:
        return nn.Identity()
    if spec.kind == "sppf":
        return SPPF(channels, spec.hidden, spec.kernels[0], activation)
    return SPP(channels, spec.hidden, spec.kernels, activation)
