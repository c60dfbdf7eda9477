"""The architecture of a detector, as data: what the network is, and nothing about how it runs.

One record describes the whole network at the levels that detectors share: a stem (stride 2), four
backbone stages P2..P5 (strides 4..32), pooling over P5, attention on the top-down features, a neck,
and a head on P3, P4, P5. `nas.model.detector` turns it into a module.

An architecture is canonical: fields at their default, attention that is switched off, and sparse
attention that selects every token are written one way, so two descriptions of the same network
share a digest. Fields added later with a default leave the digests of old architectures alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from nas import plugins
from nas.errors import ArchitectureError, InputError, nearest
from nas.space.attention import AttentionPoint, AttentionPoints, fit
from nas.space.record import LEVELS, STRIDES, Depth, Level, Record, Size, Width, map_size
from nas.space.yaml_file import Document, parse_yaml, read_yaml

__all__ = [
    "LEVELS",
    "STRIDES",
    "Architecture",
    "AttentionPoint",
    "AttentionPoints",
    "Backbone",
    "BottomUp",
    "Candidate",
    "Convolution",
    "Fusion",
    "Head",
    "Level",
    "Neck",
    "Pooling",
    "Precision",
    "Stage",
    "Stem",
    "TopDown",
    "digest_of",
    "validation_message",
]

Convolution = Literal["conv", "qarepvgg", "repvgg"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


class Stem(Record):
    """The first convolution: `kernel` x `kernel`, stride 2, to `channels`."""

    convolution: Convolution = "conv"
    channels: Width
    kernel: Literal[3, 6] = 3

    @model_validator(mode="after")
    def _fold_three_only(self) -> Self:
        if self.kernel != 3 and self.convolution != "conv":
            raise ValueError(f"{self.convolution} is a 3x3 convolution, got kernel={self.kernel}")
        return self


class Fusion(Record):
    """A block that maps its input to `channels` through `depth` bottlenecks of width `hidden`.

    Attributes:
        block: a name among the plug-ins of kind `blocks`, such as `qarepvgg_csp` or `c2f`.
        concat_intermediates: CSP blocks only: the output of every bottleneck enters the last
            convolution, not just that of the last one (as in YOLO-NAS M and L).
        shortcut: bottlenecks add their input.
    """

    block: str
    channels: Width
    hidden: Width
    depth: Depth = 1
    concat_intermediates: bool = False
    shortcut: bool = True

    @model_validator(mode="after")
    def _know_the_block(self) -> Self:
        known = _known_blocks()
        if self.block not in known:
            hint = nearest(self.block, known)
            raise ValueError(
                f"unknown block {self.block!r}."
                + (f" Did you mean {hint!r}?" if hint else "")
                + f" Known blocks: {', '.join(known)}"
            )
        if self.block == "c2f":
            # It always concatenates them: one network, one description.
            object.__setattr__(self, "concat_intermediates", False)
        return self


class Stage(Fusion):
    """A backbone stage: a 3x3 convolution of stride 2 to `channels`, then the block."""

    convolution: Convolution = "conv"


class Backbone(Record):
    """The four stages, by the level that they put out."""

    P2: Stage
    P3: Stage
    P4: Stage
    P5: Stage


class Pooling(Record):
    """Spatial pyramid pooling over P5: 1x1 to `hidden`, max pools, concatenation, 1x1 back.

    Attributes:
        kind: `sppf` chains one kernel three times; `spp` runs its kernels side by side.
        kernels: odd sizes; exactly one for `sppf`.
    """

    kind: Literal["sppf", "spp"] = "sppf"
    hidden: Width
    kernels: tuple[Literal[3, 5, 7, 9, 11, 13], ...] = (5,)

    @model_validator(mode="after")
    def _one_kernel_for_sppf(self) -> Self:
        if self.kind == "sppf" and len(self.kernels) != 1:
            raise ValueError(f"sppf takes exactly one kernel, got {list(self.kernels)}")
        if not self.kernels:
            raise ValueError("spp needs at least one kernel")
        return self


class TopDown(Record):
    """The fusions of the top-down path."""

    P4: Fusion
    P3: Fusion


class BottomUp(Record):
    """The fusions of the bottom-up path."""

    P4: Fusion
    P5: Fusion


class Neck(Record):
    """From the backbone's P2..P5 to one feature for each of P3, P4, P5.

    Attributes:
        kind: `pan`: top-down P5 -> P4 -> P3, then bottom-up P3 -> P4 -> P5 (Liu et al., CVPR 2018).
            `fpn`: top-down only (Lin et al., CVPR 2017). `bifpn`: both ways `repeats` times, with
            weighted sums in place of concatenations (Tan et al., CVPR 2020).
        upsample: `nearest`, or a 2x2 transposed convolution.
        reduce: `pan`: 1x1 convolutions before and after each top-down concatenation, whose first
            output is what the bottom-up path meets again (YOLO-NAS); without, plain concatenation
            (YOLOv8).
        three_inputs: top-down fusions also take the backbone's level below, through a convolution
            of stride 2; needs `reduce`.
        halve: `pan`: the stride-2 convolutions of the bottom-up path halve the channels of their
            fusion (YOLO-NAS) instead of keeping those of their input (YOLOv8).
        convolution: the stride-2 convolutions.
        repeats: of the whole `bifpn`.
        bottom_up: absent for `fpn`.
    """

    kind: Literal["pan", "fpn", "bifpn"] = "pan"
    upsample: Literal["nearest", "transposed"] = "nearest"
    reduce: bool = False
    three_inputs: bool = False
    halve: bool = False
    convolution: Convolution = "conv"
    repeats: Annotated[int, Field(ge=1, le=8)] = 1
    top_down: TopDown
    bottom_up: BottomUp | None = None

    @model_validator(mode="after")
    def _fields_go_with_the_kind(self) -> Self:
        if self.three_inputs and not self.reduce:
            raise ValueError("three_inputs needs reduce: true")
        if self.kind != "pan" and (self.reduce or self.halve):
            raise ValueError(f"reduce and halve belong to pan, got kind={self.kind}")
        if self.kind != "bifpn" and self.repeats != 1:
            raise ValueError(f"only bifpn repeats, got kind={self.kind}, repeats={self.repeats}")
        if (self.kind == "fpn") != (self.bottom_up is None):
            what = "has no" if self.kind == "fpn" else "needs"
            raise ValueError(f"{self.kind} {what} bottom_up")
        if self.kind == "fpn" and self.convolution != "conv":
            raise ValueError(f"fpn has no stride-2 convolution, got {self.convolution}")
        return self

    @model_validator(mode="after")
    def _halve_only_where_it_matters(self) -> Self:
        if self.halve and self.bottom_up is not None:
            kept = self.top_down.P3.channels, self.bottom_up.P4.channels
            down = self.bottom_up.P4.channels, self.bottom_up.P5.channels
            if kept == tuple(max(1, channels // 2) for channels in down):
                # Both rules say the same: one network, one description.
                object.__setattr__(self, "halve", False)
        return self


class Head(Record):
    """Decoupled, anchor-free: class and box branches of 3x3 convolutions at each level.

    Attributes:
        kind: `decoupled`: several anchors may find one object, and NMS outside the graph removes
            duplicates. `one_to_one`: a second pair of branches learns to find each object once, and
            is what is deployed, without NMS (Wang et al., YOLOv10, NeurIPS 2024).
        channels: width of the class branch, one for all levels or one each for P3, P4, P5.
        box_channels: width of the box branch; that of the class branch if absent.
        depth: 3x3 convolutions in each branch.
        stem: a shared 1x1 convolution to `channels` first (as in YOLO-NAS).
        bins: bins of the distribution of each distance (Distribution Focal Loss); distances reach
            `bins - 1` strides.
    """

    kind: Literal["decoupled", "one_to_one"] = "decoupled"
    channels: tuple[Width, Width, Width]
    box_channels: tuple[Width, Width, Width]
    depth: Annotated[int, Field(ge=1, le=4)] = 1
    stem: bool = False
    bins: Annotated[int, Field(ge=2, le=64)] = 8

    @model_validator(mode="before")
    @classmethod
    def _widths_per_level(cls, data: object) -> object:
        if not isinstance(data, Mapping) or "channels" not in data:
            return data
        channels = _per_level(data["channels"])
        box = data.get("box_channels")
        return {**data, "channels": channels, "box_channels": _per_level(box) if box else channels}


class Architecture(Record):
    """A whole detector.

    Attributes:
        input: height and width of the network's input, in pixels, multiples of 8; a single number
            is a square.
        classes: number of classes that the head tells apart.
    """

    input: tuple[int, int]
    classes: Annotated[int, Field(ge=1, le=10_000)]
    activation: Literal["relu", "silu"] = "relu"
    stem: Stem
    backbone: Backbone
    pooling: Pooling | None = None
    attention: AttentionPoints = AttentionPoints()
    neck: Neck
    head: Head

    @model_validator(mode="before")
    @classmethod
    def _square_input(cls, data: object) -> object:
        if isinstance(data, Mapping) and type(data.get("input")) is int:
            return {**data, "input": (data["input"], data["input"])}
        return data

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        for side in self.input:
            if side % 8 or not 32 <= side <= 8192:
                aligned = min(max(round(side / 8) * 8, 32), 8192)
                raise ValueError(
                    f"input sides must be multiples of 8 in 32..8192, got {side}; {aligned} is one"
                )
        return self

    @model_validator(mode="after")
    def _attend_within_the_map(self) -> Self:
        object.__setattr__(self, "attention", self.attention.on(self.input))
        return self

    @classmethod
    def parse(cls, data: Mapping[str, Any], document: Document | None = None) -> Architecture:
        """Build from plain data, as YAML or JSON give it.

        Args:
            data: the fields, with lists for tuples.
            document: the file that they come from, to name lines in errors.

        Raises:
            ArchitectureError: a rule is broken; the message lists every one.
        """
        try:
            return cls.model_validate(_tuples(data))
        except ValidationError as error:
            raise ArchitectureError(
                f"This is not an architecture: {validation_message(error, document)}."
            ) from error

    @classmethod
    def load(cls, path: Path) -> Architecture:
        """Read an architecture, or a winner's `architecture.yaml` with everything known about it.

        Raises:
            ArchitectureError: it cannot be read, or its digest is not the one it states.
        """
        return cls._from_document(read_yaml(path, ArchitectureError))

    @classmethod
    def from_yaml(cls, text: str) -> Architecture:
        """Read what `to_yaml` or a bundle wrote; raises like `load`."""
        return cls._from_document(parse_yaml(text, "architecture", ArchitectureError))

    @classmethod
    def _from_document(cls, document: Document) -> Architecture:
        if "architecture" not in document.data:
            return cls.parse(document.data, document)
        inner = document.data["architecture"]
        if not isinstance(inner, dict):
            raise ArchitectureError(f"{document.name}: `architecture` must be a mapping.")
        lines = {path[1:]: n for path, n in document.lines.items() if path[0] == "architecture"}
        architecture = cls.parse(inner, Document(document.name, inner, lines))
        stated = document.data.get("digest")
        if stated is not None and stated != architecture.digest:
            raise ArchitectureError(
                f"{document.name} states the digest {stated} and describes a network whose digest "
                f"is {architecture.digest}.",
                "Remove the line `digest` if you edited the file on purpose.",
            )
        return architecture

    def canonical(self) -> dict[str, Any]:
        """Return plain data: the one way to write this network."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return data

    def to_yaml(self) -> str:
        """Write the canonical form as YAML."""
        return yaml.safe_dump(self.canonical(), sort_keys=False, default_flow_style=None, width=100)

    def at_input(self, size: Size) -> Architecture:
        """Return the same network for another input size (height, width), in pixels.

        Sparse attention to more tokens than a smaller map has becomes attention to all of them.

        Raises:
            ArchitectureError: the size breaks a rule.
        """
        data = self.model_dump(mode="json", exclude_defaults=True)
        return Architecture.parse(
            {**data, "input": list(size), "attention": fit(data.get("attention", {}), size)}
        )

    @property
    def neck_channels(self) -> tuple[int, int, int]:
        """Channels of the features P3, P4, P5 that the neck hands to the head."""
        top, bottom = self.neck.top_down, self.neck.bottom_up
        if bottom is None:
            return top.P3.channels, top.P4.channels, self.backbone.P5.channels
        return top.P3.channels, bottom.P4.channels, bottom.P5.channels

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that two descriptions share exactly if they are one network."""
        return digest_of(self.canonical())

    def feature_size(self, level: str) -> tuple[int, int]:
        """Height and width of the feature map of a level `P1`..`P5`."""
        return map_size(self.input, level)

    def tokens_at(self, level: str) -> int:
        """Number of positions of the feature map of a level."""
        height, width = self.feature_size(level)
        return height * width


class Candidate(Record):
    """What a search evaluates: an architecture at a precision."""

    architecture: Architecture
    precision: Precision = "fp32"

    @property
    def digest(self) -> str:
        """Digest of the architecture and the precision together."""
        return digest_of([self.architecture.digest, self.precision])


def digest_of(data: object) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the canonical JSON of plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def validation_message(error: ValidationError, document: Document | None = None) -> str:
    """Say every broken rule of a pydantic error in one sentence each, with path and line."""
    return "; ".join(_one_rule(dict(item), document) for item in error.errors())


def _one_rule(item: dict[str, Any], document: Document | None) -> str:
    path = tuple(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ").rstrip(".")
    value = item.get("input")
    shown = "" if isinstance(value, (Mapping, InputError)) else f", got {value!r}"
    if item["type"] == "value_error":
        shown = ""  # these messages say the value themselves
    where = f" ({document.where(path)})" if document else ""
    return f"{'.'.join(path) or 'architecture'}{where}: {message}{shown}"


@cache
def _known_blocks() -> tuple[str, ...]:
    return plugins.names("blocks")


def _per_level(value: object) -> object:
    return (value,) * 3 if type(value) is int else value


def _tuples(value: object) -> Any:
    """Turn lists into tuples: strict models tell the two apart, YAML has only one."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value
