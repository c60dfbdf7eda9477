"""A small real data set on disk: coloured shapes in photographs' sizes, as COCO or as YOLO.

The tests of the readers damage it on purpose; the end-to-end tests search on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle")
Format = Literal["coco", "roboflow", "coco-file", "yolo"]
Scene = tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]]]

_COLOURS = ((225, 70, 60), (70, 200, 90), (80, 110, 235))
_FOLDERS = {
    "coco": {"train": "train2017", "val": "val2017", "test": "test2017"},
    "roboflow": {"train": "train", "val": "valid", "test": "test"},
    "coco-file": {"train": "images"},
    "yolo": {"train": "images/train", "val": "images/val", "test": "images/test"},
}


def make_shapes(
    root: Path,
    format: Format = "coco",  # noqa: A002 - the word that users say
    *,
    train: int = 12,
    val: int = 6,
    test: int = 6,
    seed: int = 0,
) -> Path:
    """Write the data set under `root` and return the path to give to `load_dataset`.

    A split of 0 images is left out. Images are PNG files of 96 to 200 px a side with 1 to 3 shapes
    of 24 to 60 px that do not overlap; boxes are exact.
    """
    rng = np.random.default_rng(seed)
    counts = {"train": train, "val": val, "test": test}
    for split, folder in _FOLDERS[format].items():
        if counts[split]:
            scenes = [_scene(rng) for _ in range(counts[split])]
            _save_images(root / folder, split, scenes)
            _save_labels(root, format, split, scenes)
    if format == "yolo":
        _save_yaml(root, [split for split in counts if counts[split]])
    return root / "shapes.json" if format == "coco-file" else root


def _scene(rng: np.random.Generator) -> Scene:
    width, height = (int(side) for side in rng.integers(96, 201, 2))
    shade = tuple(int(value) for value in rng.integers(20, 70, 3))
    image = Image.new("RGB", (width, height), shade)
    draw = ImageDraw.Draw(image)
    objects: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(rng.integers(1, 4)):
        side = int(rng.integers(24, 61))
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        box = (left, top, left + side, top + side)
        if not any(_touch(box, other) for _, other in objects):
            label = int(rng.integers(len(CLASSES)))
            _draw(draw, label, box)
            objects.append((label, box))
    noise = rng.normal(0, 6, (height, width, 3))
    noisy = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy), objects


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _draw(draw: ImageDraw.ImageDraw, label: int, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    colour = _COLOURS[label]
    if label == 0:
        draw.ellipse((left, top, right, bottom), colour)
    elif label == 1:
        draw.rectangle((left, top, right, bottom), colour)
    else:
        draw.polygon([((left + right) / 2, top), (left, bottom), (right, bottom)], colour)


def _save_images(folder: Path, split: str, scenes: list[Scene]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, _) in enumerate(scenes):
        image.save(folder / f"{split}_{number}.png")


def _save_labels(root: Path, format: Format, split: str, scenes: list[Scene]) -> None:  # noqa: A002
    if format == "yolo":
        _save_yolo(root / "labels" / split, split, scenes)
        return
    names = {
        "coco": f"annotations/instances_{split}2017.json",
        "roboflow": f"{_FOLDERS[format][split]}/_annotations.coco.json",
        "coco-file": "shapes.json",
    }
    path = root / names[format]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_coco(split, scenes, roboflow=format == "roboflow"), indent=1))


def _coco(split: str, scenes: list[Scene], *, roboflow: bool) -> dict[str, object]:
    # Ids with gaps, as in COCO itself: labels must not be ids.
    categories = [{"id": 10 * label + 3, "name": name} for label, name in enumerate(CLASSES)]
    if roboflow:
        categories = [{"id": 0, "name": "shapes", "supercategory": "none"}] + [
            {**category, "supercategory": "shapes"} for category in categories
        ]
    boxes = [
        (image, label, box) for image, (_, objects) in enumerate(scenes) for label, box in objects
    ]
    return {
        "images": [
            {
                "id": 100 + number,
                "file_name": f"{split}_{number}.png",
                "height": image.height,
                "width": image.width,
            }
            for number, (image, _) in enumerate(scenes)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": 100 + image,
                "category_id": 10 * label + 3,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            for number, (image, label, (left, top, right, bottom)) in enumerate(boxes, start=1)
        ],
        "categories": categories,
    }


def _save_yolo(folder: Path, split: str, scenes: list[Scene]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, objects) in enumerate(scenes):
        lines = []
        for label, (left, top, right, bottom) in objects:
            centre = (left + right) / 2 / image.width, (top + bottom) / 2 / image.height
            size = (right - left) / image.width, (bottom - top) / image.height
            lines.append(" ".join([str(label), *(f"{value:.8f}" for value in (*centre, *size))]))
        (folder / f"{split}_{number}.txt").write_text("\n".join(lines) + "\n")


def _save_yaml(root: Path, splits: list[str]) -> None:
    content: dict[str, object] = {"path": ".", "names": dict(enumerate(CLASSES))}
    content |= {split: f"images/{split}" for split in splits}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
