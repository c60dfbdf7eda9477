"""What a student learns from a trained teacher: its predictions, and its features.

- Predictions: class by class and bin by bin, as `nas.accuracy.distillation` has it.
- Features: channel by channel, the divergence of two distributions over positions (Shu et al., CWD,
  ICCV 2021, equation 4), on P3, P4 and P5, after a 1x1 convolution and a normalisation without
  parameters have given the student's features the teacher's channels.

The labels keep their own loss beside these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.accuracy.assigner import Objects
from nas.accuracy.distillation import distillation
from nas.accuracy.teacher import Teacher
from nas.errors import InputError
from nas.model.detector import Detector, Predictions
from nas.space.architecture import Architecture

__all__ = ["Distillation", "FeatureDistillation", "Lesson", "channel_divergence"]


@dataclass(frozen=True)
class Distillation:
    """What is distilled, and how much it counts.

    Args:
        logits: weight of scores and distances; 0 is off.
        features: weight of features; 0 is off.

    Raises:
        InputError: a weight is negative or not finite.
    """

    logits: float = 0.0
    features: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(one) and one >= 0 for one in (self.logits, self.features)):
            raise InputError(f"Weights of distillation are finite and at least 0, got {self}.")

    @property
    def on(self) -> bool:
        """Whether anything is distilled."""
        return max(self.logits, self.features) > 0


class Lesson(nn.Module):
    """The parts of the loss that come from a teacher: a `nas.accuracy.step.Term`.

    Its parameters, if features are distilled, are trained with the student and then forgotten.

    Args:
        settings: what counts how much.
        teacher: asked on every batch.
        student: the network that learns, or the largest of those that do.

    Raises:
        InputError: predictions are to be distilled, and the two have other bins.
    """

    def __init__(self, settings: Distillation, teacher: Teacher, student: Architecture) -> None:
        super().__init__()
        if settings.logits and teacher.architecture.head.bins != student.head.bins:
            raise InputError(
                "Distances are distilled bin by bin: the teacher has "
                f"{teacher.architecture.head.bins} bins and the student {student.head.bins}.",
                "Choose a teacher with the student's bins, or distil features alone.",
            )
        self._settings, self._teacher = settings, teacher
        self.features: FeatureDistillation | None = None
        if settings.features:
            self.features = FeatureDistillation(
                student.neck_channels, teacher.architecture.neck_channels
            )

    @classmethod
    def of(
        cls, settings: Distillation, teacher: Teacher | None, student: Architecture
    ) -> Self | None:
        """Return the lesson of a recipe, if anything is distilled.

        Raises:
            InputError: there is no teacher, or as above.
        """
        if not settings.on:
            return None
        if teacher is None:
            raise InputError("Distillation needs a teacher.", "Name one in the recipe: teacher.")
        return cls(settings, teacher, student)

    def forward(
        self, images: Tensor, predictions: Predictions, objects: Objects
    ) -> dict[str, Tensor]:
        """Return the weighted parts, in single precision."""
        taught, features = self._teacher(images)
        parts: dict[str, Tensor] = {}
        if self._settings.logits:
            if predictions.one_to_one is None:
                taught = taught._replace(one_to_one=None)
            found = distillation(predictions, taught, objects)
            weight = self._settings.logits
            parts = {
                name.replace("taught", "teacher"): weight * part for name, part in found.items()
            }
        if self.features is not None:
            parts["teacher_features"] = self._settings.features * self.features(features)
        return parts

    @contextmanager
    def watching(self, student: Detector) -> Iterator[None]:
        """Keep the features that a student makes meanwhile."""
        if self.features is None:
            yield
            return
        handle = student.neck.register_forward_hook(self.features.keep)
        try:
            yield
        finally:
            handle.remove()


class FeatureDistillation(nn.Module):
    """The channel-wise divergence of the features that a student made last from a teacher's.

    Args:
        student: channels of P3, P4, P5.
        teacher: likewise.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.align = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(ours, theirs, 1, bias=False),
                    nn.BatchNorm2d(theirs, affine=False, track_running_stats=False),
                )
                for ours, theirs in zip(student, teacher, strict=True)
            )
        self._seen: list[Tensor] = []

    def keep(self, _module: nn.Module, _inputs: object, output: list[Tensor]) -> None:
        """Remember the neck's output: a forward hook."""
        self._seen = output

    def forward(self, taught: list[Tensor]) -> Tensor:
        """Return the mean over the levels, for a teacher's features of equal sizes."""
        pairs = zip(self.align, self._seen, taught, strict=True)
        losses = [channel_divergence(align(ours), theirs) for align, ours, theirs in pairs]
        return torch.stack(losses).mean()


def channel_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the divergence over positions of features (B, C, H, W), a mean over B and C."""
    ours, theirs = (each.float().flatten(2).log_softmax(-1) for each in (student, teacher))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean()
