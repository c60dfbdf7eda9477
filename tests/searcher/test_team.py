from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import tiny_space

from nas.accuracy.training import train_detector
from nas.model.detector import Detector
from nas.searcher.team import Due

SCRIPT = Path(__file__).with_name("together.py")
TINY = tiny_space(
    "hidden: [4, 8]",
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("together", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_due__once_in_a_while() -> None:
    assert [Due(0.0)() for _ in range(2)] == [True, True]
    seldom = Due(3600.0)
    assert not any(seldom() for _ in range(5))


def test_training__killed_goes_on_from_the_last_checkpoint(
    script: ModuleType, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    command = [sys.executable, str(SCRIPT), "killed", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert 0 < last < script.KILLED.iterations
    train = script.dataset(tmp_path).train
    resumed, whole = (Detector(script.architecture()) for _ in range(2))
    result = train_detector(resumed, train, script.KILLED, checkpoint=checkpoint)
    assert last - 1 <= result.resumed_from <= last
    train_detector(whole, train, script.KILLED)
    assert torch.equal(script.weights(resumed), script.weights(whole))


def test_torchrun__two_processes_give_the_weights_of_one(
    script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    train = script.dataset(tmp_path).train
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, str(SCRIPT), "together", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    start = script.weights(script.without_batch_statistics())
    alone = script.without_batch_statistics()
    train_detector(alone, train, script.RECIPE)
    way = script.weights(alone) - start
    together = torch.load(tmp_path / "together.pt") - start
    assert (together - way).norm() < 0.01 * way.norm()

    # What one process makes of its half of each batch is far from it.
    half = script.without_batch_statistics()
    train_detector(half, train.subset("train", range(12)), script.RECIPE)
    assert (script.weights(half) - start - way).norm() > 0.1 * way.norm()

    # Those of the group that is left would abort a process that ends in their middle.
    left = [(tmp_path / f"threads-{rank}").read_text() for rank in (0, 1)]
    assert all("python" in one and "gloo" not in one for one in left)

    assert (tmp_path / "detector.checkpoint").exists()
    assert "batch of 1 images has none for some of 2 processes" in (tmp_path / "error").read_text()
    assert len(list((tmp_path / "cache" / "supernets").glob("*.safetensors"))) == 1
