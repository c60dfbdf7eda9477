"""The embedded data set: real handwritten digits, composed into cluttered scenes.

It lets every part of the platform run for real, in minutes, without a download: the 1,797
handwritten digits (8x8) that scikit-learn ships are split into disjoint sets first (1400/200/197,
stratified by class), so that no digit of a test scene was ever seen in training, and then pasted
into scenes of 1 to 6 digits of 26 to 80 px (at 160 px) on coloured gradients under uneven light,
with noise and with distractors: digits whose pixels were shuffled, so that brightness alone gives
nothing away.

A digit is always brighter than what is behind it: with either polarity the task takes hours instead
of minutes to learn on a CPU. Each scene has its own random stream, (seed, split, scene), so that
asking for fewer scenes gives a prefix of the same ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.accuracy.dataset import (
    Annotations,
    DataReport,
    Dataset,
    Split,
    SplitName,
    fingerprint,
)
from nas.errors import DatasetError
from nas.files import write_atomically

__all__ = ["DigitsRecipe", "digits_dataset"]

_COMPOSER = 2
"""Raised whenever scenes of the same recipe change, so that no cache is read by mistake."""

_CLASSES = tuple("0123456789")
_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_DIGITS_FOR_TRAINING, _DIGITS_FOR_VALIDATION = 1400, 200
_REFERENCE_SIZE = 160
_SIDES = (26, 80)  # longer side of a digit in a scene of the reference size
_MOST_DIGITS, _MOST_DISTRACTORS = 6, 3
_LARGEST_OVERLAP = 0.1  # of the smaller of two boxes
_VISIBLE = 0.35  # share of ink from which a pixel belongs to the digit's box
_ATTEMPTS = 24

_Float = NDArray[np.float32]


@dataclass(frozen=True)
class DigitsRecipe:
    """What to compose: scenes per split, their side in pixels, and the seed.

    Raises:
        DatasetError: a split without scenes, or scenes too small for a digit to be read.
    """

    train: int = 1500
    validation: int = 300
    test: int = 300
    size: int = _REFERENCE_SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.validation, self.test) < 1 or not 64 <= self.size <= 1280:
            raise DatasetError(
                f"Digits need at least one scene per split, of 64 to 1280 px, got {self}."
            )

    @classmethod
    def quick(cls) -> DigitsRecipe:
        """Few and small scenes, composed in about a second: to try things out."""
        return cls(train=400, validation=80, test=80, size=96)

    @property
    def digest(self) -> str:
        """Fingerprint of everything that decides the scenes."""
        return fingerprint({"composer": _COMPOSER, **asdict(self)})


@dataclass(frozen=True)
class _Scenes:
    """Composed scenes: images (n, H, W, 3), their objects, and the images' fingerprints."""

    images: NDArray[np.uint8]
    annotations: tuple[Annotations, ...]
    contents: tuple[str, ...]


def digits_dataset(recipe: DigitsRecipe, cache_dir: Path) -> Dataset:
    """Compose the scenes of `recipe`, or map those that an earlier call left in `cache_dir`."""
    folder = cache_dir / f"digits-{recipe.digest}"
    scenes = {name: _load(folder, name) for name in _SPLITS}
    if any(each is None for each in scenes.values()):
        pools = _digit_pools(recipe.seed)
        for index, name in enumerate(_SPLITS):
            _save(folder, name, _compose_split(pools[name], getattr(recipe, name), index, recipe))
        scenes = {name: _load(folder, name) for name in _SPLITS}
    splits = {name: _split(name, each, cache_dir) for name, each in scenes.items() if each}
    report = DataReport()
    report.note(
        f"Embedded digits: {recipe.train}/{recipe.validation}/{recipe.test} scenes of "
        f"{recipe.size} px composed from disjoint real digits, seed {recipe.seed}."
    )
    return Dataset(
        "digits", _CLASSES, splits["train"], splits["validation"], splits["test"], report
    )


def _split(name: SplitName, scenes: _Scenes, cache_dir: Path) -> Split:
    sizes = np.tile(np.array(scenes.images.shape[1:3], np.int64), (len(scenes.images), 1))
    return Split(name, scenes.images, scenes.annotations, sizes, scenes.contents, cache_dir)


def _digit_pools(seed: int) -> dict[SplitName, tuple[_Float, NDArray[np.int64]]]:
    """Return ink (n, 8, 8) in 0..1 and labels (n,) of the digits of each split."""
    # Imported here because it takes seconds, and only the first run on a machine needs it.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    data = load_digits()
    ink = (data.images / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[_stratified_order(labels[shuffled])]
    cuts = np.split(order, np.cumsum([_DIGITS_FOR_TRAINING, _DIGITS_FOR_VALIDATION]))
    return {name: (ink[chosen], labels[chosen]) for name, chosen in zip(_SPLITS, cuts, strict=True)}


def _stratified_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order indices so that every stretch of them has the classes in their overall proportions."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = labels == label
        place[members] = (np.arange(members.sum()) + 0.5) / members.sum()
    return np.argsort(place, kind="stable")


def _compose_split(
    pool: tuple[_Float, NDArray[np.int64]], scenes: int, split: int, recipe: DigitsRecipe
) -> _Scenes:
    images = np.empty((scenes, recipe.size, recipe.size, 3), np.uint8)
    annotations = []
    for index in range(scenes):
        rng = np.random.default_rng([recipe.seed, split, index])
        images[index], objects = _compose_scene(*pool, recipe.size, rng)
        annotations.append(objects)
    contents = tuple(hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images)
    return _Scenes(images, tuple(annotations), contents)


def _compose_scene(
    ink: _Float, labels: NDArray[np.int64], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Annotations]:
    scene = _background(size, rng)
    digits = rng.integers(len(ink), size=rng.integers(1, _MOST_DIGITS + 1))
    distractors = rng.integers(len(ink), size=rng.integers(0, _MOST_DISTRACTORS + 1))
    boxes: list[NDArray[np.int64]] = []
    pasted = [digit for digit in digits if _paste(scene, ink[digit], boxes, rng)]
    objects = Annotations(np.array(boxes), labels[pasted])
    for digit in distractors:
        _paste(scene, rng.permutation(ink[digit].ravel()).reshape(8, 8), boxes, rng)
    return _under_light(scene, rng), objects


def _background(size: int, rng: np.random.Generator) -> _Float:
    """Smooth coloured gradients (size, size, 3), dark enough for a digit to be brighter."""
    cells = int(rng.integers(2, 6))
    tint = rng.uniform(15, 95, 3)
    coarse = (tint + rng.uniform(-35, 35, (cells, cells, 3))).clip(5, 120).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32).copy()


def _paste(
    scene: _Float, ink: _Float, boxes: list[NDArray[np.int64]], rng: np.random.Generator
) -> bool:
    """Draw `ink` where it hides little of what is there and append its box; False: no room."""
    mask = _glyph(ink, len(scene) / _REFERENCE_SIZE, rng)
    height, width = mask.shape
    corner = _free_corner(height, width, len(scene), boxes, rng)
    if corner is None:
        return False
    left, top = corner
    region = scene[top : top + height, left : left + width]
    behind = region.mean(axis=(0, 1))
    colour = (behind + rng.uniform(75, 145) * rng.uniform(0.7, 1, 3)).clip(None, 255)
    region += mask[:, :, None] * (np.maximum(colour, behind).astype(np.float32) - region)
    boxes.append(np.array([left, top, left + width, top + height]))
    return True


def _glyph(ink: _Float, scale: float, rng: np.random.Generator) -> _Float:
    """Enlarge (8, 8) ink smoothly to a mask in 0..1, cut to what can be seen of it."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    # A border of paper lets the strokes at the edge fade out instead of being cut.
    ink = np.pad(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    side = rng.uniform(*_SIDES) * scale
    zoom = side / max(ink.shape[0] - 2, ink.shape[1] - 2)
    height = round(ink.shape[0] * zoom)
    width = max(round(ink.shape[1] * zoom * rng.uniform(0.85, 1.1)), 4)
    smooth = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    mask = ((np.asarray(smooth) - 0.15) / 0.55).clip(0, 1)
    rows = np.flatnonzero((mask > _VISIBLE).any(axis=1))
    columns = np.flatnonzero((mask > _VISIBLE).any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_corner(
    height: int, width: int, size: int, boxes: list[NDArray[np.int64]], rng: np.random.Generator
) -> tuple[int, int] | None:
    lefts = rng.integers(0, size - width + 1, _ATTEMPTS)
    tops = rng.integers(0, size - height + 1, _ATTEMPTS)
    if not boxes:
        return int(lefts[0]), int(tops[0])
    taken = np.array(boxes)
    rights, bottoms = lefts + width, tops + height
    across = np.minimum(rights[:, None], taken[:, 2]) - np.maximum(lefts[:, None], taken[:, 0])
    down = np.minimum(bottoms[:, None], taken[:, 3]) - np.maximum(tops[:, None], taken[:, 1])
    areas = (taken[:, 2] - taken[:, 0]) * (taken[:, 3] - taken[:, 1])
    overlap = across.clip(0) * down.clip(0) / np.minimum(areas, height * width)
    free = np.flatnonzero((overlap <= _LARGEST_OVERLAP).all(axis=1))
    return (int(lefts[free[0]]), int(tops[free[0]])) if len(free) else None


def _under_light(scene: _Float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply an illumination that varies across the scene, and sensor noise."""
    ramp = np.linspace(-0.5, 0.5, len(scene), dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
    scene *= (1 + slope_y * ramp[:, None] + slope_x * ramp)[:, :, None]
    # Grey noise: three independent planes would take as long as all the rest of a scene.
    noise = rng.standard_normal((*scene.shape[:2], 1), np.float32)
    scene += noise * np.float32(rng.uniform(3, 12))
    return scene.clip(0, 255).astype(np.uint8)


def _save(folder: Path, name: SplitName, scenes: _Scenes) -> None:
    def write_objects(file: IO[bytes]) -> None:
        np.savez(
            file,
            boxes=np.concatenate([objects.boxes for objects in scenes.annotations]),
            labels=np.concatenate([objects.labels for objects in scenes.annotations]),
            counts=np.array([len(objects) for objects in scenes.annotations]),
            contents=np.array(scenes.contents),
        )

    write_atomically(folder / f"{name}.npy", lambda file: np.save(file, scenes.images))
    # Written last: its presence says that the images are complete.
    write_atomically(folder / f"{name}.npz", write_objects)


def _load(folder: Path, name: SplitName) -> _Scenes | None:
    try:
        images = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / f"{name}.npz", allow_pickle=False) as objects:
            cuts = np.cumsum(objects["counts"])[:-1]
            boxes, labels = np.split(objects["boxes"], cuts), np.split(objects["labels"], cuts)
            contents = tuple(str(content) for content in objects["contents"])
    except (OSError, ValueError, EOFError, KeyError):
        return None  # absent, or damaged: composed again, bit for bit
    return _Scenes(images, tuple(map(Annotations, boxes, labels)), contents)
