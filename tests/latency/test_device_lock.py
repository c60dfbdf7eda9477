from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nas.errors import InputError, MeasurementError, StorageError
from nas.latency.device_lock import DeviceLock, lock_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")

DEVICE = "A processor (avx2; driver 5/6)"
# Tells when it has the device, and keeps it until its input ends.
HOLD = (
    "import pathlib, sys\n"
    "from nas.latency.device_lock import DeviceLock\n"
    "with DeviceLock(sys.argv[1], folder=pathlib.Path(sys.argv[2])).held():\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def lock(folder: Path, device: str = DEVICE, **settings: object) -> DeviceLock:
    return DeviceLock(device, folder=folder, **settings)  # type: ignore[arg-type]  # of all kinds


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the device."""
    command = [sys.executable, "-c", HOLD, DEVICE, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_held__another_process_waits_and_says_for_whom(tmp_path: Path) -> None:
    heard: list[str] = []
    with holder(tmp_path) as process:
        assert process.stdin is not None
        threading.Timer(0.5, process.stdin.close).start()
        with lock(tmp_path, on_wait=heard.append, notice_s=0.1).held():
            assert process.wait(10) == 0
    assert len(heard) == 1
    assert f"process {process.pid} measures on {DEVICE}" in heard[0]


def test_held__short_waits_are_silent(tmp_path: Path) -> None:
    heard: list[str] = []
    with holder(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        with lock(tmp_path, on_wait=heard.append, notice_s=30).held():
            pass
    assert heard == []


def test_held__waiting_too_long_is_an_error(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        wanted = lock(tmp_path, limit_s=0.2)
        with pytest.raises(MeasurementError, match=rf"process {process.pid} kept .* 0\.2 s"):
            wanted.held().__enter__()


def test_held__logs_for_who_does_not_listen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holder(tmp_path) as process:
        assert process.stdin is not None
        threading.Timer(0.3, process.stdin.close).start()
        with lock(tmp_path, notice_s=0.0).held():
            assert "Waiting: process" in caplog.text


def test_held__process_that_dies_frees_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with lock(tmp_path, limit_s=5).held():
            assert lock(tmp_path).path.read_text() == str(os.getpid())


def test_held__error_in_the_body_frees_it(tmp_path: Path) -> None:
    one = lock(tmp_path)
    with pytest.raises(ZeroDivisionError), one.held():
        _ = 1 / 0
    with one.held():
        pass


def test_held__devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with holder(tmp_path), lock(tmp_path, "another device", limit_s=0.2).held():
        pass


def test_held__two_that_never_pause_alternate(tmp_path: Path) -> None:
    """Each would get its next turn at once, but for the queue."""
    turns: list[str] = []

    def search(name: str) -> None:
        for _ in range(20):
            with lock(tmp_path).held():
                turns.append(name)
                threading.Event().wait(0.02)

    threads = [threading.Thread(target=search, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = sum(a != b for a, b in itertools.pairwise(turns))
    assert changes > 20


def test_folder__is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert lock_folder() == tmp_path / "nas"
    with DeviceLock(DEVICE).held():
        assert stat.S_IMODE((tmp_path / "nas").stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert lock_folder().name == f"nas-{os.getuid()}"


def test_folder__that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="lock of the device"):
        lock(file).held().__enter__()


@pytest.mark.parametrize("settings", [{"notice_s": -1.0}, {"limit_s": 0.0}])
def test_lock__impossible_times_are_errors(tmp_path: Path, settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="positive"):
        lock(tmp_path, **settings)
