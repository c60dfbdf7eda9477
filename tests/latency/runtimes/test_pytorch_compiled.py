"""Compiling takes 10 s of CPU time for a network of four convolutions, so fp32 has to do here."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from nas.errors import EngineError, MissingPackageError
from nas.latency.runtimes.conformance import RuntimeConformance
from nas.latency.runtimes.pytorch import CompiledTorchRuntime

# What torch uses of itself while it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class InFp32(CompiledTorchRuntime):
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)


class TestCompiledTorch(RuntimeConformance):
    runtime_class = InFp32


@pytest.mark.parametrize("named", ["", "no-such-compiler"])
def test_runtime__without_a_compiler_is_an_error(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", named)
    with pytest.raises(MissingPackageError, match=rf"'pytorch-compiled' needs a C\+\+.*{named}"):
        CompiledTorchRuntime()


def test_build__a_compiler_that_fails_is_an_error(
    graph: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(broken)))
    gc.collect()  # engines that other tests left
    threads = torch.get_num_threads()
    with pytest.raises(EngineError, match=r"PyTorch \(compiled\) cannot build this graph in fp32"):
        CompiledTorchRuntime().build(graph, "fp32", threads=threads + 1)
    assert torch.get_num_threads() == threads
