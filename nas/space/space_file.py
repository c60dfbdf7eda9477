"""What the YAML of a search space says: its choices by their labels, its template and its anchors.

It names its choices once and refers to them as `$name` wherever the architecture, or the precision,
leaves something open; two references to one name are filled alike. An option may be a number, a
word, nothing (`null`) or a whole record::

    choices:
      input: [320, 640]                                # labels are derived: 320 and 640
      insertion:                                       # or given: none and P5
        none: {}
        P5: {P5: {tokens: $k}}                         # an option may refer to other choices
      k: [16, 64]
      width: {small: {p3: 32, p4: 64}, large: {p3: 64, p4: 128}}
    architecture:
      input: $input
      attention: $insertion
      backbone: {P3: {channels: $width.p3, ...}, ...}  # one field of a record

Options are written from small to large: the first ones together are the anchor `min`, the last ones
`max`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas.errors import SpaceError, nearest
from nas.space.architecture import validation_message
from nas.space.references import check_references
from nas.space.yaml_file import Document

__all__ = ["Label", "Option", "SpaceFile"]

Label = bool | int | float | str
Option = Any  # a scalar, None, or plain data of a record


class _Schema(BaseModel):
    """The top level of the YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    choices: dict[str, Any] = Field(min_length=1)
    precision: str = "fp32"
    architecture: dict[str, Any]
    anchors: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class SpaceFile:
    """What a file says, checked as far as that goes without building a network.

    Attributes:
        name: letters, digits and underscores.
        description: one sentence for a person.
        options: choice -> label -> option, both in the order of the file.
        anchors: name -> the label of every choice; always holds `min` and `max`.
        template: the architecture with its references, and its precision.
    """

    name: str
    description: str
    options: Mapping[str, Mapping[Label, Option]]
    anchors: Mapping[str, Mapping[str, Label]]
    template: Mapping[str, Any]

    @classmethod
    def of(cls, document: Document) -> SpaceFile:
        """Read a document.

        Raises:
            SpaceError: it breaks a rule; the message says the line.
        """
        file = _parse(document)
        options = {name: _labelled(name, one, document) for name, one in file.choices.items()}
        template = {**file.architecture, "precision": file.precision}
        if "classes" in template:
            raise SpaceError(
                f"{document.where(('architecture', 'classes'))}: the data set decides the classes.",
                "Remove the line.",
            )
        check_references(options, document)
        return cls(file.name, file.description, options, _anchors(file, options), template)


def _parse(document: Document) -> _Schema:
    _refuse_unknown_keys(document)
    try:
        return _Schema.model_validate(document.data)
    except ValidationError as error:
        raise SpaceError(
            f"This is not a search space: {validation_message(error, document)}."
        ) from error


def _anchors(
    file: _Schema, options: Mapping[str, Mapping[Label, Option]]
) -> dict[str, dict[str, Label]]:
    lowest = {name: next(iter(labels)) for name, labels in options.items()}
    highest = {name: list(labels)[-1] for name, labels in options.items()}
    named = {
        name: {**lowest, **{choice: _label(value) for choice, value in point.items()}}
        for name, point in file.anchors.items()
    }
    return {"min": lowest, "max": highest, **named}


def _refuse_unknown_keys(document: Document) -> None:
    known = _Schema.model_fields
    for key in document.data:
        if key not in known:
            hint = nearest(str(key), known)
            raise SpaceError(
                f"{document.where((str(key),))}: unknown key {key!r}.",
                (f"Did you mean {hint!r}? " if hint else "") + f"Known: {', '.join(known)}.",
            )


def _labelled(name: str, values: Any, document: Document) -> dict[Label, Option]:
    where = document.where(("choices", name))
    if isinstance(values, Mapping):
        pairs = [(_label(label), option) for label, option in values.items()]
    elif isinstance(values, list):
        pairs = [(_label(option), option) for option in values]
    else:
        raise SpaceError(
            f"{where}: the choice {name!r} is neither a list of options nor a mapping of labels to "
            f"options, got {values!r}.",
            f"Write [{values}] for a single option.",
        )
    if not pairs:
        raise SpaceError(f"{where}: the choice {name!r} has no options.", "Give at least one.")
    labelled = dict(pairs)
    if len(labelled) != len(pairs):
        labels = [label for label, _ in pairs]
        twice = next(label for label in labels if labels.count(label) > 1)
        raise SpaceError(
            f"{where}: the choice {name!r} has two equal options, or two of the label {twice!r}.",
            "Remove one, or give labels: {label: option, ...}.",
        )
    return labelled


def _label(option: Option) -> Label:
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
