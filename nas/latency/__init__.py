"""Candidate -> milliseconds: export, engines, the only clock, and answers that name their source.

Read `clock.py` first (what a number means), then `runtimes/base.py` (what a plug-in does), then
`meter.py` (when a number is measured and when it is remembered). Never imports `nas.accuracy`.
"""

from __future__ import annotations

__all__: list[str] = []
