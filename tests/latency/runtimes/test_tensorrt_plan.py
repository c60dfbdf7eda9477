from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import EngineError
from nas.latency.runtimes.tensorrt_plan import Plan

FACTS = {
    "runtime": "tensorrt",
    "version": "10.16.1.11",
    "device": "NVIDIA L4",
    "compute capability": "8.9",
    "precision": "fp16",
}


def test_plan__comes_back(tmp_path: Path) -> None:
    plan = Plan(b"\x00plan", (1, 3, 8, 8), FACTS)
    plan.write(tmp_path / "deep" / "a.plan")
    assert (tmp_path / "deep" / "a.plan").read_bytes() == b"\x00plan"
    assert Plan.read(tmp_path / "deep" / "a.plan") == plan
    plan.require(FACTS)


@pytest.mark.parametrize("key", ["version", "device", "compute capability"])
def test_plan__of_elsewhere_is_an_error(key: str) -> None:
    plan = Plan(b"", (1, 3, 8, 8), FACTS)
    with pytest.raises(EngineError, match=f"for {key} {FACTS[key]}, this is another"):
        plan.require(FACTS | {key: "another"})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.plan", b"other", "is not the plan"),
        ("a.plan", None, "No such file"),
        ("a.plan.json", None, "No such file"),
        ("a.plan.json", b"{", "does not describe"),
        ("a.plan.json", b"[]", "does not describe"),
        ("a.plan.json", b'{"facts": {}}', "does not describe"),
        ("a.plan.json", b"\xff", "does not describe"),
    ],
)
def test_plan__broken_files_are_errors(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    Plan(b"plan", (1, 3, 8, 8), FACTS).write(tmp_path / "a.plan")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EngineError, match=reason):
        Plan.read(tmp_path / "a.plan")
