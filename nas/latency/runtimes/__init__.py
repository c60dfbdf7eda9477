"""Inference engines behind one contract: see `base.py`; `conformance.py` tests any of them.

A runtime is found by name with `nas.plugins.load("runtimes", name)`, ours and theirs alike.
"""

from __future__ import annotations

__all__: list[str] = []
