"""Self-training: images without labels, labelled by a teacher that is sure enough.

A teacher that was trained on the labelled images predicts objects on the others, and what it says
with a score of at least a threshold is trained on as if it were true (Lee, ICML workshop 2013;
Sohn et al., STAC, 2020, section 3.2, for detectors). Images in which it is sure of nothing are left
out. The unlabelled images are those of a folder, or training images whose labels are hidden: then
the labelled part alone is what a gain must be measured against.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nas.accuracy.dataset import Annotations, Split
from nas.accuracy.detections import Detections, detect_batch
from nas.accuracy.images import DECODING_ERRORS, ImageFiles, Images, read_image
from nas.accuracy.teacher import Teacher
from nas.errors import DatasetError, InputError
from nas.model.detector import needs_nms

__all__ = ["PseudoLabels", "examples", "labelled_part"]

_BATCH = 32
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class PseudoLabels:
    """Which images have no labels, and when a teacher is believed.

    Args:
        threshold: least score of a pseudo-label; 0 is off: then nothing is learned from images
            without labels.
        hidden: share of the training images whose labels are hidden from everybody, the same ones
            whatever the seed.
        images: folder of further images without labels; empty if there is none.

    Raises:
        InputError: a threshold or share outside of 0..1, or nothing to label.
    """

    threshold: float = 0.0
    hidden: float = 0.0
    images: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.threshold <= 1 and 0 <= self.hidden < 1):
            raise InputError(f"Pseudo-labels take a threshold and a share in 0..1, got {self}.")
        if self.threshold and not (self.hidden or self.images):
            raise InputError(
                f"Pseudo-labels need images without labels, got {self}.",
                "Give a folder of images, or hide a share of the labels.",
            )

    @property
    def on(self) -> bool:
        """Whether a teacher labels images."""
        return self.threshold > 0


def labelled_part(split: Split, settings: PseudoLabels) -> Split:
    """Return the training images that keep their labels."""
    return split.subset(split.name, _parts(split, settings)[0]) if settings.hidden else split


def examples(split: Split, settings: PseudoLabels, teacher: Teacher | None) -> Split:
    """Return the labelled images, and after them those of which the teacher is sure.

    Args:
        split: the training images, hidden labels included: they are not looked at.
        settings: what is believed.
        teacher: asked at its own input size.

    Raises:
        InputError: there is no teacher to label images.
        DatasetError: the folder holds no image, or the teacher is sure of none.
    """
    labelled = labelled_part(split, settings)
    if not settings.on:
        return labelled
    if teacher is None:
        raise InputError("Pseudo-labels need a teacher.", "Name one in the recipe: teacher.")
    sources = [split.subset(split.name, _parts(split, settings)[1])] if settings.hidden else []
    sources += [_folder(Path(settings.images), split)] if settings.images else []
    joined = labelled
    for source in sources:
        joined = _joined(joined, _believed(source, settings.threshold, teacher))
    if len(joined) == len(labelled):
        raise DatasetError(
            f"The teacher is sure of nothing: no image of {sum(map(len, sources))} has a score of "
            f"at least {settings.threshold}.",
            "Lower the threshold, or train the teacher longer.",
        )
    return joined


def _parts(split: Split, settings: PseudoLabels) -> tuple[list[int], list[int]]:
    """Return the indices of the images with labels, and of those without."""
    order = np.random.default_rng(0).permutation(len(split))
    kept = max(round((1 - settings.hidden) * len(split)), 1)
    return sorted(order[:kept].tolist()), sorted(order[kept:].tolist())


def _believed(split: Split, threshold: float, teacher: Teacher) -> Split:
    """Label the images of a split, and keep those with a label."""
    found = [_sure(each, threshold) for each in _detections(split, teacher)]
    kept = [index for index, objects in enumerate(found) if len(objects)]
    chosen = split.subset(split.name, kept)
    annotations = tuple(found[index] for index in kept)
    return Split(
        chosen.name, chosen.images, annotations, chosen.sizes, chosen.contents, chosen.cache_dir
    )


def _sure(found: Detections, threshold: float) -> Annotations:
    sure = found.scores >= threshold
    return Annotations(found.boxes[sure], found.labels[sure])


def _detections(split: Split, teacher: Teacher) -> list[Detections]:
    """Run the teacher on every image; boxes are in pixels of the original images."""
    size, found = teacher.architecture.input, []
    resized = split.resized(*size)
    deployed = teacher.at(size).deploy()
    nms = needs_nms(teacher.architecture)
    for start in range(0, len(split), _BATCH):
        images = torch.from_numpy(np.ascontiguousarray(resized.images[start : start + _BATCH]))
        with torch.inference_mode():
            boxes, scores = deployed(images.float() / 255)
        found += detect_batch(boxes.numpy(), scores.numpy(), nms=nms)
    return [
        Detections(resized.to_original(index, one.boxes), one.scores, one.labels)
        for index, one in enumerate(found)
    ]


@dataclass(frozen=True)
class _Chain:
    """The images of two sources, one after the other."""

    first: Images
    second: Images

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int, /) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        count = len(self.first)
        return self.first[index] if index < count else self.second[index - count]


def _joined(first: Split, second: Split) -> Split:
    return Split(
        first.name,
        _Chain(first.images, second.images),
        first.annotations + second.annotations,
        np.concatenate([first.sizes, second.sizes]),
        first.contents + second.contents,
        first.cache_dir,
    )


def _folder(folder: Path, split: Split) -> Split:
    """Read the images of a folder that can be read, without objects."""
    try:
        found = sorted(one for one in folder.rglob("*") if one.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise DatasetError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    paths, sizes, contents = [], [], []
    for path in found:
        try:
            image = read_image(path)
        except (DatasetError, *DECODING_ERRORS):
            continue
        paths.append(path)
        sizes.append(image.shape[:2])
        contents.append(hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    if not paths:
        raise DatasetError(
            f"The folder {folder} holds no readable image.",
            f"Give a folder of images that end in {', '.join(_SUFFIXES)}.",
        )
    nothing = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    return Split(
        split.name,
        ImageFiles(tuple(paths)),
        (nothing,) * len(paths),
        np.array(sizes, np.int64),
        tuple(contents),
        split.cache_dir,
    )
