"""Reading images and fitting them into a network's input.

Letterboxing keeps the aspect ratio and puts the image into the top left corner: mapping a box back
is then one division per axis, and the program on a device needs no offset.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nas.errors import DatasetError

__all__ = [
    "DECODING_ERRORS",
    "PADDING",
    "ImageFiles",
    "Images",
    "fitted_size",
    "in_threads",
    "letterbox",
    "read_image",
]

PADDING = 114
"""Grey level around a letterboxed image: usual for YOLO-like detectors, near ImageNet's mean."""

DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on files that are damaged in one way or another."""

_WORKERS = min(8, os.cpu_count() or 1)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Images(Protocol):
    """Images that are decoded when they are asked for: RGB, uint8, (H, W, 3)."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        """Return image `index`."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Images in files, in any format that Pillow reads."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return read_image(self.paths[index])


def fitted_size(size: tuple[int, int], into: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) to which an image of `size` is resized to fit `into`."""
    scale = min(into[0] / size[0], into[1] / size[1])
    return (
        min(max(round(size[0] * scale), 1), into[0]),
        min(max(round(size[1] * scale), 1), into[1]),
    )


def letterbox(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Fit `image` (h, w, 3) into `size` (height, width), top left, keeping its aspect ratio.

    Bilinear with the antialiasing of Pillow (the kernel widens with the reduction), so that a small
    object does not fall between two samples.
    """
    new_height, new_width = fitted_size((image.shape[0], image.shape[1]), size)
    fitted = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    canvas = np.full((*size, 3), PADDING, np.uint8)
    canvas[:new_height, :new_width] = np.asarray(fitted)
    return canvas


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode `path` to RGB uint8 (H, W, 3), turned upright as its EXIF tag says.

    Raises:
        DatasetError: it is not an image, or damaged.
    """
    try:
        with Image.open(path) as opened:
            return _upright_rgb(opened)
    except DECODING_ERRORS as error:
        raise DatasetError(
            f"The image {path} cannot be decoded: {error}.",
            "If it was there before, do not change the data while a study runs.",
        ) from error


def _upright_rgb(opened: Image.Image) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to white instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Apply `function` to each of `items`, in order; Pillow decodes and resizes without the GIL."""
    with ThreadPoolExecutor(_WORKERS) as workers:
        return list(workers.map(function, items))
