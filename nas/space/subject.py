"""What a user may call a network: an anchor of a search space, or a file in either form."""

from __future__ import annotations

from pathlib import Path

from nas.errors import ArchitectureError, SpaceError, UnknownNameError
from nas.space.architecture import Architecture
from nas.space.space import Point, SearchSpace, load_space
from nas.space.ultralytics import from_ultralytics, is_layer_list
from nas.space.yaml_file import read_yaml

__all__ = ["find_anchor", "is_file", "read_architecture", "subject_name"]


def is_file(subject: str) -> bool:
    """Whether a subject is meant as the path of a YAML file, rather than as `space:anchor`."""
    return subject.endswith((".yaml", ".yml"))


def subject_name(subject: str) -> str:
    """Return a short name of a subject that can stand in the name of a file."""
    return Path(subject).stem if is_file(subject) else Path(subject).name.replace(":", "-")


def find_anchor(subject: str, space: str | None = None) -> tuple[SearchSpace, Point]:
    """Find a named point of a search space.

    Args:
        subject: `space:anchor`, or the name of an anchor of `space`.
        space: name or path of the space; needed unless the subject names it.

    Raises:
        SpaceError: no space is named, or its file breaks a rule.
        UnknownNameError: no such space or anchor.
    """
    named, _, anchor = subject.rpartition(":")
    if not (named or space):
        raise SpaceError(
            f"The subject {subject!r} names no space.",
            f"Write digits:{subject}, or the path of a YAML file.",
        )
    found = load_space(named or str(space))
    if anchor not in found.anchors:
        raise UnknownNameError.of(f"anchor of the space {found.name!r}", anchor, found.anchors)
    return found, found.anchors[anchor]


def read_architecture(subject: str, classes: int) -> Architecture:
    """Read the network that a user names.

    Args:
        subject: `space:anchor`, an architecture's YAML file, or a layer list of YOLO users.
        classes: of an anchor, whose space leaves them open; a file says its own.

    Raises:
        SpaceError: no space is named, or its file breaks a rule.
        UnknownNameError: no such space or anchor.
        ArchitectureError: the file describes no architecture.
    """
    if not is_file(subject):
        space, point = find_anchor(subject)
        return space.candidate(point, classes).architecture
    path = Path(subject)
    if is_layer_list(read_yaml(path, ArchitectureError).data):
        return from_ultralytics(path.read_text(encoding="utf-8"), subject)
    return Architecture.load(path)
