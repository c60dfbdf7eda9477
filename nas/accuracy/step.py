"""What one step of training computes: the gradients of its subnets, from one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nas.accuracy.assigner import Assignment, Objects
from nas.accuracy.distillation import detached, distillation
from nas.accuracy.loss import DetectionLoss, LossParts
from nas.model.detector import Predictions
from nas.space.architecture import Architecture

__all__ = ["Forward", "Perturb", "Precision", "Step", "Term"]

Precision = Literal["fp32", "bf16", "fp16"]
"""In which convolutions run."""


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}

Forward = Callable[[Architecture, Tensor], Predictions]
"""Runs a subnet on images (B, 3, H, W), float 0..1."""

Perturb = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""Changes images (B, 3, H, W), given what the loss of others would be, up to a positive factor."""

Term = Callable[[Tensor, Predictions, Objects], dict[str, Tensor]]
"""Further parts of a subnet's loss by name, scalars: of its images, predictions and objects."""


@dataclass(frozen=True)
class Step:
    """Computes the gradients of a step.

    Args:
        criterion: of predictions and objects, in single precision.
        device: where the network is.
        precision: in which convolutions run.
        scale: multiplies a loss before its backward pass, for gradients in half precision.
        perturb: what to do with the images of every subnet first.
        terms: further parts of the loss.
        shared_assignment: let the first subnet choose the anchors for all. The others then learn
            from targets that do not move with their own mistakes, and the step assigns once.
    """

    criterion: DetectionLoss
    device: torch.device
    precision: Precision
    perturb: Perturb | None = None
    terms: tuple[Term, ...] = ()
    shared_assignment: bool = False
    scale: Callable[[Tensor], Tensor] = _as_it_is

    def gradients(
        self,
        architectures: tuple[Architecture, ...],
        images: Tensor,
        objects: Objects,
        forward: Forward,
        in_place: float = 0.0,
    ) -> dict[str, float]:
        """Add up the gradients of all subnets of a step; return the mean parts of their losses.

        Args:
            architectures: the largest first: it teaches the others.
            images: (B, 3, H, W), float 0..1.
            objects: of the images.
            forward: runs a subnet.
            in_place: what the others' distillation from the first counts; 0 for none.
        """
        share = 1 / len(architectures)
        sums = dict.fromkeys(LossParts._fields, 0.0)
        teacher: _Found | None = None
        for architecture in architectures:
            found = self._found(partial(forward, architecture), images, objects, teacher)
            losses = found.losses
            if teacher is None:
                teacher = replace(found, predictions=detached(found.predictions))
            elif in_place:
                taught = distillation(found.predictions, teacher.predictions, objects)
                losses = losses | {name: in_place * part for name, part in taught.items()}
            total = torch.stack(list(losses.values())).sum() * share
            self.scale(total).backward()  # type: ignore[no-untyped-call]
            for name, part in losses.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach()) * share
        return sums

    def _found(
        self,
        network: Callable[[Tensor], Predictions],
        images: Tensor,
        objects: Objects,
        teacher: _Found | None,
    ) -> _Found:
        def run(images: Tensor) -> tuple[Predictions, tuple[Assignment, ...], LossParts]:
            with self._reduced():
                predictions = network(images)
            if teacher is not None and self.shared_assignment:
                assigned = teacher.assigned
            else:
                assigned = self.criterion.assign(predictions, objects)
            return predictions, assigned, self.criterion(predictions, objects, assigned)

        if self.perturb is not None:
            images = self.perturb(images, lambda changed: self.scale(run(changed)[-1].total))
        predictions, assigned, parts = run(images)
        losses = dict(parts._asdict())
        for term in self.terms:
            with self._reduced():
                losses |= term(images, predictions, objects)
        return _Found(predictions, assigned, losses)

    def _reduced(self) -> torch.autocast:
        reduced = _REDUCED.get(self.precision)
        return torch.autocast(self.device.type, reduced, enabled=reduced is not None)


@dataclass(frozen=True)
class _Found:
    """What a subnet said, which anchors were chosen by it, and what that costs."""

    predictions: Predictions
    assigned: tuple[Assignment, ...]
    losses: dict[str, Tensor]
