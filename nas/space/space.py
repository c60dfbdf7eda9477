"""A search space: an architecture with holes, and what may fill them.

The YAML names its choices once and refers to them as `$name` wherever the architecture, or the
precision, leaves something open; two references to one name are filled alike. An option may be a
number, a word, nothing (`null`) or a whole record. Options are written from small to large: the
first ones together are the anchor `min`, the last ones `max`.

A point of the space maps every choice to a *label*: the option as a plain scalar that a database or
a dashboard can show. Several points may describe one network (attention to 64 of 64 tokens is
dense attention): compare candidates by digest, not points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas.errors import ArchitectureError, SpaceError, UnknownNameError, nearest
from nas.space.architecture import Architecture, Candidate, digest_of, validation_message
from nas.space.attention import fit
from nas.space.yaml_file import Document, parse_yaml, read_yaml

__all__ = ["Label", "Point", "SearchSpace", "load_space", "shipped_spaces"]

Label = bool | int | float | str
Point = Mapping[str, Label]

_Option = Any  # a scalar, None, or plain data of a record
_ANY_CLASSES = 1  # options are checked before the data set, and so the classes, are known


class _SpaceFile(BaseModel):
    """The top level of the YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    choices: dict[str, list[Any]] = Field(min_length=1)
    precision: str = "fp32"
    architecture: dict[str, Any]
    anchors: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """What may be searched; build it by `load_space`.

    Attributes:
        name: letters, digits and underscores.
        description: one sentence for a person.
        options: choice -> label -> option, both in the order of the file.
        anchors: name -> point; always holds `min` and `max`.
    """

    name: str
    description: str
    options: Mapping[str, Mapping[Label, _Option]]
    anchors: Mapping[str, Point]
    _template: Mapping[str, Any] = field(repr=False)

    @property
    def choices(self) -> dict[str, tuple[Label, ...]]:
        """The labels of every choice, from small to large."""
        return {name: tuple(options) for name, options in self.options.items()}

    @property
    def size(self) -> int:
        """The number of points: an upper bound of the number of candidates."""
        return math.prod(len(options) for options in self.options.values())

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that candidates can have."""
        name = _reference(self._template["precision"])
        return tuple(self.options[name].values()) if name else (self._template["precision"],)

    @cached_property
    def digest(self) -> str:
        """Changes with anything that could change what a point means; not with the description."""
        options = {name: list(options.items()) for name, options in self.options.items()}
        return digest_of([self.name, options, dict(self._template)])

    def candidate(self, point: Point, classes: int) -> Candidate:
        """Build what a point describes, for a data set of so many classes.

        Raises:
            SpaceError: a choice is missing, unknown, or given a label that it does not have.
            ArchitectureError: the options do not go together.
        """
        self._check(point)
        filled = self._fill(self._template, point)
        precision = filled.pop("precision")
        architecture = Architecture.parse(_fitted({**filled, "classes": classes}))
        try:
            return Candidate(architecture=architecture, precision=precision)
        except ValidationError as error:
            raise SpaceError(f"Space {self.name!r}: {validation_message(error)}.") from error

    def sample(self, generator: np.random.Generator) -> dict[str, Label]:
        """Draw a point uniformly."""
        return {
            name: labels[int(generator.integers(len(labels)))]
            for name, labels in self.choices.items()
        }

    def neighbours(self, point: Point) -> Iterator[dict[str, Label]]:
        """Yield every point that differs from `point` in exactly one choice."""
        for name, labels in self.choices.items():
            for label in labels:
                if label != point[name]:
                    yield {**point, name: label}

    def covering(self, classes: int) -> list[Architecture]:
        """Return architectures that together hold every option beside the largest others.

        Their tensors are as large as any in the space: weights shared by all are made from them.
        """
        largest = self.anchors["max"]
        points = [largest, *self.neighbours(largest)]
        unique = {
            architecture.digest: architecture
            for architecture in (self.candidate(point, classes).architecture for point in points)
        }
        return list(unique.values())

    def point_of(self, candidate: Candidate) -> dict[str, Label] | None:
        """Find a point that describes a candidate, or None if it lies outside the space.

        Choices are settled one after the other. That suffices because the only options that look at
        another choice are token counts, which look at the input size, and those are settled last.
        """
        classes = candidate.architecture.classes
        wanted = _flatten(_plain(candidate))
        point = dict(self.anchors["min"])
        for name in sorted(self.choices, key=self._looks_at_input):
            point[name] = min(
                self.choices[name],
                key=lambda label, name=name: _differences(  # type: ignore[misc]
                    _flatten(_plain(self.candidate({**point, name: label}, classes))), wanted
                ),
            )
        return point if self.candidate(point, classes).digest == candidate.digest else None

    def contains(self, candidate: Candidate) -> bool:
        """Whether some point describes the candidate."""
        return self.point_of(candidate) is not None

    def _looks_at_input(self, name: str) -> bool:
        return any(isinstance(option, dict) for option in self.options[name].values())

    def _check(self, point: Point) -> None:
        for name in point:
            if name not in self.options:
                raise SpaceError(str(UnknownNameError.of("choice", name, self.options)))
        for name, options in self.options.items():
            if name not in point:
                raise SpaceError(f"The choice {name!r} of space {self.name!r} is not made.")
            if point[name] not in options:
                known = ", ".join(str(label) for label in options)
                raise SpaceError(
                    f"The choice {name!r} has no option {point[name]!r}.", f"Known: {known}."
                )

    def _fill(self, node: Any, point: Point) -> Any:
        if isinstance(node, Mapping):
            return {key: self._fill(value, point) for key, value in node.items()}
        if isinstance(node, list):
            return [self._fill(value, point) for value in node]
        name = _reference(node)
        return node if name is None else self.options[name][point[name]]


def shipped_spaces() -> tuple[str, ...]:
    """List the names of the spaces that come with the package."""
    folder = resources.files("nas.search_spaces")
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")))


def load_space(name_or_path: str) -> SearchSpace:
    """Read a shipped space by name, or any by the path of its YAML file.

    Raises:
        SpaceError: the file cannot be read, or breaks a rule; the message says the line.
        UnknownNameError: neither a shipped name nor a file.
    """
    if name_or_path in shipped_spaces():
        text = (resources.files("nas.search_spaces") / f"{name_or_path}.yaml").read_text("utf-8")
        return _build(parse_yaml(text, f"{name_or_path}.yaml", SpaceError))
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return _build(read_yaml(Path(name_or_path), SpaceError))
    raise UnknownNameError.of("search space", name_or_path, shipped_spaces())


def _build(document: Document) -> SearchSpace:
    _refuse_unknown_keys(document)
    try:
        file = _SpaceFile.model_validate(document.data)
    except ValidationError as error:
        raise SpaceError(
            f"This is not a search space: {validation_message(error, document)}."
        ) from error
    options = {name: _labelled(name, values, document) for name, values in file.choices.items()}
    template = {**file.architecture, "precision": file.precision}
    if "classes" in template:
        raise SpaceError(
            f"{document.where(('architecture', 'classes'))}: the data set decides the classes.",
            "Remove the line.",
        )
    _check_references(template, options, document)
    lowest = {name: next(iter(labels)) for name, labels in options.items()}
    highest = {name: list(labels)[-1] for name, labels in options.items()}
    named = {
        name: {**lowest, **{choice: _label(value) for choice, value in point.items()}}
        for name, point in file.anchors.items()
    }
    anchors = {"min": lowest, "max": highest, **named}
    space = SearchSpace(file.name, file.description, options, anchors, template)
    _check_every_option(space, document)
    return space


def _refuse_unknown_keys(document: Document) -> None:
    known = _SpaceFile.model_fields
    for key in document.data:
        if key not in known:
            hint = nearest(str(key), known)
            raise SpaceError(
                f"{document.where((str(key),))}: unknown key {key!r}.",
                (f"Did you mean {hint!r}? " if hint else "") + f"Known: {', '.join(known)}.",
            )


def _labelled(name: str, values: list[_Option], document: Document) -> dict[Label, _Option]:
    where = document.where(("choices", name))
    if not values:
        raise SpaceError(f"{where}: the choice {name!r} has no options.", "Give at least one.")
    labelled = {_label(value): value for value in values}
    if len(labelled) != len(values):
        raise SpaceError(f"{where}: the choice {name!r} has two equal options.", "Remove one.")
    return labelled


def _label(option: _Option) -> Label:
    """Name an option by a scalar: `{kind: sparse, tokens: 16}` becomes `sparse-16`."""
    if option is None:
        return "none"
    if isinstance(option, Mapping):
        return "-".join(str(_label(value)) for value in option.values()) or "default"
    if isinstance(option, list):
        return "-".join(str(_label(value)) for value in option)
    if isinstance(option, bool | int | float | str):
        return option
    return str(option)


def _reference(node: Any) -> str | None:
    return node[1:] if isinstance(node, str) and node.startswith("$") else None


def _check_references(
    template: Mapping[str, Any], options: Mapping[str, object], document: Document
) -> None:
    used = set()
    for path, value in _flatten(template).items():
        name = _reference(value)
        if name is None:
            continue
        if name not in options:
            where = document.where(("architecture", *path))
            unknown = UnknownNameError.of("choice", name, options)
            raise SpaceError(f"{where}: {unknown.message}", unknown.remedy)
        used.add(name)
    for name in options:
        if name not in used:
            raise SpaceError(
                f"{document.where(('choices', name))}: nothing refers to the choice {name!r}.",
                f"Write ${name} where it belongs, or remove it.",
            )


def _check_every_option(space: SearchSpace, document: Document) -> None:
    """Build every anchor and every option beside the largest others: a typo costs no training."""
    largest = space.anchors["max"]
    for point in [*space.anchors.values(), *space.neighbours(largest)]:
        try:
            space.candidate(point, _ANY_CLASSES)
        except (ArchitectureError, SpaceError) as error:
            edits = {name: label for name, label in point.items() if label != largest.get(name)}
            names = json.dumps(edits) if edits else "max"
            raise SpaceError(
                f"{document.name}: the point {names} cannot be built: {error.message}", error.remedy
            ) from error


def _fitted(data: dict[str, Any]) -> dict[str, Any]:
    """Let a choice of k mean all tokens where a small input has fewer."""
    attention, image = data.get("attention"), data["input"]
    if not isinstance(attention, Mapping):
        return data
    size = (image, image) if isinstance(image, int) else (image[0], image[1])
    return {**data, "attention": fit(attention, size)}


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {**candidate.architecture.model_dump(mode="json"), "precision": candidate.precision}


def _flatten(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        return {path: node}
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in items:
        flat |= _flatten(value, (*path, str(key)))
    return flat


def _differences(a: Mapping[tuple[str, ...], Any], b: Mapping[tuple[str, ...], Any]) -> int:
    return sum(a.get(path) != b.get(path) for path in a.keys() | b.keys())
