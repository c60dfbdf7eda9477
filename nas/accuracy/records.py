"""From what an annotation file says to what can be used: every image checked, every box clipped.

The readers of formats only understand files; the rules about damaged data are here, once. Every
image is decoded before anything else happens, because a file that breaks in the middle of a search
costs hours. What was learnt is cached under the fingerprint of the images' bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.accuracy.dataset import (
    Annotations,
    DataReport,
    Problem,
    Split,
    SplitName,
    fingerprint,
)
from nas.accuracy.images import DECODING_ERRORS, ImageFiles, in_threads
from nas.errors import DatasetError
from nas.files import write_atomically

__all__ = [
    "CONTENT_LIMIT",
    "Checked",
    "Record",
    "Source",
    "check_images",
    "is_file",
    "make_split",
    "read_text",
]

CONTENT_LIMIT = 2 * 1024**3
"""Bytes of all images above which names and sizes enter the digest instead of contents."""

_THINNEST_PX = 0.5  # a thinner box is a slip of the annotator's mouse
_TOLERANCE_PX = 1.0  # annotation tools round: up to here a box is clipped without a word
_ROTATED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange height and width
_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False)
class Record:
    """One image as an annotation file describes it.

    Args:
        path: of the image.
        boxes: (n, 4) xyxy, finite, in pixels or, if `relative`, in shares of width and height.
        labels: (n,) 0-based classes.
        crowd: (n,) see `Annotations`.
        areas: (n,) in square pixels; NaN where the file does not say.
        relative: the unit of the boxes.
    """

    path: Path
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    relative: bool


@dataclass(frozen=True)
class Source:
    """What a reader found: class names, and the images of each split that the files define."""

    format: str
    classes: tuple[str, ...]
    records: dict[SplitName, list[Record]]


@dataclass(frozen=True)
class Checked:
    """A readable image: fingerprint of its bytes, and its height and width when upright."""

    content: str
    height: int
    width: int


def check_images(paths: Iterable[Path], report: DataReport, cache_dir: Path) -> dict[Path, Checked]:
    """Decode every image once and return those that can be used; count the others in `report`."""
    present = []
    for path in sorted(set(paths)):
        if is_file(path):
            present.append(path)
        else:
            report.add(Problem.MISSING_IMAGE, str(path))
    contents = _contents(present, report)
    cache = cache_dir / f"checked-{fingerprint(sorted(contents.values()))}.json"
    sizes = _read_sizes(cache)
    if sizes is None:
        measured = zip(present, in_threads(_decoded_size, present), strict=True)
        sizes = {contents[path]: size for path, size in measured}
        write_atomically(cache, lambda file: file.write(json.dumps(sizes).encode()))
    usable = {}
    for path, content in contents.items():
        size = sizes.get(content)
        if size:
            usable[path] = Checked(content, size[0], size[1])
        else:
            report.add(Problem.UNREADABLE_IMAGE, str(path))
    return usable


def make_split(
    name: SplitName,
    records: Sequence[Record],
    checked: Mapping[Path, Checked],
    report: DataReport,
    cache_dir: Path,
) -> Split:
    """Keep the usable images and boxes of `records`, and count what is lost."""
    kept: dict[Path, Annotations] = {}
    for record in records:
        if record.path in kept:
            report.add(Problem.DUPLICATE_IMAGE, str(record.path))
        elif record.path in checked:
            kept[record.path] = _usable_objects(record, checked[record.path], report)
    images = [checked[path] for path in kept]
    return Split(
        name,
        ImageFiles(tuple(kept)),
        tuple(kept.values()),
        np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2),
        tuple(image.content for image in images),
        cache_dir,
    )


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name too long for any is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_text(path: Path) -> str:
    """Return the text of a file of annotations.

    Raises:
        DatasetError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}, byte {error.start}: not UTF-8 text.", "Save the file as UTF-8."
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"{path} cannot be read: {error.strerror}.", "Check the permissions and the disk."
    )


def _usable_objects(record: Record, image: Checked, report: DataReport) -> Annotations:
    if not len(record.boxes):
        report.add(Problem.UNANNOTATED_IMAGE, str(record.path))
    limits = np.array([image.width, image.height, image.width, image.height], np.float64)
    boxes = record.boxes * limits if record.relative else record.boxes
    clipped = boxes.clip(0, limits)
    empty = _thinner_side(boxes) < _THINNEST_PX
    outside = ~empty & (np.abs(boxes - clipped).max(axis=1, initial=0) > _TOLERANCE_PX)
    for problem, concerned in ((Problem.EMPTY_BOX, empty), (Problem.BOX_OUTSIDE, outside)):
        for box in boxes[concerned]:
            corners = ", ".join(f"{corner:.4g}" for corner in box)
            report.add(problem, f"{record.path} ({corners})")
    areas = np.where(np.isfinite(record.areas), record.areas, _areas(clipped))
    kept = ~empty & (_thinner_side(clipped) >= _THINNEST_PX)
    return Annotations(
        clipped.astype(np.float32), record.labels, record.crowd, areas.astype(np.float32)
    ).select(kept)


def _thinner_side(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    side: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    return side


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return area


def _contents(paths: Sequence[Path], report: DataReport) -> dict[Path, str]:
    total = sum(path.stat().st_size for path in paths)
    if total <= CONTENT_LIMIT:
        return dict(zip(paths, in_threads(_content_of_bytes, paths), strict=True))
    report.note(
        f"The images take {total / 1024**3:.1f} GiB: their names and sizes stand for their "
        "contents in the digest, so a changed image of equal size goes unnoticed."
    )
    return {path: fingerprint([path.name, path.stat().st_size]) for path in paths}


def _content_of_bytes(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise _unreadable(path, error) from error


def _decoded_size(path: Path) -> tuple[int, int] | None:
    """Return the upright (height, width) of an image that decodes to its end, else None."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # A JPEG decoded at an eighth of its size is read to the end, in a third of the time.
            image.draft("RGB", (1, 1))
            image.load()
            rotated = image.getexif().get(_ORIENTATION) in _ROTATED
    except DECODING_ERRORS:
        return None
    return (width, height) if rotated else (height, width)


def _read_sizes(cache: Path) -> dict[str, tuple[int, int] | None] | None:
    try:
        sizes: dict[str, tuple[int, int] | None] = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return None
    return sizes
