"""YAML as people write it, read by `safe_load`, with the line of every key kept for errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from nas.errors import InputError

__all__ = ["Document", "parse_yaml", "read_yaml"]

_LARGEST_BYTES = 1_000_000
_DEEPEST = 32  # levels; a search space needs 7
_MOST_ENTRIES = 100_000
_FLATTEN = "Write it flatter."


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
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines = _Lines(loader, name, error).of(node)
        data = None if node is None else loader.construct_document(node)
    except InputError:
        raise
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise error(f"{where}: this is not YAML: {failure.problem}.", "Mend the line.") from failure
    except RecursionError as failure:
        raise error(f"{name} is nested deeper than {_DEEPEST} levels.", _FLATTEN) from failure
    except (yaml.YAMLError, ValueError) as failure:
        raise error(f"{name} is not YAML: {failure}.", "Mend the file.") from failure
    if not isinstance(data, dict):
        raise error(
            f"{name} must hold a mapping at its top level, got {type(data).__name__}.",
            "Write keys and what they are, such as `name: mine`.",
        )
    return Document(name, data, lines)


class _Lines:
    """Collects the line of every key, and refuses what would not end or what YAML loses silently.

    Args:
        loader: that composed the file.
        name: of the file.
        error: what to raise.
    """

    def __init__(self, loader: yaml.SafeLoader, name: str, error: type[InputError]) -> None:
        self._loader, self._name, self._error = loader, name, error
        self._lines: dict[tuple[str, ...], int] = {}
        self._open: set[int] = set()

    def of(self, node: yaml.Node | None) -> dict[tuple[str, ...], int]:
        """Return the line of every path under a node.

        Raises:
            InputError: an alias stands within what it names, a key stands twice, a key is no
                scalar, or the file is nested too deeply or too large.
        """
        self._collect(node, ())
        return self._lines

    def _collect(self, node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.CollectionNode):
            return
        if id(node) in self._open:
            self._refuse(node, "an alias stands within what it names", "Write out what you mean.")
        if len(path) >= _DEEPEST:
            self._refuse(node, f"nested deeper than {_DEEPEST} levels", _FLATTEN)
        self._open.add(id(node))
        for key, line, value in self._items(node):
            self._lines[(*path, key)] = line
            if len(self._lines) > _MOST_ENTRIES:
                # Aliases of aliases: a few lines of text can stand for billions of entries.
                self._refuse(node, f"more than {_MOST_ENTRIES} entries", "Is it the right file?")
            self._collect(value, (*path, key))
        self._open.remove(id(node))

    def _items(self, node: yaml.CollectionNode) -> Iterator[tuple[str, int, yaml.Node]]:
        if isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield str(index), value.start_mark.line + 1, value
            return
        seen: set[Any] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "a key must be a number or a word", "Write it as one.")
            same = {key.value, self._meaning(key)}
            if seen & same:
                # YAML forbids it; the loader would silently keep the last one.
                self._refuse(key, f"the key {key.value!r} stands twice", "Keep one.")
            seen |= same
            yield key.value, key.start_mark.line + 1, value

    def _meaning(self, key: yaml.ScalarNode) -> Any:
        """Return what Python compares: `1`, `1.0` and `true` are one key of a dictionary."""
        numeric = key.tag.endswith((":int", ":float", ":bool"))
        return self._loader.construct_object(key) if numeric else key.value

    def _refuse(self, node: yaml.Node, what: str, remedy: str) -> NoReturn:
        line = node.start_mark.line + 1
        raise self._error(f"{self._name}, line {line}: {what}.", remedy)
