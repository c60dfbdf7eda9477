"""The house: imports point down, and some things live in one place only (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nas"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A part may import from parts of a smaller number only, and from itself.
FLOOR = {
    "errors": 0,
    "files": 1,
    "units": 1,
    "plugins": 1,
    "search_spaces": 1,
    "space": 2,
    "model": 3,
    "accuracy": 4,
    "latency": 4,
    "searcher": 5,
    "results": 6,
    "api": 7,
    "cli": 8,
    "__main__": 9,
}
CLOCKS = {"perf_counter", "perf_counter_ns", "process_time", "process_time_ns", "monotonic"}
CLOCKS |= {"monotonic_ns", "thread_time", "thread_time_ns", "time_ns", "default_timer"}


def _part(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield what is imported when the code runs: not what only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not _is_type_checking(node):
            yield from _imports(node)


def _parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def _imports_of(module: Path) -> set[str]:
    return set(_imports(_parse(module)))


def _own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("nas.")}


def test_parts__are_all_known() -> None:
    assert {_part(m) for m in MODULES} - {"__init__"} <= FLOOR.keys()


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_imports__point_down(module: Path) -> None:
    part = _part(module)
    if part == "__init__":
        return
    upward = {
        other
        for other in _own(_imports_of(module))
        if other != part and other in FLOOR and FLOOR[other] >= FLOOR[part]
    }
    assert not upward, f"{module.name} ({part}) imports {upward}"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_libraries__stay_above_their_floor(module: Path) -> None:
    roots = {name.split(".")[0] for name in _imports_of(module)}
    floor = FLOOR.get(_part(module), max(FLOOR.values()))
    if floor < FLOOR["model"]:
        assert "torch" not in roots
    if floor < FLOOR["searcher"]:
        assert "optuna" not in roots
        assert "sqlalchemy" not in roots
    if module.name != "executor.py":
        assert "ray" not in roots


@pytest.mark.parametrize("module", MODULES, ids=lambda m: str(m.relative_to(PACKAGE)))
def test_clocks__live_in_the_clock(module: Path) -> None:
    if module == PACKAGE / "latency" / "clock.py":
        return
    tree = _parse(module)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & CLOCKS
    used |= {name.split(".")[-1] for name in _imports(tree)} & CLOCKS
    timed = any(
        isinstance(node, ast.Attribute)
        and node.attr in {"time", "Event"}
        and ast.unparse(node.value) in {"time", "torch.cuda"}
        for node in ast.walk(tree)
    )
    assert not used, f"{module.name} uses {used}"
    assert not timed, f"{module.name} reads a clock"


def test_modules__have_no_import_cycle() -> None:
    graph = {_dotted(m): {n for n in _imports_of(m) if n.startswith("nas")} for m in MODULES}
    # The package itself is only the door: it imports lazily, and everything lies behind it.
    graph = {
        name: {t for t in targets if t in graph and t != "nas"} for name, targets in graph.items()
    }
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join([*trail, name])
        if name not in state:
            state[name] = 1
            for target in graph[name] - {name}:
                visit(target, (*trail, name))
            state[name] = 2

    for name in graph:
        visit(name, ())


def _dotted(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
