from __future__ import annotations

import subprocess
import sys

import pytest

from nas.searcher.connection import LockedError, exclusive


def test_exclusive__a_name_is_held_once(database):
    with exclusive(database.engine, "x"), exclusive(database.engine, "y"):
        again = exclusive(database.engine, "x", timeout_s=0.1)
        with pytest.raises(LockedError, match="process") as error, again:
            pass
        assert str(subprocess.os.getpid()) in error.value.holder
    with exclusive(database.engine, "x", timeout_s=0):
        pass


def test_exclusive__is_released_when_its_process_is_killed(database, url):
    code = (
        "import time; from nas.searcher.database import Database;"
        f"from nas.searcher.connection import exclusive; database = Database({url!r})\n"
        "with exclusive(database.engine, 'x'): print('in', flush=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    with pytest.raises(LockedError) as error, exclusive(database.engine, "x", timeout_s=0):
        pass
    assert f"process {process.pid} on" in error.value.holder
    process.kill()
    process.communicate()
    with exclusive(database.engine, "x", timeout_s=10):
        pass
