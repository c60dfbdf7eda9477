"""A trained network that others learn from, in whatever file it was kept.

It may be the folder of a delivered bundle, a detector that `save_detector` wrote, or a supernet, of
which the largest network teaches. A teacher follows its students' input size: the network is built
for it again, and its statistics are collected anew on training images of that size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nas.accuracy.batches import batches
from nas.accuracy.dataset import Split
from nas.errors import ArchitectureError, InputError, StorageError
from nas.files import write_atomically
from nas.model.detector import Detector, Predictions, profile
from nas.model.supernet import Supernet, recalibrate
from nas.space.architecture import Architecture
from nas.space.record import Size

__all__ = ["CALIBRATION_BATCHES", "Teacher", "calibration_images", "save_detector"]

CALIBRATION_BATCHES = 16
"""Of 32 images: from the 17th on, statistics gain nothing (docs/LOG.md)."""

_FORMAT = "detector 1"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network at any input size.

    Args:
        architecture: of the network, at the size that it was trained for.
        digest: of its weights; the bytes of a file differ from one writing to the next.
        build: the network for an input size, with its weights; its statistics hold if the size is
            its own and `calibrated`.
        images: training images, to collect statistics on.
        calibrated: whether statistics were kept with the weights.
    """

    architecture: Architecture
    digest: str
    build: Callable[[Architecture], Detector]
    images: Split
    calibrated: bool
    _built: dict[Size, Detector] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path, images: Split, classes: int) -> Teacher:
        """Read a teacher.

        Args:
            path: folder of a bundle, or a file of weights.
            images: on what statistics are collected, where the input size is another.
            classes: of the data set.

        Raises:
            StorageError: the file cannot be read, or holds no network.
            InputError: the network knows other classes.
        """
        weights = path / "weights.safetensors" if path.is_dir() else path
        try:
            with safe_open(weights, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"The teacher {path} cannot be read: {error}.",
                "Give the folder of a bundle, or a file of a trained detector or supernet.",
            ) from error
        digest = _digest(tensors)
        if "architectures" in metadata:
            supernet = Supernet.load(weights)
            largest = max(supernet.architectures, key=lambda one: profile(one).macs)
            found = cls(largest, digest, supernet.extract, images, calibrated=False)
        else:
            architecture = _architecture(path, metadata)
            build = _Build(architecture, tensors)
            found = cls(architecture, digest, build, images, calibrated=True)
        if found.architecture.classes != classes:
            raise InputError(
                f"A teacher knows the classes of the data set: {path} has "
                f"{found.architecture.classes}, and the data set {classes}.",
                "Train a teacher on this data set.",
            )
        return found

    def at(self, size: Size) -> Detector:
        """Return the network for an input size (height, width), in evaluation mode, frozen.

        Raises:
            ArchitectureError: it cannot have that size.
        """
        if size not in self._built:
            own = size == self.architecture.input
            detector = self.build(self.architecture if own else self.architecture.at_input(size))
            if not (own and self.calibrated):
                recalibrate(detector, calibration_images(self.images, size))
            self._built[size] = detector.eval().requires_grad_(requires_grad=False)
        return self._built[size]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Predictions, list[Tensor]]:
        """Return predictions on images (B, 3, H, W) in 0..1, and the neck's P3, P4, P5."""
        height, width = images.shape[2:]
        detector = self.at((height, width)).to(images.device)
        kept: list[list[Tensor]] = []
        handle = detector.neck.register_forward_hook(lambda _, __, output: kept.append(output))
        try:
            predictions: Predictions = detector(images)
        finally:
            handle.remove()
        return predictions, kept[0]


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class _Build:
    """Builds a network for an input size from stored weights."""

    architecture: Architecture
    tensors: dict[str, Tensor]

    def __call__(self, architecture: Architecture) -> Detector:
        detector = Detector(architecture)
        try:
            detector.load_state_dict(self.tensors)
        except RuntimeError as error:
            raise ArchitectureError(
                f"The weights of the teacher do not fit {architecture.digest}, its network for "
                f"input {architecture.input}: {str(error).splitlines()[-1].strip()}",
                "Give a teacher that was trained at the input size of the student.",
            ) from error
        return detector


def save_detector(detector: Detector, path: Path) -> None:
    """Write a trained detector to one safetensors file, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    architecture = json.dumps(detector.architecture.canonical(), sort_keys=True)
    content = save(tensors, {"format": _FORMAT, "network": architecture})
    write_atomically(path, lambda file: file.write(content))


def calibration_images(split: Split, size: Size) -> Iterator[Tensor]:
    """Yield images (32, 3, H, W) in 0..1, without augmentation."""
    stream = batches(split.resized(*size), 32, seed=0)
    for _ in range(CALIBRATION_BATCHES):
        yield next(stream)[0].float() / 255


def _architecture(path: Path, metadata: dict[str, str]) -> Architecture:
    if path.is_dir():
        return Architecture.load(path / "architecture.yaml")
    if metadata.get("format") != _FORMAT:
        raise StorageError(
            f"{path} holds no network, only tensors.",
            "Give the folder of a bundle, or a file of a trained detector or supernet.",
        )
    return Architecture.parse(json.loads(metadata["network"]))
