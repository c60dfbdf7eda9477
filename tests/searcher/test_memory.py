from __future__ import annotations

import sys

import numpy as np
import pytest

from nas.searcher.memory import PeakMemory

MEGABYTE = 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts it")
def test_peak_memory__counts_what_was_held_and_given_back():
    memory = PeakMemory()
    held = np.ones(64 * MEGABYTE, np.uint8)
    del held
    found = memory.bytes
    assert found is not None
    assert 60 * MEGABYTE < found < 100 * MEGABYTE
    again = PeakMemory().bytes
    assert again is not None
    assert again < 30 * MEGABYTE
