"""Reads YOLO data sets: a data.yaml with class names and splits, and one label file per image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas.accuracy.dataset import DataReport, Problem, SplitName
from nas.accuracy.records import Record, Source, read_text
from nas.errors import DatasetError
from nas.space.yaml_file import parse_yaml

__all__ = ["LOOKED_FOR", "find_yolo", "read_yolo"]

LOOKED_FOR = ("data.yaml, or a single .yaml file, with train, val and names (YOLO)",)

_KEYS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def find_yolo(path: Path) -> Path | None:
    """Return the YAML file that describes the data set at `path`, or None."""
    if path.is_file():
        return path if path.suffix in {".yaml", ".yml"} else None
    candidates = sorted((*path.glob("*.yaml"), *path.glob("*.yml")))
    named = [each for each in candidates if each.stem in {"data", "dataset"}]
    chosen = named or candidates
    return chosen[0] if len(chosen) == 1 else None


def read_yolo(path: Path, report: DataReport) -> Source:
    """Read the data set that the YAML file at `path` describes.

    Raises:
        DatasetError: the file is not YAML, says a key twice, names no classes or two alike, or
            names images that do not exist.
    """
    content = parse_yaml(read_text(path), str(path), DatasetError).data
    classes = _class_names(content, path)
    labels = {number: label for label, number in enumerate(sorted(classes))}
    records: dict[SplitName, list[Record]] = {}
    for name, keys in _KEYS.items():
        entry = next((content[key] for key in keys if content.get(key)), None)
        if entry is None:
            continue
        images = _images(entry, str(content.get("path") or ""), path.parent)
        if images is not None:
            records[name] = [_record(image, labels, report) for image in images]
        elif name == "test":
            report.note(f"{path.name} names a test split, {entry}, that does not exist.")
        else:
            raise DatasetError(
                f"{path}: the {name} images, {entry}, do not exist.",
                "Correct path, train or val in it; they are relative to its folder.",
            )
    return Source("YOLO", tuple(classes[number] for number in labels), records)


def _class_names(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Return the name of each class number: from a list, a mapping, or only their number `nc`."""
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        found = _distinct(names, path)
    elif isinstance(names, list):
        found = _distinct(dict(enumerate(names)), path)
    elif names is None and isinstance(count, int):
        found = {key: str(key) for key in range(count)}
    else:
        found = {}
    if not found:
        raise DatasetError(
            f"{path}: names must list the classes or map numbers to them, got {names}.",
            "Write for example names: [cat, dog].",
        )
    if isinstance(count, int) and count != len(found):
        raise DatasetError(
            f"{path}: nc says {count} classes, names has {len(found)}.", "Make them agree."
        )
    return found


def _distinct(names: Mapping[int, object], path: Path) -> dict[int, str]:
    """Return the names as text; each must be one, and stand for one class."""
    found: dict[int, str] = {}
    for number, name in names.items():
        text = "" if name is None or isinstance(name, dict | list) else str(name).strip()
        if not text:
            raise DatasetError(
                f"{path}: every class needs a name, and number {number} has {name!r}.",
                "Name it, in quotation marks if YAML reads something else: 'null'.",
            )
        if text in found.values():
            first = next(key for key, other in found.items() if other == text)
            raise DatasetError(
                f"{path}: classes need names that differ, and {first} and {number} are {text!r}.",
                "Give one of them another name, or the boxes of both the same number.",
            )
        found[number] = text
    return found


def _images(entry: object, base: str, folder: Path) -> list[Path] | None:
    """List the images of a split: a folder, a list in a text file, or several; None: not there."""
    images: list[Path] = []
    for part in entry if isinstance(entry, list) else [entry]:
        location = _existing(str(part), base, folder)
        if location is None:
            return None
        images += _listed(location) if location.is_file() else _in_folder(location)
    return images


def _existing(part: str, base: str, folder: Path) -> Path | None:
    # Roboflow's entries begin with ../ although the folders lie beside the file.
    candidates = (folder / base / part, folder / part, folder / part.removeprefix("../"))
    return next((each for each in candidates if each.exists()), None)


def _in_folder(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.suffix.lower() in _SUFFIXES)


def _listed(file: Path) -> list[Path]:
    lines = (line.strip() for line in read_text(file).splitlines())
    return [file.parent / line for line in lines if line]


def _record(image: Path, labels: Mapping[int, int], report: DataReport) -> Record:
    file = _label_file(image)
    boxes, found = [], []
    lines = file.read_text("utf-8", errors="replace").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        parsed = _parse(line)
        if parsed is None:
            if line.strip():
                report.add(Problem.MALFORMED, f"{file}, line {number}: {line[:80]!r}")
        elif parsed[0] not in labels:
            report.add(Problem.UNKNOWN_CATEGORY, f"{file}, line {number}: class {parsed[0]}")
        else:
            found.append(labels[parsed[0]])
            boxes.append(parsed[1])
    return Record(
        image,
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(found, np.int64),
        np.zeros(len(found), bool),
        np.full(len(found), math.nan),
        relative=True,
    )


def _label_file(image: Path) -> Path:
    """Return the file of labels: in the folder labels beside the last folder called images."""
    parts = list(image.parent.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts, f"{image.stem}.txt")


def _parse(line: str) -> tuple[int, list[float]] | None:
    """Read `class x y width height`, centred, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon."""
    try:
        number, *values = (float(field) for field in line.split())
    except ValueError:
        return None
    if not number.is_integer() or not all(math.isfinite(value) for value in values):
        return None
    if len(values) == 4:
        x, y, width, height = values
        return int(number), [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        return int(number), [min(xs), min(ys), max(xs), max(ys)]
    return None
