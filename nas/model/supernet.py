"""A supernet: one table of weights, of which every network of a space uses a part.

No layer here is elastic. A subnet is the plain `Detector` of its architecture, run on slices of the
table, so what is activated in the supernet and what is extracted from it agree by construction.

For every parameter of a subnet the table has a tensor of the same name. Its slice follows the
layouts of both: for each part of the subnet's concatenation, the first channels of the table's part
at the same place. A smaller depth has fewer parts, a smaller width has narrower ones. Types of
blocks and convolutions are part of parameter names, so they have weights of their own; sparse and
dense attention at one level share theirs.

Running statistics are not shared: a subnet has those of its own, filled by `recalibrate`.

A supernet may be split by input size: then subnets share weights with those of their size alone
(few-shot NAS, Zhao et al., ICML 2021, which splits by operations). Weights that serve several sizes
suit the middle ones best, and the order of subnets of different sizes suffers.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from nas.errors import ArchitectureError, InputError, StorageError
from nas.model.blocks.layers import Layout, Shareable, reusing
from nas.model.detector import Detector, Predictions
from nas.space.architecture import Architecture, digest_of
from nas.space.record import Size

__all__ = ["Supernet", "recalibrate", "taking_statistics"]

_FORMAT = "1"
_PLANS = 256  # kept at most; one holds no weights, and shares its modules with the others
_PARTS = 2048

_Parts = dict[Hashable, nn.Module]

_Index = int | Tensor | None
"""What a slice takes of one dimension: all, the first n, or those listed."""


@dataclass(frozen=True)
class _Entry:
    """A shared tensor's shape: layouts of its leading dimensions, and the sizes of all."""

    layouts: tuple[Layout, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """How to run one subnet: its modules without weights, and the slices that it needs."""

    skeleton: Detector
    slices: dict[str, tuple[_Index, ...]]


class Supernet(nn.Module):
    """Shared weights for all architectures whose tensors fit into those of the given ones.

    Args:
        architectures: they cover the space: each tensor is as wide, in each part, as the widest
            that any of them has.
        seed: of the initial weights, drawn as a `Detector` draws its own.
        sizes: input sizes that have weights of their own, equal at first; none: all share theirs.

    Raises:
        ArchitectureError: no architecture, or two that use a name for different things.
    """

    def __init__(
        self, architectures: Sequence[Architecture], seed: int = 0, sizes: Sequence[Size] = ()
    ) -> None:
        super().__init__()
        if not architectures:
            raise ArchitectureError("A supernet covers at least one architecture, got none.")
        self.architectures = tuple(dict.fromkeys(architectures))
        self._entries, tensors = _table(self.architectures, seed)
        self.sizes = tuple(sizes)
        self.shared = nn.ParameterDict(
            {
                _key(name, size): nn.Parameter(tensor.detach().clone()) if size else tensor
                for size in self.sizes or (None,)
                for name, tensor in tensors.items()
            }
        )
        self._plans: OrderedDict[tuple[Architecture, torch.device, bool], _Plan] = OrderedDict()
        self._parts: dict[tuple[torch.device, bool], _Parts] = {}
        self.recompute = False  # of the backbone of whatever runs; see `Backbone`

    def __getstate__(self) -> dict[str, Any]:
        """Leave what can be made again out of copies."""
        return {**self.__dict__, "_plans": OrderedDict(), "_parts": {}}

    @property
    def digest(self) -> str:
        """Digest of the architectures that it was built from."""
        described = [architecture.canonical() for architecture in self.architectures]
        return digest_of([described, self.sizes] if self.sizes else described)

    @torch.no_grad()
    def split(self) -> Self:
        """Return a supernet with a copy of these weights for each input size that it covers."""
        sizes = sorted({architecture.input for architecture in self.architectures})
        parted = type(self)(self.architectures, sizes=sizes).to(self._device())
        for size in sizes:
            for name in self._entries:
                parted.shared[_key(name, size)].copy_(self.shared[_key(name)])
        return parted.train(self.training)

    def forward(self, images: Tensor, architecture: Architecture) -> Predictions:
        """Run a subnet on images (B, 3, H, W); gradients reach the shared weights.

        In training mode, normalisation uses the batch and keeps no running statistics; in
        evaluation mode it uses those of a fresh detector (mean 0, variance 1).

        Raises:
            ArchitectureError: the architecture does not fit.
        """
        return self.activate(architecture)(images)

    def activate(self, architecture: Architecture) -> Callable[[Tensor], Predictions]:
        """Return the subnet as a function of images; it follows the weights, device and mode.

        Raises:
            ArchitectureError: the architecture does not fit; the message names the first tensor.
        """
        self._plan(architecture)

        def run(images: Tensor) -> Predictions:
            plan = self._plan(architecture)  # kept, unless device or mode changed
            plan.skeleton.backbone.recompute = self.recompute
            weights = self._weights(architecture, plan)
            output: Predictions = functional_call(
                plan.skeleton, weights, (images,), tie_weights=False
            )
            return output

        return run

    @torch.no_grad()
    def extract(self, architecture: Architecture) -> Detector:
        """Return an independent detector with a copy of the weights and fresh statistics.

        Raises:
            ArchitectureError: the architecture does not fit; the message names the first tensor.
        """
        plan = self._plan(architecture)
        detector = Detector(architecture).to(self._device())
        weights = self._weights(architecture, plan)
        for name, parameter in detector.named_parameters():
            parameter.copy_(weights[name])
        return detector.train(self.training)

    def save(self, path: Path) -> None:
        """Write weights and architectures to one safetensors file, whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        described = [architecture.canonical() for architecture in self.architectures]
        metadata = {
            "format": _FORMAT,
            "architectures": json.dumps(described, sort_keys=True),
            "digest": digest_of(described),
            "sizes": json.dumps(self.sizes),
        }
        tensors = {
            key.replace("/", "."): tensor.detach().cpu().contiguous()
            for key, tensor in self.shared.items()
        }
        partial = path.with_name(path.name + ".partial")
        try:
            save_file(tensors, partial, metadata)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"The supernet cannot be written to {path}: {error}.") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            StorageError: the file cannot be read, or is not a supernet of this version.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                sizes = [(h, w) for h, w in json.loads(metadata.get("sizes", "[]"))]
                supernet = cls(_described(path, metadata), sizes=sizes)
                supernet._fill({name: file.get_tensor(name) for name in list(file.keys())}, path)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"The supernet {path} cannot be read: {error}.") from error
        return supernet

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor], path: Path) -> None:
        found = {_key(name): tensor.shape for name, tensor in tensors.items()}
        if found != {key: tensor.shape for key, tensor in self.shared.items()}:
            raise StorageError(
                f"The weights in {path} are not those that its architectures need.",
                "Train the supernet again with this version.",
            )
        for name, tensor in tensors.items():
            self.shared[_key(name)].copy_(tensor)

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _weights(self, architecture: Architecture, plan: _Plan) -> dict[str, Tensor]:
        size = architecture.input if self.sizes else None
        return {
            name: _cut(self.shared[_key(name, size)], plan.slices[name]) for name in plan.slices
        }

    def _plan(self, architecture: Architecture) -> _Plan:
        if self.sizes and architecture.input not in self.sizes:
            raise ArchitectureError(
                f"The supernet has weights for inputs of {self.sizes}, got {architecture.input}.",
                "Choose an architecture of the space that the supernet was built for.",
            )
        device, training = self._device(), self.training
        key = (architecture, device, training)
        if key not in self._plans:
            # One store for each mode: modules that subnets share must not be switched by one.
            parts = self._parts.setdefault((device, training), {})
            if len(parts) > _PARTS:
                parts.clear()
            skeleton = _skeleton(architecture, parts)
            entries = _entries(skeleton)
            slices = {name: self._indices(name, entry, device) for name, entry in entries}
            skeleton = _with_buffers(skeleton, device)
            self._plans[key] = _Plan(skeleton if training else skeleton.eval(), slices)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _indices(self, name: str, wanted: _Entry, device: torch.device) -> tuple[_Index, ...]:
        shared = self._entries.get(name)
        if shared is None or not _fits(wanted, shared):
            offered = "nothing of that name" if shared is None else f"layouts {shared.layouts}"
            raise ArchitectureError(
                f"The architecture lies outside the supernet: {name} has layouts "
                f"{wanted.layouts}, and the supernet has {offered}.",
                "Choose an architecture of the space that the supernet was built for.",
            )
        pairs = zip(wanted.layouts, shared.layouts, strict=True)
        return tuple(_index(sub, whole, device) for sub, whole in pairs)


def recalibrate(detector: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace running statistics by the mean of the batches' statistics, in one pass.

    Gradients, momentum and the training mode stay as they were.

    Args:
        detector: any module with batch normalisation.
        batches: its inputs, on its device.

    Raises:
        InputError: there is no batch.
    """
    with taking_statistics(detector):
        used = sum(1 for batch in batches if detector(batch) is not None)
    if not used:
        raise InputError("Recalibration needs at least one batch, got none.")


@contextmanager
def taking_statistics(detector: nn.Module, *without: nn.Module) -> Iterator[None]:
    """Forget running statistics, and let every forward pass meanwhile add those of its batch.

    They are the mean over the passes; all else is in evaluation mode. Nothing has gradients, and
    momentum and the training mode are afterwards as they were.

    Args:
        detector: any module with batch normalisation.
        *without: parts of it that keep their statistics.
    """
    kept = {module for part in without for module in part.modules()}
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d) and m not in kept]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then keeps the cumulative mean
        norm.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training


def _key(name: str, size: Size | None = None) -> str:
    key = name.replace(".", "/")  # parameters of a ParameterDict cannot have dots
    return key if size is None else f"{size[0]}x{size[1]}/{key}"


def _cut(tensor: Tensor, indices: tuple[_Index, ...]) -> Tensor:
    for dimension, index in enumerate(indices):
        if isinstance(index, Tensor):
            tensor = tensor.index_select(dimension, index)
        elif index is not None:
            tensor = tensor.narrow(dimension, 0, index)
    return tensor


def _skeleton(architecture: Architecture, parts: _Parts) -> Detector:
    with torch.device("meta"), reusing(parts):
        return Detector(architecture)


def _entries(detector: Detector) -> Iterator[tuple[str, _Entry]]:
    for path, module in detector.named_modules():
        if isinstance(module, Shareable):
            for name, layouts in module.layouts().items():
                yield f"{path}.{name}", _Entry(layouts, tuple(getattr(module, name).shape))
            continue
        for name, _ in module.named_parameters(path, recurse=False):
            raise ArchitectureError(
                f"The parameter {name} has no layout, so it cannot be shared.",
                "Build blocks from the layers of nas.model.blocks.layers.",
            )


def _table(
    architectures: Sequence[Architecture], seed: int
) -> tuple[dict[str, _Entry], dict[str, nn.Parameter]]:
    """Merge the layers of all architectures by name, then make them for real."""
    layers: dict[str, Shareable] = {}
    parts: _Parts = {}
    for architecture in architectures:
        skeleton = _skeleton(architecture, parts)
        list(_entries(skeleton))  # raises where a parameter has no layout
        for path, layer in skeleton.named_modules():
            if isinstance(layer, Shareable):
                layers[path] = _merged(path, layers[path], layer) if path in layers else layer
    entries: dict[str, _Entry] = {}
    tensors: dict[str, nn.Parameter] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for path, layer in layers.items():
            real = layer.widened(layer)
            layouts = real.layouts()
            for name, tensor in real.named_parameters():  # type: ignore[attr-defined]
                entries[f"{path}.{name}"] = _Entry(layouts[name], tuple(tensor.shape))
                tensors[f"{path}.{name}"] = tensor
    return entries, tensors


def _merged(path: str, first: Shareable, second: Shareable) -> Shareable:
    try:
        with torch.device("meta"):
            return first.widened(second)
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error.message}", error.remedy) from error


def _with_buffers(skeleton: Detector, device: torch.device) -> Detector:
    """Give a skeleton real buffers; its normalisation never writes them."""
    for module in skeleton.modules():
        if isinstance(module, nn.BatchNorm2d):
            if not module.track_running_stats:
                continue  # of a part that another skeleton has, too
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device=device))
            module.reset_running_stats()
            module.track_running_stats = False
        else:
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
    return skeleton


def _fits(wanted: _Entry, shared: _Entry) -> bool:
    leading = len(wanted.layouts)
    return (
        leading == len(shared.layouts)
        and wanted.shape[leading:] == shared.shape[leading:]
        and all(
            len(sub) <= len(whole) and all(a <= b for a, b in zip(sub, whole, strict=False))
            for sub, whole in zip(wanted.layouts, shared.layouts, strict=True)
        )
    )


@lru_cache(maxsize=65_536)
def _index(wanted: Layout, shared: Layout, device: torch.device) -> _Index:
    """Find the channels: of each wanted part, the first ones of the shared part at its place."""
    if wanted == shared:
        return None
    starts = [sum(shared[:place]) for place in range(len(wanted))]
    parts = [
        torch.arange(start, start + width) for start, width in zip(starts, wanted, strict=True)
    ]
    channels = torch.cat(parts)
    if int(channels[-1]) == len(channels) - 1:
        return len(channels)
    return channels.to(device)


def _described(path: Path, metadata: dict[str, str]) -> list[Architecture]:
    if metadata.get("format") != _FORMAT:
        raise StorageError(
            f"{path} is not a supernet of format {_FORMAT}, got {metadata.get('format')!r}.",
            "Train the supernet again with this version.",
        )
    described = json.loads(metadata["architectures"])
    if digest_of(described) != metadata["digest"]:
        raise StorageError(f"The architectures in {path} do not have the digest that it states.")
    return [Architecture.parse(one) for one in described]
