"""Compiling takes 10 s of CPU time for a network of four convolutions, so fp32 has to do here."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
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


INFER = """
import sys, numpy as np
from nas.latency.runtimes.pytorch import CompiledTorchRuntime
engine = CompiledTorchRuntime().build(open(sys.argv[1], "rb").read(), "fp32")
np.savez(sys.argv[2], **engine.infer(np.load(sys.argv[3])))
"""


def test_build__does_not_take_what_is_cached_for_wider_vectors(
    graph: bytes, tmp_path: Path
) -> None:
    """A processor with AVX-512 fills the cache; one without, as torch is told, finds it filled."""
    images = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "graph.onnx").write_bytes(graph)
    for name, told in (("wide", {}), ("narrow", {"ATEN_CPU_CAPABILITY": "avx2"})):
        files = [str(tmp_path / one) for one in ("graph.onnx", f"{name}.npz", "images.npy")]
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", INFER, *files],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **caches, **told},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
    wide, narrow = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("wide", "narrow"))
    for name, expected in wide.items():
        # Sums of other orders: some roundings of fp32, each 6e-8 of the largest.
        np.testing.assert_allclose(narrow[name], expected, atol=1e-5 * np.abs(expected).max())


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
