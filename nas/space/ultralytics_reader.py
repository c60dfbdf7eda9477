"""From the rows of a layer list to the architecture that they are.

The rows are walked backwards from the head, where every input has one meaning: what is behind the
head is the neck, and what is behind the neck's deepest feature is the backbone. The walk collects
the fields of an architecture. Whether the rows are that architecture is then settled by listing its
layers and laying both lists over each other, so nothing in a file can be overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nas.errors import ArchitectureError
from nas.space.architecture import Architecture, Fusion, Pooling
from nas.space.attention import AttentionPoint
from nas.space.layers import HEADS, IMAGE, Layer, layers
from nas.space.ultralytics_modules import Context, interpret
from nas.space.ultralytics_nodes import Concat, Detection, Node, Sum, Unit, Upsample
from nas.space.ultralytics_rows import LayerFile, Row
from nas.space.yaml_file import Document

__all__ = ["architecture_of"]

_Spec = TypeVar("_Spec", Unit, Fusion, Upsample, Concat, Sum)
_Data = dict[str, Any]

_NAMES: dict[type, str] = {
    Unit: "a convolution (Conv, QARepVGG, RepVGG)",
    Fusion: "a fusion (C2f, QARepVGGCSP, RepVGGCSP, ConvCSP, ...)",
    Upsample: "an upsampling (nn.Upsample, nn.ConvTranspose2d)",
    Concat: "a Concat",
    Sum: "a WeightedSum",
}
_PLACES = "Attention stands on P5 after pooling, and on the outputs of the top-down P4 and P3."


def architecture_of(file: LayerFile) -> Architecture:
    """Return the architecture that a list describes.

    Raises:
        ArchitectureError: a row is wrong, or the network is none that the schema has; says layer,
            line, and what is expected in its place.
    """
    nodes = interpret(file.rows, Context(file.size, file.classes, file.scale))
    walk = _Walk(nodes)
    data = walk.architecture()
    data |= {"input": list(file.size), "activation": file.activation}
    architecture = Architecture.parse(data, _Places(file.document, walk.places))
    _Comparison(architecture, nodes).check()
    return architecture


class _Places(Document):
    """Says which layer a field of the architecture comes from."""

    def __init__(self, document: Document, places: Mapping[tuple[str, ...], Row]) -> None:
        super().__init__(document.name, document.data, document.lines)
        object.__setattr__(self, "_places", places)

    _places: Mapping[tuple[str, ...], Row]

    def where(self, path: tuple[str, ...]) -> str:
        """Name the layer, or the line of a top-level key."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._places:
                return self._places[path[:end]].label
        # The only rule about the whole that rows have not met yet is the one about its input.
        return super().where(path or ("input",))


class _Walk:
    """Collects the fields of an architecture, from the head to the stem.

    Attributes:
        places: where each field comes from.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.places: dict[tuple[str, ...], Row] = {}
        self.attention: dict[str, _Data] = {}

    def architecture(self) -> _Data:
        """Return plain data of everything but input and activation."""
        head = self.nodes[-1]
        if not isinstance(head.spec, Detection):
            modules = " or ".join(HEADS.values())
            raise head.row.error(f"the last layer must be {modules}, got {head.row.module}")
        self.places[("head",)] = self.places[("classes",)] = head.row
        p3, p4, p5 = (self.nodes[source] for source in head.row.sources)
        neck, deepest = self._neck(p3, p4, p5)
        return {
            **self._backbone(deepest),
            "attention": self.attention,
            "neck": neck,
            "head": head.spec.head.model_dump(),
            "classes": head.spec.classes,
        }

    def _neck(self, p3: Node, p4: Node, p5: Node) -> tuple[_Data, Node]:
        """Return the neck's fields and the backbone's last feature."""
        if not isinstance(p5.spec, Fusion) or isinstance(self._source(p5).spec, Unit):
            neck, deepest = self._top_down(p3)
            return {"kind": "fpn", **neck}, deepest
        if isinstance(self._source(p5).spec, Sum):
            return self._weighted_pyramid(p3, p4, p5)
        return self._path_aggregation(p3, p4, p5)

    def _path_aggregation(self, p3: Node, p4: Node, p5: Node) -> tuple[_Data, Node]:
        fusion5, down5 = self._bottom_up(p5, "P5")
        fusion4, down4 = self._bottom_up(p4, "P4")
        neck, deepest = self._top_down(p3)
        styles = [
            self._halves(down5, p4.channels, fusion5["channels"]),
            self._halves(down4, p3.channels, fusion4["channels"]),
        ]
        neck["halve"] = any(styles)
        neck["convolution"] = self._spec(down4, Unit, "down to P4").convolution
        return {**neck, "bottom_up": {"P4": fusion4, "P5": fusion5}}, deepest

    def _bottom_up(self, node: Node, level: str) -> tuple[_Data, Node]:
        """Return the fusion of a bottom-up step, and its convolution of stride 2."""
        role = f"bottom-up {level}"
        fusion, join = self._fusion(node, role, ("neck", "bottom_up", level))
        self._spec(join, Concat, f"what {role} fuses")
        down = self._first(join, Unit, f"down to {level}")
        self.places[("neck", "convolution")] = down.row
        return fusion, down

    def _halves(self, down: Node, fine: int, fused: int) -> bool:
        """Whether a bottom-up convolution halves its fusion's width, other than keeping its own."""
        half = max(1, fused // 2)
        if down.channels not in (fine, half):
            raise down.row.error(
                f"here as many channels as its input has ({fine}), or half of what its fusion puts "
                f"out ({half}), are expected, got {down.channels}"
            )
        return down.channels != fine

    def _top_down(self, node: Node) -> tuple[_Data, Node]:
        """Return the fields of the top-down path that ends in `node`, and where it starts."""
        neck: _Data = {"top_down": {}}
        for level in ("P3", "P4"):
            role, path = f"top-down {level}", ("neck", "top_down", level)
            node = self._attended(node, level)
            neck["top_down"][level], join = self._fusion(node, role, path)
            neck["reduce"] = isinstance(join.spec, Unit)
            join = self._source(join) if neck["reduce"] else join
            neck["three_inputs"] = self._spec(join, Concat, f"what {role} fuses").inputs == 3
            up = self._first(join, Upsample, f"up to {level}")
            neck["upsample"] = self._spec(up, Upsample, f"up to {level}").upsample
            self.places[("neck",)] = join.row
            node = self._source(up)
            if neck["reduce"]:
                self._spec(node, Unit, f"what goes up to {level}, reduced")
                node = self._source(node)
        return neck, node

    def _weighted_pyramid(self, p3: Node, p4: Node, p5: Node) -> tuple[_Data, Node]:
        """Return the fields of all repeats, which are alike, and the backbone's last feature."""
        path = ("neck", "bottom_up")
        neck: _Data = {"kind": "bifpn", "repeats": 0, "top_down": {}, "bottom_up": {}}
        neck["bottom_up"]["P4"], _ = self._fusion(p4, "bottom-up P4", (*path, "P4"))
        while isinstance(p5.spec, Fusion):
            neck["repeats"] += 1
            self.places[("neck",)] = p5.row
            neck["bottom_up"]["P5"], p5, down = self._sum(p5, "bottom-up P5", (*path, "P5"))
            neck["convolution"] = self._spec(down, Unit, "down to P5").convolution
            p3 = self._repeat(neck, p3)
        self._spec(p5, Unit, "P5 projected")
        return neck, self._source(p5)

    def _repeat(self, neck: _Data, p3: Node) -> Node:
        """Note the top-down path of a repeat that puts out `p3`, and return the P3 that it took."""
        path, p3 = ("neck", "top_down"), self._attended(p3, "P3")
        neck["top_down"]["P3"], before, up = self._sum(p3, "top-down P3", (*path, "P3"))
        neck["upsample"] = self._spec(up, Upsample, "up to P3").upsample
        p4 = self._source(up)
        p4 = self._attended(self._source(p4) if isinstance(p4.spec, Unit) else p4, "P4")
        neck["top_down"]["P4"], _ = self._fusion(p4, "top-down P4", (*path, "P4"))
        return before

    def _sum(self, node: Node, role: str, path: tuple[str, ...]) -> tuple[_Data, Node, Node]:
        """Return the fusion of a weighted sum, and the two terms."""
        fusion, total = self._fusion(node, role, path)
        if self._spec(total, Sum, f"what {role} fuses").inputs != 2:
            raise total.row.error(f"{role} sums 2 terms, got {len(total.row.sources)}")
        first, second = (self.nodes[source] for source in total.row.sources)
        return fusion, first, second

    def _backbone(self, node: Node) -> _Data:
        """Return the fields of everything behind the feature P5 that the neck takes."""
        data: _Data = {"backbone": {}}
        node = self._attended(node, "P5")
        if isinstance(node.spec, Pooling):
            self.places[("pooling",)] = node.row
            data["pooling"], node = node.spec.model_dump(), self._source(node)
        for level in ("P5", "P4", "P3", "P2"):
            stage, down = self._fusion(node, f"{level} features", ("backbone", level))
            stage["convolution"] = self._spec(down, Unit, f"to {level}").convolution
            data["backbone"][level], node = stage, self._source(down)
        stem = self._spec(node, Unit, "stem")
        self.places[("stem",)] = node.row
        names = ("convolution", "channels", "kernel")
        return {**data, "stem": {name: getattr(stem, name) for name in names}}

    def _attended(self, node: Node, level: str) -> Node:
        """Note the attention that a level has, and return what it attends to."""
        if not isinstance(node.spec, AttentionPoint):
            return node
        self.places[("attention", level)] = node.row
        self.attention[level] = node.spec.model_dump()
        return self._source(node)

    def _fusion(self, node: Node, role: str, path: tuple[str, ...]) -> tuple[_Data, Node]:
        spec = self._spec(node, Fusion, role)
        self.places[path] = node.row
        return spec.model_dump(), self._source(node)

    def _source(self, node: Node) -> Node:
        """Return what a node takes first."""
        source = node.row.sources[0]
        if source == IMAGE:
            raise node.row.error("takes the image, which only the stem does")
        return self.nodes[source]

    def _first(self, join: Node, kind: type[_Spec], role: str) -> Node:
        """Return what a join takes first, which must be of a kind."""
        first, *others = (self.nodes[source] for source in join.row.sources)
        for other in others:
            if isinstance(other.spec, kind) and not isinstance(first.spec, kind):
                raise join.row.error(
                    f"the first input must be {_NAMES[kind]} ({role}), and that is "
                    f"{other.row.label}",
                    "Change the order of `from`.",
                )
        self._spec(first, kind, role)
        return first

    def _spec(self, node: Node, kind: type[_Spec], role: str) -> _Spec:
        if not isinstance(node.spec, kind):
            raise _misplaced(node, f"{_NAMES[kind]} is expected ({role})")
        return node.spec


class _Comparison:
    """Lays the layers of an architecture over the rows of a file, from the head on."""

    def __init__(self, architecture: Architecture, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.listed = layers(architecture)
        context = Context(architecture.input, architecture.classes, None)
        self.expected = interpret([_row(layer) for layer in self.listed], context)
        self.matched: dict[int, int] = {}

    def check(self) -> None:
        """Raise ArchitectureError unless they are one network."""
        pending = [(len(self.expected) - 1, len(self.nodes) - 1, self.nodes[-1])]
        while pending:
            wanted, found, taker = pending.pop()
            if self._settled(wanted, found, taker):
                continue
            mine, theirs = self.expected[wanted], self.nodes[found]
            if not mine.like(theirs):
                layer = self.listed[wanted]
                raise _misplaced(theirs, f"{_text(mine.row)} is expected ({layer.role})")
            self.matched[wanted] = found
            pairs = zip(mine.row.sources, theirs.row.sources, strict=True)
            pending += reversed([(a, b, theirs) for a, b in pairs])
        for node in self.nodes:
            if node.row.index not in self.matched.values():
                raise node.row.error("nothing takes what it puts out", "Remove it, or use it.")

    def _settled(self, wanted: int, found: int, taker: Node) -> bool:
        """Whether a pair needs no further look; raises if it contradicts an earlier one."""
        if IMAGE in (wanted, found):
            if wanted != found:
                raise taker.row.error("only the stem takes the image")
            return True
        known = self.matched.get(wanted)
        if known == found:
            return True
        if known is not None or found in self.matched.values():
            what = f"{self.listed[wanted].role}" + ("" if known is None else f", layer {known},")
            raise taker.row.error(
                f"here {what} is expected as an input, got {self.nodes[found].row.label}"
            )
        return False


def _row(layer: Layer) -> Row:
    return Row(layer.index, "", layer.sources, layer.repeats, layer.module, layer.arguments)


def _misplaced(node: Node, expected: str) -> ArchitectureError:
    remedy = _PLACES if isinstance(node.spec, AttentionPoint) else ""
    return node.row.error(f"here {expected}, got {_text(node.row)}", remedy)


def _text(row: Row) -> str:
    times = f" x{row.repeats}" if row.repeats > 1 else ""
    return f"{row.module} {list(row.arguments)}{times}"
