"""Result files: figures never stand without the commit, the machine and the versions."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nas.latency.hardware import cpu_name
from nas.searcher.setting import installed_versions

RESULTS = Path(__file__).with_name("results")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# Asked when the script starts: the checkout may move on while it runs.
_COMMIT = _git("rev-parse", "--short=12", "HEAD")
_CHANGED = bool(_git("status", "--porcelain", "--", "nas", "search_spaces"))


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json`, and return its path."""
    result = {
        "benchmark": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _COMMIT,
        "changed_since": _CHANGED,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": installed_versions(),
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
