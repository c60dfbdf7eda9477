"""Training images: a random zoom and shift, light and contrast, and a mirror where it is allowed.

A batch is warped by one `grid_sample` and its colours changed in place; everything else is
arithmetic on a few numbers per image. Random numbers are drawn from a given generator, so that a
batch is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nas.accuracy.dataset import Annotations
from nas.errors import InputError

__all__ = ["Augmentation"]

_BORDER = 114 / 255  # grey, as the letterbox
_SMALLEST_SIDE = 2.0  # pixels
_SMALLEST_SHARE = 0.35  # of an object's area that must still be visible

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """How much training images are changed.

    Args:
        zoom: scales are drawn from 1 - zoom to 1 + zoom, evenly on the logarithm.
        shift: translations, up to this share of the side either way.
        light: brightness is multiplied by 1 - light to 1 + light.
        contrast: differences to the mean are multiplied by 1 - contrast to 1 + contrast.
        flip: mirror every second image; wrong where left and right mean something, as in digits.

    Raises:
        InputError: an amount outside 0..0.9.
    """

    zoom: float = 0.2
    shift: float = 0.1
    light: float = 0.2
    contrast: float = 0.2
    flip: bool = False

    def __post_init__(self) -> None:
        amounts = (self.zoom, self.shift, self.light, self.contrast)
        if not all(0 <= amount <= 0.9 for amount in amounts):
            raise InputError(f"Amounts of augmentation lie in 0..0.9, got {self}.")

    def __call__(
        self,
        images: Tensor,
        annotations: Sequence[Annotations],
        generator: np.random.Generator,
        *,
        count: int | None = None,
        first: int = 0,
    ) -> tuple[Tensor, list[Annotations]]:
        """Change a batch.

        Args:
            images: (B, 3, H, W) uint8.
            annotations: the objects of each image, in pixels.
            generator: draws the changes; the same number of draws whatever they turn out to be.
            count: images of the whole batch, of which these may be a part: they are changed as in
                it. None if they are the whole.
            first: place of the first of these images in it.

        Returns:
            Images (B, 3, H, W) float32 in 0..1, and the objects that are still visible.
        """
        height, width = images.shape[2:]
        whole = count or len(images)
        part = slice(first, first + len(images))
        scales, shifts = (drawn[part] for drawn in self._draw_affine(whole, generator))
        contrast, light = self._draw_light(whole, generator)[:, part]
        changed = images.float().div_(255)
        if self.zoom or self.shift or self.flip:
            changed = _warp(changed, scales, shifts)
        if self.light or self.contrast:
            _relight(changed, contrast, light)
        size = np.array([width, height], np.float32)
        moved = [
            _moved(each, scale, shift * size, size)
            for each, scale, shift in zip(annotations, scales, shifts, strict=True)
        ]
        return changed, moved

    def _draw_affine(self, count: int, generator: np.random.Generator) -> tuple[_Floats, _Floats]:
        """Draw x' = scale * x + shift, (count, 2) each, in units of the side; scale x < 0 flips."""
        low, high = np.log([1 - self.zoom, 1 + self.zoom])
        zoom = np.exp(generator.uniform(low, high, (count, 1)))
        move = generator.uniform(-self.shift, self.shift, (count, 2))
        mirrored = generator.random(count) < (0.5 if self.flip else 0.0)
        scales = np.repeat(zoom, 2, axis=1)
        scales[mirrored, 0] *= -1
        return scales.astype(np.float32), ((1 - scales) / 2 + move).astype(np.float32)

    def _draw_light(self, count: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Draw the factors of contrast and brightness, (2, count)."""
        spans = np.array([[self.contrast], [self.light]])
        return generator.uniform(1 - spans, 1 + spans, (2, count))


def _relight(images: Tensor, contrast: NDArray[np.float64], light: NDArray[np.float64]) -> None:
    """Scale the differences to each image's mean, then the brightness, in place."""
    gain = torch.from_numpy((contrast * light).astype(np.float32))[:, None, None, None]
    offset = torch.from_numpy(((1 - contrast) * light).astype(np.float32))[:, None, None, None]
    means = images.mean((1, 2, 3), keepdim=True)
    images.mul_(gain).add_(offset * means).clamp_(0, 1)


def _warp(images: Tensor, scales: _Floats, shifts: _Floats) -> Tensor:
    """Move the content of images (B, 3, H, W) by x' = scale * x + shift; the border is grey."""
    count = len(images)
    theta = np.zeros((count, 2, 3), np.float32)
    # affine_grid maps places of the output to places of the input, on -1..1.
    theta[:, [0, 1], [0, 1]] = 1 / scales
    theta[:, :, 2] = (1 - 2 * shifts) / scales - 1
    grid = F.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    return F.grid_sample(images - _BORDER, grid, align_corners=False).add_(_BORDER)


def _moved(objects: Annotations, scale: _Floats, shift: _Floats, size: _Floats) -> Annotations:
    """Move objects by x' = scale * x + shift, clip them to (width, height), drop the cut ones."""
    corners = objects.boxes.reshape(-1, 2, 2) * scale + shift
    whole = np.concatenate([corners.min(1), corners.max(1)], 1)
    clipped = whole.clip(0, np.tile(size, 2))
    sides, before = (box[:, 2:] - box[:, :2] for box in (clipped, whole))
    visible = sides.prod(1) >= _SMALLEST_SHARE * before.prod(1)
    kept = visible & (sides.min(1, initial=np.inf) >= _SMALLEST_SIDE)
    return Annotations(clipped[kept], objects.labels[kept])
