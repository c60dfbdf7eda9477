"""What each module of a layer list means: its arguments, and what it puts out.

The maps of a network are as large as the input divided by their stride, rounded up, so a map is
known by its channels and its stride: upsampling crops to that size (`nas.space.layers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from nas import plugins
from nas.errors import nearest
from nas.space.architecture import Fusion, Head, Pooling, validation_message
from nas.space.attention import AttentionPoint
from nas.space.layers import (
    ATTENTION,
    BLOCKS,
    CONVOLUTIONS,
    HEADS,
    TRANSPOSED,
    UPSAMPLE,
    yolov8_head,
)
from nas.space.record import LEVELS, STRIDES, Record, Size
from nas.space.ultralytics_nodes import Concat, Detection, Node, Spec, Sum, Unit, Upsample
from nas.space.ultralytics_rows import LARGEST, Row, Scale

__all__ = ["Context", "interpret"]

_Record = TypeVar("_Record", bound=Record)


class Context(NamedTuple):
    """What rows mean depends on: input size in pixels, classes, compound scale."""

    size: Size
    classes: int | None
    scale: Scale | None


class _Kind(NamedTuple):
    """What an argument may be, and how a message calls that."""

    name: str
    holds: Callable[[Any], bool]


class _Parameter(NamedTuple):
    name: str
    kind: _Kind
    default: Any = ...
    scaled: bool = False


class _Map(NamedTuple):
    channels: int
    stride: int


@dataclass(frozen=True)
class _Call:
    """A row with its arguments by name, and the maps that it takes."""

    row: Row
    given: Mapping[str, Any]
    inputs: tuple[_Map, ...]
    context: Context

    def shape(self, index: int = 0) -> str:
        """Return an input's (C, H, W) for a message."""
        channels, stride = self.inputs[index]
        height, width = (-(-side // stride) for side in self.context.size)
        return f"({channels}, {height}, {width})"

    @property
    def shapes(self) -> str:
        return ", ".join(self.shape(index) for index in range(len(self.inputs)))

    @property
    def repeats(self) -> int:
        scale = self.context.scale
        return scale.repeats(self.row.repeats) if scale else self.row.repeats

    def record(self, record: type[_Record], /, **fields: Any) -> _Record:
        try:
            return record.model_validate(fields)
        except ValidationError as error:
            message = validation_message(error).removeprefix("architecture: ")
            raise self.row.error(message) from error

    def keep_channels(self) -> None:
        """Check that a module that keeps its input's channels says so."""
        stated, found = self.given["c"], self.inputs[0].channels
        if stated != found:
            raise self.row.error(
                f"puts out as many channels as it takes, and is given {stated} for an input "
                f"{self.shape()}" + (" (by the scale)" if self.context.scale else ""),
            )


_Meaning = tuple[Spec, _Map]


class _Module(NamedTuple):
    """A module's parameters, how many inputs it takes at least and at most, and its meaning."""

    parameters: tuple[_Parameter, ...]
    means: Callable[[_Call], _Meaning]
    inputs: tuple[int, int] = (1, 1)
    repeats: bool = False


def interpret(rows: Sequence[Row], context: Context) -> tuple[Node, ...]:
    """Say what every row means.

    Raises:
        ArchitectureError: a module is unknown, its arguments are wrong, or the shapes that it takes
            do not meet; says layer, line and shapes.
    """
    nodes: list[Node] = []
    for row in rows:
        maps = tuple(_map(row, nodes, source) for source in row.sources)
        module = _module(row)
        _check_inputs(row, module, len(maps))
        call = _Call(row, _bound(row, module.parameters, context), maps, context)
        if call.repeats != 1 and not module.repeats:
            raise row.error(f"only fusions repeat, got repeats={row.repeats}", "Write 1.")
        spec, (channels, stride) = module.means(call)
        nodes.append(Node(row, spec, channels, stride))
    return tuple(nodes)


def _map(row: Row, nodes: Sequence[Node], source: int) -> _Map:
    if source < 0:
        return _Map(3, 1)
    node = nodes[source]
    if isinstance(node.spec, Detection):
        raise row.error(f"takes from {node.row.label}, which is the head", "The head comes last.")
    return _Map(node.channels, node.stride)


def _module(row: Row) -> _Module:
    known = _modules()
    if row.module in known:
        return known[row.module]
    hint = nearest(row.module, known)
    raise row.error(
        f"unknown module {row.module!r}",
        (f"Did you mean {hint!r}? " if hint else "") + f"Known: {', '.join(known)}.",
    )


def _check_inputs(row: Row, module: _Module, count: int) -> None:
    least, most = module.inputs
    if not least <= count <= most:
        takes = f"{least}" if least == most else f"{least} or more"
        raise row.error(f"takes {takes} input{'s' * (most > 1)}, got {count}")


def _bound(row: Row, parameters: tuple[_Parameter, ...], context: Context) -> dict[str, Any]:
    """Give names to the arguments, fill in defaults, and apply the scale."""
    signature = ", ".join(parameter.name for parameter in parameters) or "nothing"
    required = sum(parameter.default is ... for parameter in parameters)
    if not required <= len(row.arguments) <= len(parameters):
        raise row.error(
            f"takes the arguments [{signature}], got {list(row.arguments)!r}"[:300],
            f"The first {required} must be given." if required else "",
        )
    given = {parameter.name: parameter.default for parameter in parameters}
    for parameter, value in zip(parameters, row.arguments, strict=False):
        if not parameter.kind.holds(value):
            raise row.error(f"{parameter.name} must be {parameter.kind.name}, got {value!r}"[:300])
        given[parameter.name] = _scaled(parameter, value, context)
    return given


def _scaled(parameter: _Parameter, value: Any, context: Context) -> Any:
    # YOLO's parser leaves a number alone that happens to be the number of classes.
    if not parameter.scaled or context.scale is None or value in (None, context.classes):
        return value
    return context.scale.channels(value)


def _convolution(call: _Call) -> _Meaning:
    kernel, stride, padding = (call.given[name] for name in ("kernel", "stride", "padding"))
    convolution = {module: name for name, module in CONVOLUTIONS.items()}[call.row.module]
    if stride not in (1, 2):
        raise call.row.error(f"strides are 1 or 2, got {stride}")
    usual = kernel // 2 if padding is None else padding
    if usual != (kernel - 1) // 2:
        raise call.row.error(
            f"a {kernel}x{kernel} kernel must be padded by {(kernel - 1) // 2}, got {usual}",
            f"Write [c, {kernel}, {stride}, {(kernel - 1) // 2}].",
        )
    for name in ("groups", "dilation"):
        if call.given[name] != 1:
            raise call.row.error(f"{name} must be 1, got {call.given[name]}")
    channels = call.given["c"]
    spec = Unit(convolution, channels, kernel, stride, not call.given["activated"])
    return spec, _Map(channels, call.inputs[0].stride * stride)


def _c2f(call: _Call) -> _Meaning:
    channels, groups, expansion = (call.given[name] for name in ("c", "groups", "expansion"))
    if groups != 1:
        raise call.row.error(f"bottlenecks have one group, got {groups}")
    hidden = int(channels * expansion)
    return _fusion(call, "c2f", hidden=hidden, shortcut=call.given["shortcut"])


def _csp(call: _Call) -> _Meaning:
    module = call.row.module
    block = {name: block for block, name in BLOCKS.items()}.get(module, module)
    names = ("hidden", "shortcut", "concat_intermediates")
    return _fusion(call, block, **{name: call.given[name] for name in names})


def _fusion(call: _Call, block: str, **fields: Any) -> _Meaning:
    channels = call.given["c"]
    spec = call.record(Fusion, block=block, channels=channels, depth=call.repeats, **fields)
    return spec, _Map(channels, call.inputs[0].stride)


def _pooling(call: _Call) -> _Meaning:
    call.keep_channels()
    kernels, hidden = call.given["kernels"], call.given["hidden"]
    kernels = tuple(kernels) if isinstance(kernels, list | tuple) else (kernels,)
    hidden = call.inputs[0].channels // 2 if hidden is None else hidden
    spec = call.record(Pooling, kind=call.row.module.lower(), hidden=hidden, kernels=kernels)
    return spec, call.inputs[0]


def _attention(kind: str) -> Callable[[_Call], _Meaning]:
    def means(call: _Call) -> _Meaning:
        call.keep_channels()
        stride = call.inputs[0].stride
        if stride not in (STRIDES[level] for level in LEVELS):
            raise call.row.error(
                f"attention stands on a feature of stride 8, 16 or 32 (P3, P4, P5), and its input "
                f"{call.shape()} has stride {stride}"
            )
        fields = {name: value for name, value in call.given.items() if name != "c"}
        point = call.record(AttentionPoint, kind=kind, **fields)
        height, width = (-(-side // stride) for side in call.context.size)
        try:
            return point.on((height, width)), call.inputs[0]
        except ValueError as error:
            raise call.row.error(str(error)) from error

    return means


def _upsample(call: _Call) -> _Meaning:
    if call.row.module == TRANSPOSED:
        call.keep_channels()
    usual = {"size": (None, "None"), "factor": (2,), "mode": ("nearest",)}
    usual |= {"kernel": (2,), "stride": (2,), "padding": (0,)}
    for name, value in call.given.items():
        if name != "c" and value not in usual[name]:
            raise call.row.error(f"{name} must be {usual[name][0]}, got {value!r}")
    channels, stride = call.inputs[0]
    if stride % 2:
        raise call.row.error("nothing is larger than the image: it cannot be upsampled")
    kind = "transposed" if call.row.module == TRANSPOSED else "nearest"
    return Upsample(kind), _Map(channels, stride // 2)


def _concat(call: _Call) -> _Meaning:
    if call.given["dimension"] != 1:
        raise call.row.error(f"concatenates channels, dimension 1, got {call.given['dimension']}")
    _check_sizes(call)
    channels = sum(each.channels for each in call.inputs)
    return Concat(len(call.inputs)), _Map(channels, call.inputs[0].stride)


def _sum(call: _Call) -> _Meaning:
    _check_sizes(call)
    if len({each.channels for each in call.inputs}) > 1:
        raise call.row.error(f"adds maps of different channels: {call.shapes}")
    return Sum(len(call.inputs)), call.inputs[0]


def _check_sizes(call: _Call) -> None:
    if len({each.stride for each in call.inputs}) > 1:
        names = (
            f"{call.shape(index)} from layer {source}"
            for index, source in enumerate(call.row.sources)
        )
        raise call.row.error(f"joins maps of different sizes: {' and '.join(names)}")


def _detection(call: _Call) -> _Meaning:
    strides = [each.stride for each in call.inputs]
    if strides != [STRIDES[level] for level in LEVELS]:
        raise call.row.error(
            f"takes P3, P4, P5, of strides 8, 16, 32; got strides {', '.join(map(str, strides))}, "
            f"shapes {call.shapes}"
        )
    stated, known = call.given["classes"], call.context.classes
    classes = known if stated == "nc" else stated
    if classes is None or classes != (known or classes):
        raise call.row.error(f"tells {stated} classes apart, and nc is {known}", "Write [nc].")
    kind = {module: kind for kind, module in HEADS.items()}[call.row.module]
    fields = call.given["fields"]
    if fields is None:
        fields = yolov8_head(call.inputs[0].channels, classes)
    elif "kind" in fields:
        raise call.row.error("the module says the kind of head", "Remove the key 'kind'.")
    widths = {
        str(name): tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return Detection(classes, call.record(Head, kind=kind, **widths)), _Map(0, 0)


def _integer(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


_WIDTH = _Kind("a number of channels", lambda value: _integer(value) and value > 0)
_COUNT = _Kind("a positive integer", lambda value: _integer(value) and value > 0)
_NATURAL = _Kind("an integer", _integer)
_FLAG = _Kind("True or False", lambda value: type(value) is bool)
_WORD = _Kind("a word", lambda value: isinstance(value, str))
_ANY = _Kind("anything", lambda value: True)  # noqa: ARG005 - a value is what is asked about
_FACTOR = _Kind(
    "a positive number", lambda value: type(value) in (int, float) and 0 < value <= LARGEST
)
_KERNELS = _Kind(
    "a list of integers",
    lambda value: isinstance(value, list | tuple) and all(map(_integer, value)),
)
_CLASSES = _Kind("nc or a number", lambda value: value == "nc" or _COUNT.holds(value))
_FIELDS = _Kind("a mapping", lambda value: isinstance(value, Mapping))

_C = _Parameter("c", _WIDTH, scaled=True)
_GATE = _Parameter("gate", _WORD, "learned")


@cache
def _modules() -> dict[str, _Module]:
    """Return every module that a list may name."""
    convolution = _Module(
        (
            _C,
            _Parameter("kernel", _COUNT, 1),
            _Parameter("stride", _COUNT, 1),
            _Parameter("padding", _NATURAL, None),
            _Parameter("groups", _COUNT, 1),
            _Parameter("dilation", _COUNT, 1),
            _Parameter("activated", _FLAG, default=True),
        ),
        _convolution,
    )
    found = dict.fromkeys(CONVOLUTIONS.values(), convolution)
    found |= _fusions() | _poolings() | _attentions()
    found[UPSAMPLE] = _Module(
        tuple(_Parameter(name, _ANY) for name in ("size", "factor", "mode")), _upsample
    )
    found[TRANSPOSED] = _Module(
        (
            _C,
            _Parameter("kernel", _COUNT),
            _Parameter("stride", _COUNT),
            _Parameter("padding", _NATURAL, 0),
        ),
        _upsample,
    )
    found["Concat"] = _Module((_Parameter("dimension", _NATURAL, 1),), _concat, (2, 3))
    found["WeightedSum"] = _Module((), _sum, (2, 3))
    head = (_Parameter("classes", _CLASSES), _Parameter("fields", _FIELDS, None))
    return found | dict.fromkeys(HEADS.values(), _Module(head, _detection, (3, 3)))


def _fusions() -> dict[str, _Module]:
    c2f = (
        _C,
        _Parameter("shortcut", _FLAG, default=False),
        _Parameter("groups", _COUNT, 1),
        _Parameter("expansion", _FACTOR, 0.5),
    )
    csp = (
        _C,
        _Parameter("hidden", _WIDTH, scaled=True),
        _Parameter("shortcut", _FLAG, default=True),
        _Parameter("concat_intermediates", _FLAG, default=False),
    )
    names = [BLOCKS.get(block, block) for block in plugins.names("blocks")]
    found = {name: _Module(csp, _csp, repeats=True) for name in names}
    return found | {BLOCKS["c2f"]: _Module(c2f, _c2f, repeats=True)}


def _poolings() -> dict[str, _Module]:
    hidden = _Parameter("hidden", _WIDTH, None, scaled=True)
    chained = (_C, _Parameter("kernels", _COUNT, 5), hidden)
    parallel = (_C, _Parameter("kernels", _KERNELS, (5, 9, 13)), hidden)
    return {"SPPF": _Module(chained, _pooling), "SPP": _Module(parallel, _pooling)}


def _attentions() -> dict[str, _Module]:
    tokens = _Parameter("tokens", _COUNT)
    selection = _Parameter("selection", _WORD)
    gated = _Module((_C, tokens), _attention("sparse"))
    sparse = _Module((_C, tokens, selection, _GATE), _attention("sparse"))
    found = {"SparseGlobalBlockGated": gated, "SparseGlobalBlock": sparse}
    for kind, (module, size) in ATTENTION.items():
        sizes = (_Parameter(size, _COUNT),) if size else ()
        found[module] = _Module((_C, *sizes, _GATE), _attention(kind))
    return found
