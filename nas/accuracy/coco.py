"""Reads COCO annotations, in the layouts of COCO itself, of Roboflow, and as a single file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.accuracy.dataset import DataReport, Problem, SplitName
from nas.accuracy.records import Record, Source, is_file, read_text
from nas.errors import DatasetError

__all__ = ["LOOKED_FOR", "find_coco", "read_coco"]

LOOKED_FOR = (
    "annotations/instances_{train,val,test}*.json (COCO)",
    "{train,valid,test}/_annotations.coco.json (COCO by Roboflow)",
    "a single .json file (COCO)",
)

_PATTERNS: dict[SplitName, tuple[str, ...]] = {
    "train": ("annotations/instances_train*.json", "train/_annotations.coco.json"),
    "validation": ("annotations/instances_val*.json", "val*/_annotations.coco.json"),
    "test": ("annotations/instances_test*.json", "test/_annotations.coco.json"),
}
_KEYS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_PROBED_IMAGES = 50


class _Object(NamedTuple):
    box: list[float]
    label: int
    crowd: bool
    area: float


@dataclass(frozen=True)
class _File:
    """One annotation file: where it is and what it holds, checked to be lists of objects."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def find_coco(path: Path) -> dict[SplitName, Path]:
    """Return the annotation file of each split under `path`; empty if this is no COCO data set.

    Raises:
        DatasetError: several files could be the same split.
    """
    if path.is_file():
        return {"train": path} if path.suffix == ".json" else {}
    found: dict[SplitName, Path] = {}
    for name, patterns in _PATTERNS.items():
        for pattern in patterns:
            matches = sorted(path.glob(pattern))
            if len(matches) > 1:
                raise DatasetError(
                    f"The {name} split must be one file, but {path} has "
                    f"{' and '.join(match.name for match in matches)}.",
                    "Move the others away.",
                )
            if matches:
                found.setdefault(name, matches[0])
    alone = sorted(path.glob("*.json"))
    return found or ({"train": alone[0]} if len(alone) == 1 else {})


def read_coco(files: Mapping[SplitName, Path], report: DataReport) -> Source:
    """Read the annotation file of each split.

    Raises:
        DatasetError: a file is not JSON, or not COCO.
    """
    loaded = {name: _load(path, report) for name, path in files.items()}
    # Files may number the same categories differently: their names are what they share.
    classes = tuple(dict.fromkeys(name for file in loaded.values() for name in _used_names(file)))
    if not classes:
        raise DatasetError(
            f"{next(iter(files.values()))} has no categories.", "A detector needs at least one."
        )
    records = {name: _records(file, classes, report) for name, file in loaded.items()}
    return Source("COCO", classes, records)


def _load(path: Path, report: DataReport) -> _File:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}).", "Export the file again."
        ) from error
    except (RecursionError, ValueError) as error:  # nested without end; a number of 5000 digits
        raise DatasetError(
            f"{path}: JSON that cannot be read ({error}).", "Export the file again."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in _KEYS
    ):
        raise DatasetError(
            f"{path}: a COCO file has lists called {', '.join(_KEYS)}.", "Export as COCO JSON."
        )
    images, annotations, categories = (
        [entry for entry in content[key] if _has(entry, keys, f"{path}: {key}", report)]
        for key, keys in _KEYS.items()
    )
    return _File(path, images, annotations, categories)


def _has(entry: object, keys: Iterable[str], where: str, report: DataReport) -> bool:
    complete = isinstance(entry, dict) and all(
        isinstance(entry.get(key), int | str) if key.endswith("id") else key in entry
        for key in keys
    )
    if not complete:
        report.add(Problem.MALFORMED, f"{where}: {str(entry)[:80]}")
    return complete


def _used_names(file: _File) -> list[str]:
    """Names in the order of ids, without the unused parent that Roboflow adds to its exports."""
    used = {annotation["category_id"] for annotation in file.annotations}
    names = []
    for category in sorted(file.categories, key=lambda each: (str(type(each["id"])), each["id"])):
        others = [each for each in file.categories if each is not category]
        is_parent = any(each.get("supercategory") == category["name"] for each in others)
        if category["id"] in used or not is_parent:
            names.append(str(category["name"]))
    return names


def _records(file: _File, classes: tuple[str, ...], report: DataReport) -> list[Record]:
    labels = {
        category["id"]: classes.index(str(category["name"]))
        for category in file.categories
        if str(category["name"]) in classes
    }
    objects: dict[Any, list[_Object]] = {}
    names: dict[Any, str] = {}
    for image in file.images:
        if image["id"] in names:
            report.add(Problem.DUPLICATE_IMAGE, f"{file.path}: id {image['id']}")
            continue
        names[image["id"]] = str(image["file_name"])
        objects[image["id"]] = []
    for annotation in file.annotations:
        _add_object(annotation, labels, objects, file.path, report)
    folder = _image_folder(file.path, list(names.values()))
    return [_record(folder / names[image], found) for image, found in objects.items()]


def _add_object(
    annotation: dict[str, Any],
    labels: Mapping[Any, int],
    objects: Mapping[Any, list[_Object]],
    path: Path,
    report: DataReport,
) -> None:
    where = f"{path}: annotation {annotation.get('id', '')} of image {annotation['image_id']}"
    box = _xyxy(annotation["bbox"])
    if box is None or annotation["image_id"] not in objects:
        report.add(Problem.MALFORMED, where)
    elif annotation["category_id"] not in labels:
        report.add(Problem.UNKNOWN_CATEGORY, f"{where}: category {annotation['category_id']}")
    else:
        label, crowd = labels[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
        objects[annotation["image_id"]].append(
            _Object(box, label, crowd, _area(annotation.get("area")))
        )


def _area(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else math.nan


def _xyxy(bbox: object) -> list[float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in bbox):
        return None
    x, y, width, height = (float(value) for value in bbox)
    return [x, y, x + width, y + height]


def _record(path: Path, found: list[_Object]) -> Record:
    return Record(
        path,
        np.array([each.box for each in found], np.float64).reshape(-1, 4),
        np.array([each.label for each in found], np.int64),
        np.array([each.crowd for each in found], bool),
        np.array([each.area for each in found], np.float64),
        relative=False,
    )


def _image_folder(path: Path, names: list[str]) -> Path:
    """Return the folder that holds most of the first images; file names are relative to it."""
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    stem = path.stem.removeprefix("instances_")
    word = next((word for word in ("train", "val", "test") if stem.startswith(word)), stem)
    folders = [path.parent, root, root / "images"]
    folders += [base / each for base in (root, root / "images") for each in (stem, word)]
    probes = names[:_PROBED_IMAGES]
    return max(folders, key=lambda folder: sum(is_file(folder / name) for name in probes))
