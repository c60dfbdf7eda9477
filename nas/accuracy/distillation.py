"""In-place distillation: the subnets of a step learn from the largest one of the same step.

The largest network's predictions on the same images are the targets of the others, beside the
objects (Yu et al., BigNAS, ECCV 2020, distil classifiers so). For dense detectors:

- classes: each on its own, by the divergence of two coins, because a detector's scores are
  sigmoids; softmax would compare classes that do not compete (Yang et al., BCKD, ICCV 2023);
- boxes: by the divergence of the distributions over bins (Zheng et al., LD, CVPR 2022).

Both count at an anchor as much as the teacher's best class score there: nearly all anchors are
background, and what a teacher says of boxes there is noise. The sum is divided by that of these
weights, but at least by the number of objects: an untrained teacher scores nothing anywhere, and
divided by nearly nothing its noise would drown the objects.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.accuracy.assigner import Objects
from nas.errors import InputError
from nas.model.detector import Predictions

__all__ = ["detached", "distillation"]


def detached(predictions: Predictions) -> Predictions:
    """Return the same predictions, as constants."""
    once = predictions.one_to_one
    return predictions._replace(
        logits=predictions.logits.detach(),
        bins=predictions.bins.detach(),
        one_to_one=None if once is None else detached(once),
    )


def distillation(student: Predictions, teacher: Predictions, objects: Objects) -> dict[str, Tensor]:
    """Return what a student's predictions cost, given a teacher's, in single precision.

    Args:
        student: of B images with A anchors.
        teacher: of the same images and anchors; it takes no gradient.
        objects: of the same images.

    Returns:
        Scalars, `taught_classes` and `taught_boxes`: 0 where the two agree.

    Raises:
        InputError: the two have other classes or bins, or only one finds each object once.
    """
    if student.logits.shape != teacher.logits.shape or student.bins.shape != teacher.bins.shape:
        raise InputError(
            "A network can learn only from one with equal anchors, classes and bins, got bins "
            f"{tuple(student.bins.shape)} and {tuple(teacher.bins.shape)}, logits "
            f"{tuple(student.logits.shape)} and {tuple(teacher.logits.shape)}.",
            "Set `in_place` to 0, or give the heads of the space one number of bins.",
        )
    wanted = teacher.logits.detach().float()
    weights = wanted.sigmoid().amax(-1)
    share = weights / torch.maximum(weights.sum(), objects.present.sum().clamp(1))
    parts = {
        "taught_classes": (_of_classes(student.logits.float(), wanted) * share).sum(),
        "taught_boxes": (
            _of_bins(student.bins.float(), teacher.bins.detach().float()) * share
        ).sum(),
    }
    if student.one_to_one is None or teacher.one_to_one is None:
        return parts
    once = distillation(student.one_to_one, teacher.one_to_one, objects)
    return {name: part + once[name] for name, part in parts.items()}


def _of_classes(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the divergence (B, A) of coins from the wanted ones, summed over the classes."""
    target = wanted.sigmoid()
    surprise = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    least = F.binary_cross_entropy_with_logits(wanted, target, reduction="none")
    return (surprise - least).sum(-1)


def _of_bins(bins: Tensor, wanted: Tensor) -> Tensor:
    """Return the divergence (B, A) of distributions from the wanted ones, mean of four sides."""
    log, target = bins.log_softmax(-1), wanted.log_softmax(-1)
    return (target.exp() * (target - log)).sum(-1).mean(-1)
