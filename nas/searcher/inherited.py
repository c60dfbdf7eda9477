"""Detectors with the weights of a supernet and batch-norm statistics of their own, kept in a file.

The statistics of a candidate depend on the shared weights, its architecture and the images that
they are taken on, not on precision or runtime. Whoever wants the candidate again, in another
precision, for another device or to deliver it, reads them instead of running the images again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nas.accuracy.batches import batches
from nas.accuracy.dataset import Split
from nas.files import write_atomically
from nas.model.detector import Detector
from nas.model.supernet import Supernet, recalibrate, taking_statistics
from nas.space.architecture import Architecture, digest_of

__all__ = ["MOST_EARLY_BYTES", "InheritedDetectors", "recalibration_images"]

# 8 of them rank as well as 32 within error, in a quarter of the time (docs/LOG.md).
RECALIBRATION_BATCHES = 8
RECALIBRATION_BATCH_SIZE = 32

MOST_EARLY_BYTES = 2**28
"""Of features that are kept: stem and P2 take a third of the time, and a space has few of them."""


@dataclass(frozen=True, eq=False)
class _Early:
    """What the stem and P2 of a candidate make of the images, and the statistics that they took.

    Attributes:
        features: (B, C, H/4, W/4) of each batch.
        statistics: by name.
        size: of the features in bytes.
    """

    features: list[Tensor]
    statistics: dict[str, Tensor]
    size: int


class InheritedDetectors:
    """Extracts candidates from a supernet, with statistics that are computed once.

    Args:
        supernet: trained.
        weights_digest: which weights these are.
        split: training images, which the statistics are taken on.
        folder: where statistics are kept, a file for each candidate; None keeps none.
    """

    def __init__(
        self, supernet: Supernet, weights_digest: str, split: Split, folder: Path | None = None
    ) -> None:
        self._supernet = supernet
        self._split = split
        self._folder = folder
        self._early: OrderedDict[Hashable, _Early] = OrderedDict()
        self._digest = digest_of(
            [weights_digest, split.digest, RECALIBRATION_BATCHES, RECALIBRATION_BATCH_SIZE]
        )

    def __call__(self, architecture: Architecture) -> Detector:
        """Extract a candidate, with the running statistics of its own weights.

        Raises:
            ArchitectureError: it lies outside the supernet.
            StorageError: the statistics cannot be written.
        """
        detector = self._supernet.extract(architecture)
        path = self.path(architecture)
        if path is not None and _restored(detector, path):
            return detector
        # Channels last saves convolutions on CPUs a quarter of their time.
        _laid_out(detector, torch.channels_last)
        self._recalibrate(detector)
        _laid_out(detector, torch.contiguous_format)
        if path is not None:
            content = save({name: one.contiguous() for name, one in _statistics(detector).items()})
            write_atomically(path, lambda file: file.write(content))
        return detector

    def _recalibrate(self, detector: Detector) -> None:
        """As `recalibrate`, but what several candidates begin with is computed once."""
        architecture = detector.architecture
        if _early_bytes(architecture) > MOST_EARLY_BYTES:
            recalibrate(detector, recalibration_images(self._split, architecture))
            return
        early = nn.ModuleList([detector.backbone.stem, detector.backbone.P2])
        known = self._known_early(detector, early)
        _fill(early, known.statistics)
        with taking_statistics(detector, early):
            for features in known.features:
                detector.from_early(features)

    def _known_early(self, detector: Detector, early: nn.Module) -> _Early:
        """Return what the stem and P2 make of the images, from an equal candidate if there was."""
        what = detector.architecture
        key = what.input, what.activation, what.stem, what.backbone.P2
        known = self._early.pop(key, None)
        if known is None:
            size = _early_bytes(what)
            while self._early and self._kept_bytes + size > MOST_EARLY_BYTES:
                self._early.popitem(last=False)  # before anything takes its place
            with taking_statistics(early):
                images = recalibration_images(self._split, what)
                features = [detector.backbone.early(batch) for batch in images]
            statistics = {name: one.clone() for name, one in _statistics(early).items()}
            known = _Early(features, statistics, size)
        self._early[key] = known  # as the latest
        return known

    @property
    def _kept_bytes(self) -> int:
        return sum(one.size for one in self._early.values())

    def path(self, architecture: Architecture) -> Path | None:
        """Where the statistics of a candidate are kept, or would be."""
        if self._folder is None:
            return None
        return self._folder / self._digest / f"{architecture.digest}.safetensors"


def recalibration_images(split: Split, architecture: Architecture) -> Iterator[Tensor]:
    """Yield the training images that batch-norm statistics are taken on, float (B, 3, H, W) 0..1.

    The first `RECALIBRATION_BATCHES` batches of a fixed order: the same for every candidate.
    """
    stream = batches(split.resized(*architecture.input), RECALIBRATION_BATCH_SIZE, seed=0)
    for _ in range(RECALIBRATION_BATCHES):
        images, _ = next(stream)
        yield images.to(memory_format=torch.channels_last).float() / 255


def _statistics(detector: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": buffer
        for path, module in detector.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name, buffer in module.named_buffers(recurse=False)
    }


def _early_bytes(architecture: Architecture) -> int:
    height, width = architecture.feature_size("P2")
    images = RECALIBRATION_BATCHES * RECALIBRATION_BATCH_SIZE
    return images * architecture.backbone.P2.channels * height * width * 4


@torch.no_grad()
def _fill(module: nn.Module, statistics: dict[str, Tensor]) -> None:
    for name, buffer in _statistics(module).items():
        buffer.copy_(statistics[name])


def _restored(detector: nn.Module, path: Path) -> bool:
    """Fill in statistics from a file; False if it is missing, damaged, or of another network."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError):
        return False
    wanted = _statistics(detector)
    if {name: one.shape for name, one in stored.items()} != {
        name: one.shape for name, one in wanted.items()
    }:
        return False
    _fill(detector, stored)
    return True


def _laid_out(detector: nn.Module, layout: torch.memory_format) -> None:
    detector.to(memory_format=layout)  # type: ignore[call-overload]  # torch forgot this one
