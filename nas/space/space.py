"""A search space: an architecture with holes, and what may fill them.

`space_file.py` shows how one is written. A token count that a choice gives means all positions
where a smaller map has fewer; one that the architecture states must fit every map that it meets.

A point of the space maps every choice to a *label*: the option as a plain scalar that a database or
a dashboard can show. Several points may describe one network (attention to 64 of 64 tokens is
dense attention; without insertion, k has no effect): compare candidates by digest, not points.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nas.errors import ArchitectureError, InputError, SpaceError, UnknownNameError
from nas.space.architecture import Architecture, Candidate, digest_of, validation_message
from nas.space.attention import LARGEST_TOPK, fit
from nas.space.references import Description, Reference, flatten
from nas.space.space_file import Label, Option, SpaceFile
from nas.space.yaml_file import Document, parse_yaml, read_yaml

__all__ = ["Point", "SearchSpace", "load_space", "shipped_spaces"]

Point = Mapping[str, Label]

_ANY_CLASSES = 1  # options are checked before the data set, and so the classes, are known


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
    options: Mapping[str, Mapping[Label, Option]]
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
        return tuple(dict.fromkeys(self._values(self._template["precision"])))

    def within(self, precisions: Collection[str]) -> SearchSpace:
        """Return the part of the space whose candidates have one of these precisions.

        An anchor whose precision is left out takes the last one that stays: the most exact.

        Raises:
            SpaceError: nothing stays.
        """
        reference = Reference.of(self._template["precision"])
        kept = [one for one in self.precisions if one in precisions]
        if not kept:
            raise SpaceError(
                f"The space {self.name!r} is in {', '.join(self.precisions)}, of which nothing "
                f"can run here: {', '.join(precisions)} can.",
                "Choose another runtime, or another space.",
            )
        if len(kept) == len(self.precisions) or reference is None:
            return self
        name, point = reference.choice, self.anchors["max"]
        options = {
            label: option
            for label, option in self.options[name].items()
            if self._fill(self._template["precision"], {**point, name: label}) in kept
        }
        *_, last = options
        anchors = {
            anchor: point if point[name] in options else {**point, name: last}
            for anchor, point in self.anchors.items()
        }
        lowest = {"min": {**self.anchors["min"], name: next(iter(options))}}
        return replace(self, options={**self.options, name: options}, anchors={**anchors, **lowest})

    def in_precisions(self, precisions: Sequence[str]) -> SearchSpace:
        """Return the same networks in these precisions, whatever the space says itself.

        Args:
            precisions: from the fastest to the most exact; with several, each is a candidate's
                choice.

        Raises:
            SpaceError: none is named, or the space has another choice of that name.
        """
        names = tuple(dict.fromkeys(precisions))
        before = Reference.of(self._template["precision"])
        options = {
            name: one for name, one in self.options.items() if not self._only_for(before, name)
        }
        if not names or "precision" in options:
            raise SpaceError(
                f"The precisions of the space {self.name!r} cannot be set to {list(names)}: "
                "at least one is needed, and none of its choices may be called 'precision'.",
                "Name a precision, or write them into the space.",
            )
        added: dict[str, Mapping[Label, Option]] = {}
        stated = names[0]
        if len(names) > 1:
            added, stated = {"precision": {name: name for name in names}}, "$precision"
        anchors = {
            anchor: {
                **{name: label for name, label in point.items() if name in options},
                **dict.fromkeys(added, names[0 if anchor == "min" else -1]),
            }
            for anchor, point in self.anchors.items()
        }
        template = {**self._template, "precision": stated}
        return replace(self, options={**options, **added}, anchors=anchors, _template=template)

    def _only_for(self, precision: Reference | None, name: str) -> bool:
        """Whether a choice says the precision and nothing else."""
        if precision is None or precision.choice != name:
            return False
        rest = {**self._template, "precision": None}
        users = [rest, *(one for other, one in self.options.items() if other != name)]
        return not any(
            name == one.choice for node in users for one in Reference.within(node).values()
        )

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
        architecture = Architecture.parse(self._fitted({**filled, "classes": classes}))
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
        Some tensors exist beside other options than the largest only (the scores of a learned
        selection, once not all positions are selected), so the search goes on from every point
        with a trait that no nearer point has.
        """
        largest = self.anchors["max"]
        first = self.candidate(largest, classes).architecture
        found, seen = {first.digest: first}, _traits(_plain(first))
        reached, frontier, beside = {tuple(largest.values())}, [largest], True
        while frontier:
            fresh: list[tuple[Point, Architecture]] = []
            for point in self._next_to(frontier, reached):
                architecture = self._buildable(point, classes)
                if architecture and (beside or _traits(_plain(architecture)) - seen):
                    fresh.append((point, architecture))
            for _, architecture in fresh:
                found.setdefault(architecture.digest, architecture)
                seen |= _traits(_plain(architecture))
            frontier, beside = [point for point, _ in fresh], False
        return list(found.values())

    def point_of(self, candidate: Candidate) -> dict[str, Label] | None:
        """Find a point that describes a candidate, or None if it lies outside the space.

        Choices are settled one after the other, again and again while that brings the description
        nearer; from another anchor, should it end elsewhere.
        """
        for start in self.anchors.values():
            point = self._approach(start, candidate)
            if point is not None:
                return point
        return None

    def contains(self, candidate: Candidate) -> bool:
        """Whether some point describes the candidate."""
        return self.point_of(candidate) is not None

    def revealing(self, name: str) -> dict[str, Label]:
        """Return the point nearest to `max` at which a choice is read.

        It is `max` itself unless only other options of other choices refer to the choice.
        """
        point = dict(self.anchors["max"])
        read: set[str] = set()
        self._fill(self._template, point, read)
        if name in read:
            return point
        parent, label = next(
            (parent, label)
            for parent, options in self.options.items()
            for label in reversed(options)
            if any(name == one.choice for one in Reference.within(options[label]).values())
        )
        return {**self.revealing(parent), parent: label}

    def _next_to(self, points: Iterable[Point], reached: set[Any]) -> Iterator[Point]:
        """Yield the neighbours of points that were not reached before."""
        for point in points:
            for other in self.neighbours(point):
                key = tuple(other.values())
                if key not in reached:
                    reached.add(key)
                    yield other

    def _buildable(self, point: Point, classes: int) -> Architecture | None:
        try:
            return self.candidate(point, classes).architecture
        except InputError:
            return None

    def _approach(self, start: Point, candidate: Candidate) -> dict[str, Label] | None:
        point, left, before = dict(start), self._distance(start, candidate), math.inf
        while 0 < left < before:
            before = left
            for name, labels in self.choices.items():
                for label in labels:
                    other = {**point, name: label}
                    distance = self._distance(other, candidate)
                    if distance < left:
                        point, left = other, distance
        return None if left else point

    def _distance(self, point: Point, candidate: Candidate) -> float:
        """Count the fields in which what the point describes differs; infinite if it is nothing."""
        wanted = candidate.architecture
        try:
            found = self.candidate(point, wanted.classes)
        except InputError:
            return math.inf
        wrong = _differences(flatten(_plain(found.architecture)), flatten(_plain(wanted)))
        return wrong + (found.precision != candidate.precision)

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

    def _fill(self, node: Any, point: Point, read: set[str] | None = None) -> Any:
        if isinstance(node, Mapping):
            return {key: self._fill(value, point, read) for key, value in node.items()}
        if isinstance(node, list):
            return [self._fill(value, point, read) for value in node]
        reference = Reference.of(node)
        if reference is None:
            return node
        if read is not None:
            read.add(reference.choice)
        label = point[reference.choice]
        value = self.options[reference.choice][label]
        for name in reference.fields:
            if isinstance(value, str):  # perhaps itself a reference
                value = self._fill(value, point, read)
            value = reference.take(value, name, label)
        return self._fill(value, point, read)

    def _values(self, node: Any) -> Iterator[Any]:
        """Yield everything that a node may be filled with."""
        reference = Reference.of(node)
        if reference is None:
            yield node
            return
        for label, option in self.options[reference.choice].items():
            values = [option]
            for name in reference.fields:
                filled = (one for value in values for one in self._values(value))
                values = [reference.take(one, name, label) for one in filled]
            for value in values:
                yield from self._values(value)

    def _fitted(self, data: dict[str, Any]) -> dict[str, Any]:
        """Let a choice of k mean all tokens where a small input has fewer."""
        attention, size = data.get("attention"), _size(data.get("input"))
        if not isinstance(attention, Mapping) or size is None:
            return data
        stated = self._template["attention"]
        chosen = {
            level: point
            for level, point in attention.items()
            if not _has_tokens(stated, level) and _within_topk(point)
        }
        return {**data, "attention": {**attention, **fit(chosen, size)}}


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
    file = SpaceFile.of(document)
    space = SearchSpace(file.name, file.description, file.options, file.anchors, file.template)
    _check_every_option(space, document)
    return space


def _check_every_option(space: SearchSpace, document: Document) -> None:
    """Build every anchor and every option beside the largest others: a typo costs no training."""
    points = {f"the anchor {name!r}": point for name, point in space.anchors.items()}
    for name, labels in space.choices.items():
        beside = space.revealing(name)
        for label in labels:
            points[f"the option {label!r} of the choice {name!r}"] = {**beside, name: label}
    for what, point in points.items():
        try:
            space.candidate(point, _ANY_CLASSES)
        except (ArchitectureError, SpaceError) as error:
            raise SpaceError(
                f"{document.name}: {what} cannot be built: {error.message}", error.remedy
            ) from error


def _size(image: Any) -> tuple[int, int] | None:
    """Height and width of an input as the YAML states it, or None if it states nonsense."""
    sides = [image, image] if isinstance(image, int) else image
    if not isinstance(sides, list) or len(sides) != 2:
        return None
    return (sides[0], sides[1]) if all(isinstance(side, int) for side in sides) else None


def _has_tokens(attention: Any, level: str) -> bool:
    point = attention.get(level) if isinstance(attention, Mapping) else None
    return isinstance(point, Mapping) and isinstance(point.get("tokens"), int)


def _within_topk(point: Any) -> bool:
    tokens = point.get("tokens") if isinstance(point, Mapping) else None
    return not isinstance(tokens, int) or tokens <= LARGEST_TOPK


def _plain(architecture: Architecture) -> dict[str, Any]:
    return architecture.model_dump(mode="json")


def _traits(node: Any, path: tuple[str, ...] = (), around: tuple[object, ...] = ()) -> set[Any]:
    """Collect what decides which tensors a network has.

    That is, of every record, its words (kinds, blocks, switches) together with those of the records
    around it, and every number alone: tensors are named after words, and grow with numbers.
    """
    items = list(node.items() if isinstance(node, Mapping) else enumerate(node))
    words = (*around, *(item for item in items if isinstance(item[1], str | bool)))
    found: set[Any] = {(path, words)}
    for key, value in items:
        inner = (*path, str(key))
        if isinstance(value, Mapping | list):
            found |= _traits(value, inner, words)
        elif isinstance(value, int) and not isinstance(value, bool):
            found.add((inner, value))
    return found


def _differences(a: Description, b: Description) -> int:
    return sum(a.get(path) != b.get(path) for path in a.keys() | b.keys())
