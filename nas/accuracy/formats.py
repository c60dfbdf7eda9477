"""The way into a data set: finds out what a path holds, reads it, and completes the three splits.

A validation or test split that the files lack is drawn from the training images, and the report
says so. What is damaged is left out and counted; only a split with nothing left is an error. Of one
or two images nothing can be held out: the same ones serve to compare candidates, and none to test.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nas.accuracy import coco, yolo
from nas.accuracy.dataset import Annotations, DataReport, Dataset, Split, SplitName
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.records import Source, check_images, make_split
from nas.errors import DatasetError, nearest

__all__ = ["DIGITS", "load_dataset"]

DIGITS = "digits"
"""The name of the embedded data set, where a path is expected."""

_HELD_OUT_SHARE = 0.15
_SHOWN = 5  # names in a note


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
    _note_absent_classes(splits, source.classes, report)
    name = path.stem if path.is_file() else path.resolve().name
    return Dataset(
        name, source.classes, splits["train"], splits["validation"], splits.get("test"), report
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
    if sum(map(_has_objects, train.annotations)) <= len(missing):
        return _with_repeated(splits, missing, report)
    size = max(1, round(len(train) * _HELD_OUT_SHARE))
    order = _order(train, [size] * len(missing), seed)
    drawn = dict(splits)
    for number, name in enumerate(missing):
        drawn[name] = train.subset(name, sorted(order[number * size : (number + 1) * size]))
        report.note(
            f"No {name} split: {size} of {len(train)} training images were drawn for it with seed "
            f"{seed}. If images resemble each other, such as frames of a video, define it yourself."
        )
    drawn["train"] = train.subset("train", sorted(order[len(missing) * size :]))
    return drawn


def _order(train: Split, sizes: Sequence[int], seed: int) -> list[int]:
    """Shuffle the images so that each part of these sizes, and the rest, has an object in it."""
    order = [int(index) for index in np.random.default_rng(seed).permutation(len(train))]
    starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    parts = [range(a, b) for a, b in itertools.pairwise([*starts, len(order)])]
    useful = [
        [place for place in part if _has_objects(train.annotations[order[place]])] for part in parts
    ]
    for part, places in zip(parts, useful, strict=True):
        if not places:  # exchange an image with the part that has most to give
            giver = max(useful, key=len)
            given = giver.pop()
            order[part[0]], order[given] = order[given], order[part[0]]
            places.append(part[0])
    return order


def _with_repeated(
    splits: dict[SplitName, Split], missing: Sequence[SplitName], report: DataReport
) -> dict[SplitName, Split]:
    """Let the training images stand for validation where there are too few to hold any out."""
    train = splits["train"]
    useful = sum(map(_has_objects, train.annotations))
    few = f"{len(train)} training images, {useful} with objects, are too few to hold any out"
    if "validation" in missing:
        splits = {**splits, "validation": train.subset("validation", range(len(train)))}
        report.note(
            f"No validation split, and {few}: candidates are compared on the images that they "
            "learn from, so accuracy says nothing about other images."
        )
    if "test" in missing:
        report.note(f"No test split, and {few}: nothing is scored on images never seen.")
    return splits


def _has_objects(objects: Annotations) -> bool:
    return not objects.crowd.all()


def _require_objects(split: Split, report: DataReport) -> None:
    if not any(map(_has_objects, split.annotations)):
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
        images = "1 image is" if shared == 1 else f"{shared} images are"
        report.note(f"{images} in more than one split: accuracy will look too good.")


def _note_absent_classes(
    splits: dict[SplitName, Split], classes: tuple[str, ...], report: DataReport
) -> None:
    """Say which classes a split has no object of: it cannot say how well they are found."""
    for split in splits.values():
        labels = {int(label) for one in split.annotations for label in one.labels[~one.crowd]}
        absent = [name for label, name in enumerate(classes) if label not in labels]
        if absent and labels:
            shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
            report.note(f"The {split.name} split has no object of {len(absent)} classes: {shown}.")
