"""The fields of a recipe by name, such as `peak_lr` or `loss.box`: listed, read as text, changed.

A recipe file is YAML with exactly these fields, all of them optional; nested ones are mappings:

    peak_lr: 0.005
    distillation: {logits: 1.0}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

from nas.accuracy.assigner import TaskAlignedAssigner
from nas.accuracy.augment import Augmentation
from nas.accuracy.recipe import Recipe
from nas.errors import InputError, UnknownNameError
from nas.space.yaml_file import Document, read_yaml

__all__ = [
    "Value",
    "field_value",
    "parse_field",
    "read_recipe",
    "recipe_fields",
    "with_fields",
]

Value = bool | int | float | str


def recipe_fields() -> dict[str, Any]:
    """List the fields with their types; `loss.box` is nested."""
    fields: dict[str, Any] = {}
    for name, kind in get_type_hints(Recipe).items():
        if dataclasses.is_dataclass(kind):
            fields |= {f"{name}.{part}": of for part, of in get_type_hints(kind).items()}
        else:
            fields[name] = kind
    return fields


def field_value(recipe: Recipe, name: str) -> object:
    """Return what a recipe has in a field."""
    value: object = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


def parse_field(name: str, text: str) -> Value:
    """Read the text of a field's value: a number, a truth value, a word, or any text.

    Raises:
        InputError: no such field, or not a value of its type.
    """
    fields = recipe_fields()
    if name not in fields:
        raise UnknownNameError.of("recipe field", name, fields)
    kind = fields[name]
    if kind is str:
        return text
    words = {"true": True, "false": False} if kind is bool else {w: w for w in get_args(kind)}
    if words:
        if text.lower() not in words:
            raise UnknownNameError.of(f"value of {name!r}", text, words)
        return words[text.lower()]
    try:
        number = int(text) if kind is int else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"The recipe's {name!r} is {what}, got {text!r}.")
    return number


def with_fields(recipe: Recipe, values: Mapping[str, Value]) -> Recipe:
    """Return a recipe with other values in some fields.

    Raises:
        InputError: a value that a field cannot have, or that do not go together.
    """
    edits: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        outer, _, inner = name.partition(".")
        edits.setdefault(outer, {})[inner] = value
    replaced = {
        outer: inner[""] if "" in inner else dataclasses.replace(getattr(recipe, outer), **inner)
        for outer, inner in edits.items()
    }
    changed = dataclasses.replace(recipe, **replaced)  # type: ignore[arg-type]
    # These check their part of a recipe only when a training begins.
    Augmentation(changed.zoom, changed.shift, changed.light, changed.contrast, changed.flip)
    TaskAlignedAssigner(changed.alpha, changed.beta, changed.topk)
    return changed


def read_recipe(path: Path) -> dict[str, Value]:
    """Read a recipe file: field -> value, of those that it names.

    Raises:
        InputError: it cannot be read, or a field or a value cannot be; the message says the line.
    """
    document = read_yaml(path, InputError)
    values: dict[str, Value] = {}
    for place, value in _leaves(document.data, ()):
        with _placed(document, place):
            values[".".join(place)] = _read_field(".".join(place), value)
    for group in document.data:
        named = {name: each for name, each in values.items() if name.partition(".")[0] == group}
        with _placed(document, (group,), named):
            with_fields(Recipe(), named)
    with _placed(document, (), values):
        with_fields(Recipe(), values)
    return values


def _leaves(data: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(value, (*place, str(key)))
    else:
        yield place, data


def _read_field(name: str, value: object) -> Value:
    if name == "seed":
        raise InputError("The seed is not part of a recipe file.", "Give it with --seed.")
    if parts := [each for each in recipe_fields() if each.startswith(f"{name}.")]:
        raise InputError(
            f"The recipe's {name!r} is a mapping of fields, got {value!r}.",
            f"Its fields are: {', '.join(part.partition('.')[2] for part in parts)}.",
        )
    if not isinstance(value, Value):
        raise InputError(f"The recipe's {name!r} has one value, got {value!r}.")
    if isinstance(value, bool) and get_args(recipe_fields().get(name)):
        value = "on" if value else "off"  # what YAML takes `off` for
    return parse_field(name, str(value))


@contextmanager
def _placed(
    document: Document, place: tuple[str, ...], values: Mapping[str, Value] = MappingProxyType({})
) -> Iterator[None]:
    """Say where an error stands, and of the recipe that broke the rule what the file says."""
    try:
        yield
    except InputError as error:
        rule, whole, _ = error.message.partition(", got Recipe(")
        said = ", ".join(f"{name}: {value}" for name, value in values.items())
        rule = rule.rstrip(".") + (f", got {said}" if whole else "")
        raise type(error)(f"{document.where(place)}: {rule}.", error.remedy) from error
