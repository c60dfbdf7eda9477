"""Data sets as values: classes, three splits, and a report of everything wrong with the files.

Design choices:

- Images are read when they are asked for; annotations are always in memory, in pixels of the
  original image. The readers (`coco`, `yolo`, `digits`) produce these values; nothing else does.
- Every network input size has its own copy of a split, letterboxed once: decoding and resizing
  would otherwise cost more than a small network's training step. A copy above `MEMORY_LIMIT` bytes
  is a memory-mapped file of the cache folder, named after the content of the split and the size.
- A damaged file costs that file, never the run; the report counts it and gives examples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nas.accuracy.images import Images, fitted_size, in_threads, letterbox
from nas.errors import DatasetError
from nas.files import write_atomically

__all__ = [
    "MEMORY_LIMIT",
    "Annotations",
    "CopyPlace",
    "DataReport",
    "Dataset",
    "Problem",
    "ResizedSplit",
    "Split",
    "SplitName",
    "fingerprint",
]

SplitName = Literal["train", "validation", "test"]

MEMORY_LIMIT = 512 * 1024**2
"""Bytes of one resized split above which it is memory-mapped instead of held in memory."""

_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class Annotations:
    """The objects of one image.

    Args:
        boxes: (n, 4) xyxy in pixels, float32.
        labels: (n,) 0-based classes, int64.
        crowd: (n,) regions that hold many objects of the class: never trained on, and detections
            inside them count neither for nor against. Left out: none is.
        areas: (n,) object areas in square pixels that sort objects into small, medium and large.
            Left out: the areas of the boxes.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    areas: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        crowd = self.crowd if len(self.crowd) else np.zeros(len(boxes), bool)
        areas = self.areas if len(self.areas) else (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64).reshape(-1))
        object.__setattr__(self, "crowd", np.asarray(crowd, bool))
        object.__setattr__(self, "areas", np.asarray(areas, np.float32))
        if not len(boxes) == len(self.labels) == len(self.crowd) == len(self.areas):
            raise DatasetError(
                f"Boxes, labels, crowd flags and areas must be equally many, got {len(boxes)}, "
                f"{len(self.labels)}, {len(self.crowd)} and {len(self.areas)}."
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, chosen: NDArray[np.bool_]) -> Annotations:
        """Return the objects where `chosen` (n,) is true."""
        return Annotations(
            self.boxes[chosen], self.labels[chosen], self.crowd[chosen], self.areas[chosen]
        )

    def scaled(self, scale: NDArray[np.float32]) -> Annotations:
        """Return the objects in an image whose (width, height) was multiplied by `scale` (2,)."""
        return Annotations(
            self.boxes * np.tile(scale, 2), self.labels, self.crowd, self.areas * scale.prod()
        )


class Problem(StrEnum):
    """What can be wrong with a data set, and what is done about it."""

    MISSING_IMAGE = "missing image (left out)"
    UNREADABLE_IMAGE = "unreadable image (left out)"
    DUPLICATE_IMAGE = "duplicate image (first one kept)"
    UNANNOTATED_IMAGE = "image without annotations (kept as background)"
    BOX_OUTSIDE = "box outside the image (clipped, dropped if nothing is left)"
    EMPTY_BOX = "box without area (dropped)"
    UNKNOWN_CATEGORY = "unknown category (box dropped)"
    MALFORMED = "malformed annotation (dropped)"


@dataclass
class DataReport:
    """What a reader met: problems with their number and up to three examples, and notes."""

    counts: dict[Problem, int] = field(default_factory=dict)
    examples: dict[Problem, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, problem: Problem, example: str) -> None:
        """Count one more `problem`; `example` says where."""
        self.counts[problem] = self.counts.get(problem, 0) + 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def note(self, text: str) -> None:
        """Record a choice that was made for the user, such as a split that was missing."""
        self.notes.append(text)

    def __str__(self) -> str:
        problems = [
            f"{self.counts[problem]} x {problem}: {'; '.join(self.examples[problem])}"
            for problem in Problem
            if problem in self.counts
        ]
        return "\n".join(self.notes + problems) or "No problem found."


@dataclass(frozen=True)
class _ChosenImages:
    images: Images
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return self.images[self.indices[index]]


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one purpose, with their objects.

    Args:
        name: what it is used for.
        images: n images, read lazily.
        annotations: n, in pixels of the original images.
        sizes: (n, 2) original height and width, int64.
        contents: n fingerprints of the images' bytes.
        cache_dir: where large resized copies are kept; None keeps them in memory.
    """

    name: SplitName
    images: Images
    annotations: tuple[Annotations, ...]
    sizes: NDArray[np.int64]
    contents: tuple[str, ...]
    cache_dir: Path | None = None
    _resized: dict[tuple[int, int], ResizedSplit] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process resizes again, or maps the file: sending the copies would cost more.
        return {**self.__dict__, "_resized": {}}

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the images and their objects; the name of the split does not enter."""
        return fingerprint(
            [
                [content, hashlib.sha256(_annotation_bytes(objects)).hexdigest()]
                for content, objects in zip(self.contents, self.annotations, strict=True)
            ]
        )

    def subset(self, name: SplitName, indices: Sequence[int]) -> Split:
        """Return the images at `indices`, as a split called `name`."""
        chosen = tuple(int(i) for i in indices)
        return Split(
            name,
            _ChosenImages(self.images, chosen),
            tuple(self.annotations[i] for i in chosen),
            self.sizes[list(chosen)],
            tuple(self.contents[i] for i in chosen),
            self.cache_dir,
        )

    def resized(self, height: int, width: int) -> ResizedSplit:
        """Return this split letterboxed to the network input (height, width), made once per size.

        Raises:
            DatasetError: a side is not positive, or an image changed on disk since it was checked.
        """
        if min(height, width) < 1:
            raise DatasetError(f"A network input has positive sides, got {height}x{width}.")
        if (height, width) not in self._resized:
            self._resized[height, width] = ResizedSplit.of(self, height, width)
        return self._resized[height, width]

    def copy_place(self, height: int, width: int) -> CopyPlace:
        """Return where `resized` keeps the images of a size, whether they are there or not."""
        shape = (len(self), 3, height, width)
        if self.cache_dir is None or math.prod(shape) <= MEMORY_LIMIT:
            return CopyPlace(shape, None)
        return CopyPlace(shape, self.cache_dir / f"resized-{self.digest}-{height}x{width}.npy")


@dataclass(frozen=True)
class CopyPlace:
    """Where a split at one network input size is kept.

    Attributes:
        shape: (n, 3, height, width), a byte each.
        path: the file that is mapped; None if it is held in memory.
    """

    shape: tuple[int, int, int, int]
    path: Path | None

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape)

    @property
    def is_written(self) -> bool:
        """Whether the file is there, whole."""
        return self.path is not None and _is_image_file(self.path, self.shape)


@dataclass(frozen=True, eq=False)
class ResizedSplit:
    """A split at one network input size.

    Args:
        split: the original.
        images: (n, 3, height, width) uint8 RGB, in memory or memory-mapped.
        annotations: n, in pixels of the network input.
        scales: (n, 2) float32; network pixels = original pixels (x, y) times this.
    """

    split: Split
    images: NDArray[np.uint8]
    annotations: tuple[Annotations, ...]
    scales: NDArray[np.float32]

    @classmethod
    def of(cls, split: Split, height: int, width: int) -> ResizedSplit:
        """Letterbox every image of `split`, or map the file that an earlier run wrote."""
        fitted = np.array([fitted_size((h, w), (height, width)) for h, w in split.sizes]).reshape(
            -1, 2
        )
        scales = (fitted / split.sizes)[:, ::-1].astype(np.float32)
        annotations = tuple(
            objects.scaled(scale) for objects, scale in zip(split.annotations, scales, strict=True)
        )
        return cls(split, _resized_images(split, height, width), annotations, scales)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def height(self) -> int:
        """Height of the network input in pixels."""
        return int(self.images.shape[2])

    @property
    def width(self) -> int:
        """Width of the network input in pixels."""
        return int(self.images.shape[3])

    def batch(self, indices: NDArray[np.int64]) -> tuple[torch.Tensor, list[Annotations]]:
        """Return images (B, 3, H, W) uint8 and their objects in network pixels, crowds left out."""
        objects = [self.annotations[i] for i in indices]
        return (
            torch.from_numpy(np.ascontiguousarray(self.images[indices])),
            [each.select(~each.crowd) for each in objects],
        )

    def to_original(self, index: int, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes (n, 4) in network pixels to pixels of the original image, clipped to it."""
        height, width = self.split.sizes[index]
        limits = np.array([width, height, width, height], np.float32)
        mapped: NDArray[np.float32] = boxes / np.tile(self.scales[index], 2)
        return mapped.clip(0, limits)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A detection task.

    Args:
        name: shown in reports.
        classes: class names; a label is an index into them.
        train: what networks learn from.
        validation: what the search compares candidates on.
        test: what only the winner is scored on.
        report: what was wrong with the files, and what was decided.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    report: DataReport

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the classes and of every image and object."""
        test = self.test.digest if self.test else None
        return fingerprint([self.classes, self.train.digest, self.validation.digest, test])


def fingerprint(value: object) -> str:
    """Return 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resized_images(split: Split, height: int, width: int) -> NDArray[np.uint8]:
    place = split.copy_place(height, width)
    if place.path is None:
        images = np.empty(place.shape, np.uint8)
        _fill(images, split)
        return images
    if not place.is_written:
        _write_images(place.path, place.shape, split)
    return _mapped(place.path)


def _fill(images: NDArray[np.uint8], split: Split) -> None:
    def fill(index: int) -> None:
        source = split.images[index]
        if source.shape[:2] != tuple(split.sizes[index]):
            raise DatasetError(
                f"Image {index} of the {split.name} split was {split.sizes[index]} when it was "
                f"checked and is {source.shape[:2]} now.",
                "Do not change the data while a study runs; start again.",
            )
        images[index] = letterbox(source, (images.shape[2], images.shape[3])).transpose(2, 0, 1)

    in_threads(fill, range(len(split)))


def _write_images(path: Path, shape: tuple[int, ...], split: Split) -> None:
    def write(file: IO[bytes]) -> None:
        images = np.lib.format.open_memmap(file.name, "w+", np.uint8, shape)
        _fill(images, split)
        images.flush()

    write_atomically(path, write)


def _is_image_file(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        return _mapped(path).shape == shape
    except (OSError, ValueError, EOFError):
        return False


def _mapped(path: Path) -> NDArray[np.uint8]:
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _annotation_bytes(objects: Annotations) -> bytes:
    return b"".join(
        part.tobytes() for part in (objects.boxes, objects.labels, objects.crowd, objects.areas)
    )
