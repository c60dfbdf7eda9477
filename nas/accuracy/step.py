"""What one step of training computes: the gradients of its subnets, from one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.accuracy.assigner import Objects
from nas.accuracy.loss import DetectionLoss, LossParts
from nas.model.detector import Predictions
from nas.space.architecture import Architecture

__all__ = ["Forward", "Perturb", "Step", "Term"]

Forward = Callable[[Architecture, Tensor], Predictions]
"""Runs a subnet on images (B, 3, H, W), float 0..1."""

Perturb = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""Changes images (B, 3, H, W), given what the loss of others would be."""

Term = Callable[[Tensor, Predictions, Objects], dict[str, Tensor]]
"""Further parts of a subnet's loss by name, scalars: of its images, predictions and objects."""


@dataclass(frozen=True)
class Step:
    """Computes the gradients of a step.

    Args:
        criterion: of predictions and objects, in single precision.
        device: where the network is.
        bf16: run convolutions in bfloat16.
        perturb: what to do with the images of every subnet first.
        terms: further parts of the loss.
    """

    criterion: DetectionLoss
    device: torch.device
    bf16: bool
    perturb: Perturb | None = None
    terms: tuple[Term, ...] = ()

    def gradients(
        self,
        architectures: tuple[Architecture, ...],
        images: Tensor,
        objects: Objects,
        forward: Forward,
    ) -> dict[str, float]:
        """Add up the gradients of all subnets of a step; return the mean parts of their losses."""
        share = 1 / len(architectures)
        sums = dict.fromkeys(LossParts._fields, 0.0)
        for architecture in architectures:
            parts = self._loss(architecture, images, objects, forward)
            total = torch.stack(list(parts.values())).sum() * share
            total.backward()  # type: ignore[no-untyped-call]
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach()) * share
        return sums

    def _loss(
        self, architecture: Architecture, images: Tensor, objects: Objects, forward: Forward
    ) -> dict[str, Tensor]:
        def hard(images: Tensor) -> tuple[Predictions, LossParts]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                predictions = forward(architecture, images)
            return predictions, self.criterion(predictions, objects)

        if self.perturb is not None:
            images = self.perturb(images, lambda changed: hard(changed)[1].total)
        predictions, parts = hard(images)
        losses = dict(parts._asdict())
        for term in self.terms:
            losses |= term(images, predictions, objects)
        return losses
