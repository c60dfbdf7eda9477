"""The state of a training between two steps, in one safetensors file, whole or not at all.

Data order, subnets and augmentation are functions of (seed, step), so no generator has a state to
keep: weights, their average, the optimiser's moments, the multiplier of fp16 losses and a few
counters are everything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nas.accuracy.ema import WeightAverage
from nas.errors import StorageError
from nas.files import write_atomically

__all__ = ["Counters", "load_checkpoint", "save_checkpoint"]

_FORMAT = "1"


@dataclass
class Counters:
    """Where a training stands.

    Attributes:
        iteration: steps done.
        skipped: steps without an update, because loss or gradient were not finite.
        in_a_row: of those, the last ones without a good step between.
        rollbacks: how often training went back to the averaged weights.
        overflows: steps without an update, because fp16 losses were multiplied by too much.
    """

    iteration: int = 0
    skipped: int = 0
    in_a_row: int = 0
    rollbacks: int = 0
    overflows: int = 0

    @property
    def updates(self) -> int:
        """Steps that moved the weights."""
        return self.iteration - self.skipped - self.overflows


def save_checkpoint(
    path: Path,
    identity: str,
    counters: Counters,
    network: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Write the state of a training.

    Args:
        path: the file.
        identity: digest of what is trained on what, by which recipe.
        counters: where training stands.
        network: with the weights as trained.
        average: of its weights.
        optimizer: its moments.
        scaler: of fp16 losses.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {f"network/{name}": tensor for name, tensor in _parameters(network).items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.tensors.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
    metadata = {
        "format": _FORMAT,
        "identity": identity,
        "counters": json.dumps(asdict(counters)),
        "scaler": json.dumps(scaler.state_dict()),
    }
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    write_atomically(path, lambda file: file.write(content))


@torch.no_grad()
def load_checkpoint(
    path: Path,
    identity: str,
    network: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Counters:
    """Restore what `save_checkpoint` wrote, in place, and return the counters.

    Raises:
        StorageError: the file cannot be read, or belongs to another training.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"The checkpoint {path} cannot be read: {error}.", "Delete it to start again."
        ) from error
    if (metadata.get("format"), metadata.get("identity")) != (_FORMAT, identity):
        raise StorageError(
            f"The checkpoint {path} belongs to another training.",
            "Delete it to start again, or train with the recipe and data that it was made with.",
        )
    for name, tensor in _under("network/", tensors).items():
        _parameters(network)[name].copy_(tensor)
    average.load(_under("average/", tensors))
    restored = optimizer.state_dict()
    restored["state"] = _moments(_under("optimizer/", tensors))
    optimizer.load_state_dict(restored)
    if scaler.is_enabled():
        scaler.load_state_dict(json.loads(metadata["scaler"]))
    return Counters(**json.loads(metadata["counters"]))


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    return state
