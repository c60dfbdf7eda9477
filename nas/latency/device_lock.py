"""One measuring process per device: two that measure at once measure each other.

The lock is a file that the kernel locks (flock): it frees it when the process ends, however it
ends, so no stale lock keeps anybody out. It is held for one measurement, so that two searches
alternate. A second file is the queue: whoever wants the device stands in it until it has the
device, and so does whoever has just had it; otherwise a search that measures without a break would
keep the other one out for good.

Locks are the user's own, in `$XDG_RUNTIME_DIR` or in a folder of the temporary one. Windows has no
flock, and there nothing is locked.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nas.errors import InputError, MeasurementError, StorageError
from nas.latency.clock import Elapsed

__all__ = ["DeviceLock", "lock_folder"]

_LOOK_AGAIN_S = 0.01
_LONGEST_NAME = 40
_LOGGER = logging.getLogger(__name__)


def lock_folder() -> Path:
    """Return the folder of this user's locks."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.access(runtime, os.W_OK):
        return Path(runtime) / "nas"
    return Path(tempfile.gettempdir()) / f"nas-{os.getuid() if hasattr(os, 'getuid') else 0}"


class DeviceLock:
    """The right to measure on a device.

    Args:
        device: what names it on this machine.
        folder: where lock files lie; the user's if None.
        on_wait: hears once per wait that the device is taken; the log of this module if None.
        notice_s: wall seconds before it hears it.
        limit_s: wall seconds after which waiting is an error.

    Raises:
        InputError: a time that is not positive.
    """

    def __init__(
        self,
        device: str,
        *,
        folder: Path | None = None,
        on_wait: Callable[[str], None] | None = None,
        notice_s: float = 5.0,
        limit_s: float = 3600.0,
    ) -> None:
        if not (notice_s >= 0 and limit_s > 0):
            raise InputError(f"A wait must be positive, got {notice_s:g} s and {limit_s:g} s.")
        self.device = device
        # Names of devices are long, and have characters that no file name has.
        digest = hashlib.sha256(device.encode()).hexdigest()[:12]
        name = f"{re.sub(r'[^A-Za-z0-9]+', '-', device)[:_LONGEST_NAME]}-{digest}"
        folder = folder or lock_folder()
        self.path = folder / f"{name}.lock"
        self._queue = folder / f"{name}.queue"
        self._on_wait = on_wait or _LOGGER.warning
        self._notice_s = notice_s
        self._limit_s = limit_s

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the device, and hold it in the body.

        Raises:
            MeasurementError: another process held it for longer than the limit.
            StorageError: the lock file cannot be written.
        """
        if sys.platform == "win32":
            yield
            return
        elapsed = Elapsed()
        with _opened(self.path) as device:
            with _opened(self._queue) as queue:
                told = self._take(queue, elapsed, told=False)
                self._take(device, elapsed, told=told)
            os.ftruncate(device, 0)
            os.pwrite(device, str(os.getpid()).encode(), 0)
            yield

    def _take(self, file: int, elapsed: Elapsed, *, told: bool) -> bool:
        """Wait until a file is ours; whether anybody was told that we wait."""
        while not _try(file):
            if elapsed.wall_s > self._limit_s:
                raise MeasurementError(
                    f"{self._holder()} kept {self.device} for more than {self._limit_s:g} s.",
                    f"End it, or wait for it; the lock is {self.path}.",
                )
            if not told and elapsed.wall_s >= self._notice_s:
                told = True
                self._on_wait(f"Waiting: {self._holder()} measures on {self.device}.")
            time.sleep(_LOOK_AGAIN_S)
        return told

    def _holder(self) -> str:
        try:
            pid = self.path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            pid = ""
        return f"process {pid}" if pid.isdecimal() else "another process"


def _try(file: int) -> bool:
    """Lock an open file if nobody else has it."""
    import fcntl  # noqa: PLC0415 - Windows has none

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file, which is never deleted: a lock on a deleted file excludes nobody."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"The lock of the device cannot be opened: {error}.",
            "Set XDG_RUNTIME_DIR to a folder that you may write to.",
        ) from error
    try:
        yield file
    finally:
        os.close(file)
