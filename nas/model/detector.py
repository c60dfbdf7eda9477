"""A detector: the module that an `Architecture` describes, its deployed form, and its cost."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nas.errors import ArchitectureError
from nas.model.blocks.attention import Attention
from nas.model.blocks.backbone import Backbone
from nas.model.blocks.convolution import Unit
from nas.model.blocks.head import ClassPredictor, Head, distances
from nas.model.blocks.layers import Conv2d, ConvTranspose2d, Scale, WeightedSum, reusing
from nas.model.blocks.neck import neck
from nas.space.architecture import LEVELS, STRIDES, Architecture

__all__ = [
    "DeployedDetector",
    "Detector",
    "Predictions",
    "Profile",
    "counts",
    "decode",
    "needs_nms",
    "profile",
    "suppression",
]

_HOLLOW_PARTS = 2048
_hollow_parts: dict[Hashable, nn.Module] = {}


class Predictions(NamedTuple):
    """What a detector says about a batch, before decoding.

    Attributes:
        logits: (B, A, classes).
        bins: logits (B, A, 4, bins) of the distances to left, top, right, bottom, in strides.
        anchors: (A, 2) centres x, y in pixels, of P3, P4, P5, row by row.
        strides: (A,) in pixels.
        one_to_one: of a head that finds each object once, what is deployed of it, on the same
            anchors; the fields above are then of the branches that only help to train. Else None.
    """

    logits: Tensor
    bins: Tensor
    anchors: Tensor
    strides: Tensor
    one_to_one: Predictions | None = None


class Detector(nn.Module):
    """The network of an architecture, in the form that is trained.

    Args:
        architecture: what to build.
        seed: of the initial weights; torch's global generator is left as it was.

    Raises:
        ArchitectureError: parts of it do not fit together.
    """

    anchors: Tensor
    strides: Tensor

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        super().__init__()
        self.architecture = architecture
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.backbone = Backbone(architecture)
            self.neck = neck(architecture)
            self.head = Head(architecture)
        anchors, strides = _grid(architecture)
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def forward(self, images: Tensor) -> Predictions:
        """Predict on images (B, 3, H, W) in 0..1, of the architecture's input size.

        Raises:
            ArchitectureError: images of another size.
        """
        _check_size(images, self.architecture)
        return self.from_early(self.backbone.early(images))

    def from_early(self, p2: Tensor) -> Predictions:
        """Predict from what `backbone.early` made of images."""
        features = self.neck(self.backbone.late(p2))
        predictions = self._predictions(*self.head.one_to_many(features))
        if self.head.one_to_one is None:
            return predictions
        once = self._predictions(*self.head([feature.detach() for feature in features]))
        return predictions._replace(one_to_one=once)

    def deploy(self) -> DeployedDetector:
        """Return an independent copy in evaluation mode, every unit one convolution."""
        return DeployedDetector(self)

    def _predictions(self, logits: Tensor, bins: Tensor) -> Predictions:
        return Predictions(
            logits.transpose(1, 2), bins.permute(0, 3, 1, 2), self.anchors, self.strides
        )


class DeployedDetector(nn.Module):
    """A detector as it runs on a device: branches folded, boxes decoded, no suppression."""

    anchors: Tensor
    strides: Tensor
    steps: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.architecture = detector.architecture
        twin = copy.deepcopy(detector, _fused(detector)).eval()
        twin.head.keep_deployed()
        self.backbone, self.neck, self.head = twin.backbone, twin.neck, twin.head
        steps = torch.arange(self.architecture.head.bins).to(twin.anchors)[None]
        self.register_buffer("anchors", twin.anchors, persistent=False)
        self.register_buffer("strides", twin.strides, persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) to boxes (B, A, 4), xyxy in pixels, and scores (B, A, classes).

        Raises:
            ArchitectureError: images of another size than the architecture's input.
        """
        _check_size(images, self.architecture)
        logits, bins = self.head(self.neck(self.backbone(images)))
        boxes = _boxes(distances(bins, self.steps), self.anchors, self.strides)
        return boxes, logits.sigmoid().transpose(1, 2)


@dataclass(frozen=True)
class Profile:
    """The size of a deployed network.

    Attributes:
        parameters: weights and biases, after folding.
        macs: multiplications with accumulation for one image, in convolutions, attention and the
            expectation of distances.
    """

    parameters: int
    macs: int


@lru_cache(maxsize=16_384)
def profile(architecture: Architecture) -> Profile:
    """Count the deployed network without making its weights; equal architectures are counted once.

    Raises:
        ArchitectureError: parts of it do not fit together.
    """
    counted = counts(architecture).values()
    return Profile(sum(one.parameters for one in counted), sum(one.macs for one in counted))


def counts(architecture: Architecture) -> dict[str, Profile]:
    """Count the deployed network module by module, without making its weights.

    Returns:
        Dotted name of a module of the `Detector` -> what is counted there, each thing once. The
        detector itself, named "", computes the expectation of distances.

    Raises:
        ArchitectureError: parts of it do not fit together.
    """
    if len(_hollow_parts) > _HOLLOW_PARTS:
        _hollow_parts.clear()
    with torch.device("meta"), reusing(_hollow_parts):
        detector = Detector(architecture)
    detector.head.keep_deployed()
    _hollow(detector)
    images = torch.empty(1, 3, *architecture.input, device="meta")
    with torch.no_grad():
        detector.to("meta").head(detector.neck(detector.backbone(images)))
    found = {"": Profile(0, 4 * architecture.head.bins * len(detector.anchors))}
    for name, module in detector.named_modules():
        if isinstance(module, _StandIn):
            found[name] = Profile(module.held, module.macs)
    return found


def needs_nms(architecture: Architecture) -> bool:
    """Whether a deployed network finds objects more than once: duplicates are removed outside."""
    return architecture.head.kind != "one_to_one"


def suppression(architecture: Architecture) -> Literal["outside", "none"]:
    """Say where duplicates are removed, in the word that graphs and bundles carry."""
    return "outside" if needs_nms(architecture) else "none"


def decode(predictions: Predictions) -> Tensor:
    """Return boxes (B, A, 4), xyxy in pixels; differentiable."""
    bins = predictions.bins.permute(0, 2, 3, 1)
    steps = torch.arange(bins.shape[2], dtype=bins.dtype, device=bins.device)[None]
    return _boxes(distances(bins, steps), predictions.anchors, predictions.strides)


def _boxes(sides: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
    pixels, centres = sides * strides, anchors.T
    return torch.cat([centres - pixels[:, :2], centres + pixels[:, 2:]], 1).transpose(1, 2)


def _grid(architecture: Architecture) -> tuple[Tensor, Tensor]:
    """Return the centres (A, 2) and strides (A,) of all cells, on the CPU even under `meta`."""
    centres, strides = [], []
    for level in LEVELS:
        height, width = architecture.feature_size(level)
        y, x = torch.meshgrid(
            torch.arange(height, device="cpu"), torch.arange(width, device="cpu"), indexing="ij"
        )
        centres.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * STRIDES[level])
        strides.append(torch.full((height * width,), float(STRIDES[level]), device="cpu"))
    return torch.cat(centres), torch.cat(strides)


def _check_size(images: Tensor, architecture: Architecture) -> None:
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return  # shapes are tensors then
    if tuple(images.shape[1:]) != (3, *architecture.input):
        height, width = architecture.input
        raise ArchitectureError(
            f"This network takes images of shape (B, 3, {height}, {width}), "
            f"got {tuple(images.shape)}.",
            "Resize the images, or build the architecture with another input.",
        )


def _fused(module: nn.Module) -> dict[int, nn.Module]:
    """Return what each unit becomes, by identity, for a copy that needs no copy of the unit."""
    found: dict[int, nn.Module] = {}
    for child in module.children():
        if isinstance(child, Unit | ClassPredictor | WeightedSum):
            found[id(child)] = child.fuse()
        else:
            found |= _fused(child)
    return found


def _hollow(module: nn.Module) -> None:
    """Put stand-ins in the places of all layers with weights, which count what is deployed.

    Running the layers themselves on the meta device counts the same, at ten times the cost.
    """
    for name, child in module.named_children():
        layer = child.conv if isinstance(child, Unit) else child
        if isinstance(layer, Conv2d | ConvTranspose2d):
            biased = isinstance(child, Unit) or layer.bias is not None
            setattr(module, name, _ConvolutionStandIn(layer, biased=biased))
        elif isinstance(child, Attention):
            setattr(module, name, _StandIn(_deployed_parameters(child), child.macs))
        elif isinstance(child, Scale):
            setattr(module, name, _StandIn(1, 0))
        else:
            _hollow(child)


def _deployed_parameters(module: nn.Module) -> int:
    """Count weights and biases as they are when every unit is one convolution with bias."""
    units = [unit for unit in module.modules() if isinstance(unit, Unit)]
    trained = sum(p.numel() for unit in units for p in unit.parameters())
    folded = sum(unit.conv.weight.numel() + unit.out_channels for unit in units)
    return sum(p.numel() for p in module.parameters()) - trained + folded


class _StandIn(nn.Module):
    """Holds the counts of a layer, and passes its input on."""

    def __init__(self, held: int, macs: int) -> None:
        super().__init__()
        self.held, self.macs = held, macs

    def forward(self, x: Tensor) -> Tensor:
        return x


class _ConvolutionStandIn(_StandIn):
    """Counts on the size of its input, and returns a tensor of the right shape."""

    def __init__(self, layer: Conv2d | ConvTranspose2d, *, biased: bool) -> None:
        super().__init__(layer.weight.numel() + layer.out_channels * biased, 0)
        self.out_channels, self.stride = layer.out_channels, layer.stride[0]
        self.doubles = isinstance(layer, ConvTranspose2d)
        taps = 1 if self.doubles else layer.kernel_size[0] ** 2
        self.per_output = layer.in_channels // layer.groups * taps

    def forward(self, x: Tensor) -> Tensor:
        sides = [2 * n if self.doubles else -(-n // self.stride) for n in x.shape[2:]]
        output = x.new_empty(len(x), self.out_channels, *sides)
        self.macs = output.numel() * self.per_output
        return output
