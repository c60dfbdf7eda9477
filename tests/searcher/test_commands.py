"""Command lines that are printed can be pasted as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from nas import cli
from nas.results.console import next_commands
from nas.searcher.commands import command_line, command_on
from nas.searcher.request import Request, Workspace
from nas.searcher.trust_job import Effort
from nas.units import Budget

PACKAGE = Path(__file__).parents[2] / "nas"
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
FAR = Request(
    budget=Budget(1.0),
    study="it's mine@l4-2ms",
    storage="postgresql+psycopg://me@host/db?sslmode=require",
    workspace=Workspace(Path("my studies")),
)


def _parsed(line: str) -> dict[str, object]:
    """Return what our own command line understands."""
    program, *words = shlex.split(line)
    assert program == "nas"
    group = get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    context = group.make_context("nas", list(words))
    name, command, rest = group.resolve_command(context, words)
    assert command is not None
    return {"command": name, **command.make_context(name, rest).params}


@given(study=WORDS, folder=WORDS, words=st.lists(WORDS))
def test_command_line__a_shell_gets_back_every_word(
    study: str, folder: str, words: list[str]
) -> None:
    line = command_line("front", *words, study=study, workspace=Path(folder))
    found = shlex.split(line)
    assert found[: 2 + len(words)] == ["nas", "front", *words]
    assert found[2 + len(words) :][:2] == ["--study", study]
    assert found[4 + len(words) :] in ([], ["--workspace", str(Path(folder))])


def test_command_line__where_everything_is_as_usual_is_short() -> None:
    assert command_line("dashboard") == "nas dashboard"
    there = Request(budget=Budget(1.0), study="digits-1")
    assert command_on(there, "trust") == "nas trust --study digits-1"


def test_command_line__never_shows_a_password() -> None:
    line = command_line("front", storage="postgresql://me:s3cret@host/db")
    assert "s3cret" not in line
    assert "me:***@host/db" in line


@pytest.mark.parametrize("command", ["front", "explain", "trust", "worth", "export", "dashboard"])
def test_next_commands__find_the_same_study_again(command: str) -> None:
    lines = next_commands(FAR, Path("my studies/it's mine")).splitlines()[1:]
    line = next(line for line in lines if f"nas {command}" in line)
    found = _parsed(line.replace("--trial N", "--trial 3"))
    assert found["storage"] == FAR.storage
    assert found["workspace"] == FAR.workspace.root
    assert found.get("study", FAR.study) == FAR.study


def test_next_commands__measure_what_was_delivered() -> None:
    line = next_commands(FAR, Path("my studies/it's mine")).splitlines()[1]
    found = _parsed(line)
    assert found["subject"] == "my studies/it's mine/model.onnx"
    assert found["workspace"] == FAR.workspace.root


@pytest.mark.parametrize("effort", [Effort(), Effort(landmarks=9, iterations=40, threshold=0.25)])
def test_effort__options_give_the_same_effort(effort: Effort) -> None:
    found = _parsed(command_on(FAR, "trust", *effort.options))
    assert Effort(**{name: found[name] for name in vars(effort)}) == effort


def test_hints__are_written_by_nobody_else() -> None:
    """One that is put together by hand forgets where the study is, or how a shell reads it."""
    commands = "|".join(get_command(cli.app).commands)  # type: ignore[attr-defined]
    by_hand = re.compile(rf"(?<!-m )\bnas ({commands}) (--|\{{|\")")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if by_hand.search(line)
    ]
    assert found == []
