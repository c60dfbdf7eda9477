"""The way into a data set: finds out what a path holds, reads it, and completes the three splits.

A validation or test split that the files lack is drawn from the training images, and the report
says so. What is damaged is left out and counted; only a split with nothing left is an error.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from nas.accuracy import coco, yolo
from nas.accuracy.dataset import DataReport, Dataset, Split, SplitName
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.records import Source, check_images, make_split
from nas.errors import DatasetError, nearest

__all__ = ["DIGITS", "load_dataset"]

DIGITS = "digits"
"""The name of the embedded data set, where a path is expected."""

_HELD_OUT_SHARE = 0.15
_FEWEST_IMAGES = 3


def load_dataset(
    path: Path | str | None, cache_dir: Path, seed: int = 0, *, quick: bool = False
) -> Dataset:
    """Read the data set at `path`, in COCO or YOLO format; None or "digits": the embedded one.

    Args:
        path: a folder, a COCO .json file or a YOLO .yaml file.
        cache_dir: where composed scenes, resized copies and checks of images are kept.
        seed: of splits that have to be drawn; the embedded set has its own.
        quick: take few and small scenes of the embedded set; files are read whole all the same.

    Raises:
        DatasetError: nothing readable is there, or nothing usable is left in a split.
    """
    if path is None or str(path) == DIGITS:
        return digits_dataset(DigitsRecipe.quick() if quick else DigitsRecipe(), cache_dir)
    path = Path(path)
    report = DataReport()
    source = _read(path, report)
    splits = _complete(_usable_splits(source, report, cache_dir), report, seed)
    for split in splits.values():
        _require_objects(split, report)
    _note_leaks(splits, report)
    name = path.stem if path.is_file() else path.resolve().name
    return Dataset(
        name, source.classes, splits["train"], splits["validation"], splits["test"], report
    )


def _read(path: Path, report: DataReport) -> Source:
    if not path.exists():
        hint = f"Did you mean {DIGITS!r}? " if nearest(str(path), [DIGITS]) else ""
        raise DatasetError(
            f"The data set {path} does not exist.",
            f"{hint}Give a folder in COCO or YOLO format, or {DIGITS!r}.",
        )
    files = coco.find_coco(path)
    if files:
        return coco.read_coco(files, report)
    description = yolo.find_yolo(path)
    if description:
        return yolo.read_yolo(description, report)
    looked_for = "; ".join((*coco.LOOKED_FOR, *yolo.LOOKED_FOR))
    raise DatasetError(f"No data set was recognised in {path}.", f"Looked for: {looked_for}.")


def _usable_splits(source: Source, report: DataReport, cache_dir: Path) -> dict[SplitName, Split]:
    paths = [record.path for records in source.records.values() for record in records]
    checked = check_images(paths, report, cache_dir)
    report.note(f"Read as {source.format}: {len(source.classes)} classes.")
    return {
        name: make_split(name, records, checked, report, cache_dir)
        for name, records in source.records.items()
    }


def _complete(
    splits: dict[SplitName, Split], report: DataReport, seed: int
) -> dict[SplitName, Split]:
    """Draw the splits that are missing from the training images."""
    held_out: tuple[SplitName, ...] = ("validation", "test")
    missing = [name for name in held_out if name not in splits]
    if "train" not in splits:
        raise DatasetError(
            f"A data set needs a training split, got {', '.join(splits) or 'none'}.", "Add it."
        )
    train = splits["train"]
    if not missing:
        return splits
    if len(train) < _FEWEST_IMAGES:
        raise DatasetError(
            f"Training needs at least {_FEWEST_IMAGES} images to draw other splits from, "
            f"got {len(train)}.\n{report}",
            "Add images or define the splits.",
        )
    order = np.random.default_rng(seed).permutation(len(train))
    size = max(1, round(len(train) * _HELD_OUT_SHARE))
    drawn = dict(splits)
    for number, name in enumerate(missing):
        drawn[name] = train.subset(name, sorted(order[number * size : (number + 1) * size]))
        report.note(
            f"No {name} split: {size} of {len(train)} training images were drawn for it with seed "
            f"{seed}. If images resemble each other, such as frames of a video, define it yourself."
        )
    drawn["train"] = train.subset("train", sorted(order[len(missing) * size :]))
    return drawn


def _require_objects(split: Split, report: DataReport) -> None:
    if not any(len(objects.select(~objects.crowd)) for objects in split.annotations):
        left = f"{len(split)} images, but no box" if len(split) else "no image"
        raise DatasetError(
            f"The {split.name} split has {left} that can be used.\n{report}",
            "Mend the problems listed above, or take the split out.",
        )


def _note_leaks(splits: dict[SplitName, Split], report: DataReport) -> None:
    """Say if an image of one split is in another, byte by byte: its score would be flattered."""
    counts = Counter(content for split in splits.values() for content in set(split.contents))
    shared = sum(count > 1 for count in counts.values())
    if shared:
        report.note(f"{shared} images are in more than one split: accuracy will look too good.")
