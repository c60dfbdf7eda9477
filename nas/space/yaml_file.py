"""YAML as people write it, read by `safe_load`, with the line of every key kept for errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nas.errors import InputError

__all__ = ["Document", "parse_yaml", "read_yaml"]

_LARGEST_BYTES = 1_000_000


@dataclass(frozen=True)
class Document:
    """What a file says, and the line (1-based) at which it says it.

    Attributes:
        name: the file's name, for messages.
        data: mappings, lists and scalars.
        lines: path of keys and indices -> line.
    """

    name: str
    data: dict[str, Any]
    lines: dict[tuple[str, ...], int]

    def where(self, path: tuple[str, ...]) -> str:
        """Say where a path stands: `file.yaml, line 12`, of its nearest parent if need be."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}, line {self.lines[path]}" if path in self.lines else self.name


def read_yaml(path: Path, error: type[InputError]) -> Document:
    """Read a file whose top level is a mapping.

    Raises:
        error: the file is missing, unreadable, too large, or not such YAML; says the line.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise error(f"{path} is larger than {_LARGEST_BYTES} bytes.", "Is it the right file?")
        text = path.read_text(encoding="utf-8")
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}.", "Check the path.") from failure
    except UnicodeDecodeError as failure:
        raise error(f"{path} is not UTF-8 text.", "Is it a YAML file?") from failure
    return parse_yaml(text, str(path), error)


def parse_yaml(text: str, name: str, error: type[InputError]) -> Document:
    """Parse text whose top level is a mapping; raises like `read_yaml`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise error(f"{where}: this is not YAML: {failure.problem}.", "Mend the line.") from failure
    except (yaml.YAMLError, ValueError, RecursionError) as failure:
        raise error(f"{name} is not YAML: {failure}.", "Mend the file.") from failure
    if not isinstance(data, dict):
        raise error(f"{name} must hold a mapping at its top level, got {type(data).__name__}.")
    lines: dict[tuple[str, ...], int] = {}
    _collect(node, (), lines, name, error)
    return Document(name, data, lines)


def _collect(
    node: yaml.Node | None,
    path: tuple[str, ...],
    lines: dict[tuple[str, ...], int],
    name: str,
    error: type[InputError],
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if (*path, key.value) in lines:
                # YAML forbids it; safe_load would silently keep the last one.
                where = f"{name}, line {line}"
                raise error(f"{where}: the key {key.value!r} stands twice.", "Keep one.")
            lines[(*path, key.value)] = line
            _collect(value, (*path, key.value), lines, name, error)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, str(index))] = value.start_mark.line + 1
            _collect(value, (*path, str(index)), lines, name, error)
