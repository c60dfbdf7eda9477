"""How the YAML of a search space refers to its choices: `$choice`, or `$choice.field` of a record.

Options may refer to further choices; what refers to itself, however indirectly, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nas.errors import SpaceError, UnknownNameError
from nas.space.yaml_file import Document

__all__ = ["Description", "Reference", "check_references", "flatten"]

Description = dict[tuple[str, ...], Any]
"""Plain data laid flat: path of keys and indices -> scalar."""

_MOST_LEVELS = 16
_PLACES = ("choices", "precision", "architecture")

_Choices = Mapping[str, Mapping[Any, Any]]


class Reference(NamedTuple):
    """`$choice`, or `$choice.field.subfield` of an option that is a record."""

    choice: str
    fields: tuple[str, ...]

    @classmethod
    def of(cls, node: Any) -> Reference | None:
        """Read a scalar of the YAML; anything that does not start with `$` is no reference."""
        if not (isinstance(node, str) and node.startswith("$")):
            return None
        choice, *fields = node[1:].split(".")
        return cls(choice, tuple(fields))

    @classmethod
    def within(cls, node: Any) -> dict[tuple[str, ...], Reference]:
        """Find all references under a node, by path."""
        found = {path: cls.of(value) for path, value in flatten(node).items()}
        return {path: reference for path, reference in found.items() if reference}

    def take(self, option: Any, name: str, label: object) -> Any:
        """Return a field of the option of that label.

        Raises:
            SpaceError: it has no such field.
        """
        if isinstance(option, Mapping) and name in option:
            return option[name]
        what = f"the option {label!r} of the choice {self.choice!r}"
        if not isinstance(option, Mapping):
            raise SpaceError(f"{what} has no fields, so no {name!r}, got {option!r}.")
        unknown = UnknownNameError.of("field", name, map(str, option))
        raise SpaceError(f"{what} has no field {name!r}.", unknown.remedy)


def check_references(options: _Choices, document: Document) -> None:
    """Refuse references to nothing, choices that nothing refers to, and circles of choices.

    Args:
        options: choice -> label -> option.
        document: the file, to name lines in errors.

    Raises:
        SpaceError: the first rule that is broken, with its line.
    """
    tree = {place: document.data[place] for place in _PLACES if place in document.data}
    references = Reference.within(tree)
    for path, reference in references.items():
        _check_reference(reference, options, document.where(path))
    used = {reference.choice for reference in references.values()}
    for name in options:
        if name not in used:
            raise SpaceError(
                f"{document.where(('choices', name))}: nothing refers to the choice {name!r}.",
                f"Write ${name} where it belongs, or remove it.",
            )
    _check_nesting(options, document)


def flatten(node: Any, path: tuple[str, ...] = ()) -> Description:
    """Lay plain data flat; empty mappings and lists leave nothing."""
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        return {path: node}
    flat: Description = {}
    for key, value in items:
        flat |= flatten(value, (*path, str(key)))
    return flat


def _check_reference(reference: Reference, options: _Choices, where: str) -> None:
    if reference.choice not in options:
        unknown = UnknownNameError.of("choice", reference.choice, options)
        raise SpaceError(f"{where}: {unknown.message}", unknown.remedy)
    try:
        for label, option in options[reference.choice].items():
            _take_all(reference, option, label)
    except SpaceError as error:
        raise SpaceError(f"{where}: {error.message}", error.remedy) from error


def _take_all(reference: Reference, option: Any, label: object) -> None:
    for name in reference.fields:
        if Reference.of(option):
            return  # its fields are known once that choice is made
        option = reference.take(option, name, label)


def _check_nesting(options: _Choices, document: Document) -> None:
    targets = {
        name: [reference.choice for reference in Reference.within(values).values()]
        for name, values in options.items()
    }
    settled: set[str] = set()
    for _ in range(_MOST_LEVELS):
        settled |= {name for name, others in targets.items() if settled.issuperset(others)}
    left = {
        name: [other for other in others if other not in settled]
        for name, others in targets.items()
        if name not in settled
    }
    if not left:
        return
    circle = _circle(left)
    where = document.where(("choices", circle[0]))
    if len(circle) == 1:
        raise SpaceError(
            f"{where}: choices refer to choices through more than {_MOST_LEVELS} levels.",
            "Nest them less deeply.",
        )
    shown = " -> ".join(f"${name}" for name in circle)
    raise SpaceError(f"{where}: choices refer to one another in a circle: {shown}.", "Break it.")


def _circle(targets: Mapping[str, Sequence[str]]) -> list[str]:
    """Follow references until a choice comes again; a single one if the trail ends before."""
    trail = [next(iter(targets))]
    while targets[trail[-1]]:
        name = targets[trail[-1]][0]
        if name in trail:
            return [*trail[trail.index(name) :], name]
        trail.append(name)
    return trail[:1]
