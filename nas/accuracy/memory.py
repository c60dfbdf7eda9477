"""Training in less memory, for more time: batches in parts, and stages that are computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nas.accuracy.step import Forward
from nas.model.blocks.backbone import Backbone
from nas.model.detector import Predictions
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

__all__ = ["in_parts", "recomputing"]


def in_parts(forward: Forward, parts: int) -> Forward:
    """Run batches in parts, one in memory at a time, with the gradients of the whole.

    Dividing each part's loss by what it knows itself would weigh its objects by how few they are.
    So the network only predicts in parts: the loss sees all predictions at once, and on the way
    back each part is computed again and adds its gradients before the next one is. That costs one
    more forward pass. Normalisation sees one part, and nothing else differs from the whole batch.

    Args:
        forward: runs a subnet.
        parts: how many; 1 changes nothing.
    """
    if parts == 1:
        return forward

    def run(architecture: Architecture, images: Tensor) -> Predictions:
        return _joined(
            [
                # No layer draws random numbers, so there is no generator to wind back.
                checkpoint(
                    forward, architecture, part, use_reentrant=False, preserve_rng_state=False
                )
                for part in images.chunk(parts)
            ]
        )

    return run


def _joined(parts: list[Predictions]) -> Predictions:
    once = [part.one_to_one for part in parts if part.one_to_one is not None]
    return parts[0]._replace(
        logits=torch.cat([part.logits for part in parts]),
        bins=torch.cat([part.bins for part in parts]),
        one_to_one=_joined(once) if once else None,
    )


@contextmanager
def recomputing(network: Supernet | Backbone, *, recompute: bool) -> Iterator[None]:
    """Let the stages of the backbone be computed again on the way back meanwhile, if so."""
    before = network.recompute
    network.recompute = recompute
    try:
        yield
    finally:
        network.recompute = before
