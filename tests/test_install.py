"""What ships must be reachable from a wheel, not only from a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment; its dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True, cwd=folder)
    venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv/bin/pip"), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, *map(str, folder.glob("*.whl"))], check=True)
    return folder / "venv" / "bin"


def _run(*command: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "COLUMNS": "150"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel__is_what_runs(installed: Path) -> None:
    found = _run(installed / "python", "-c", "import nas; print(nas.__file__)")
    assert str(installed.parent) in found


def test_wheel__lists_the_shipped_spaces(installed: Path) -> None:
    text = _run(installed / "nas", "spaces")
    for name in ("digits", "yolo_nas", "hsv_det"):
        assert name in text


def test_wheel__knows_the_shipped_devices(installed: Path) -> None:
    text = _run(installed / "nas", "hardware")
    for name in ("cpu", "l4", "orin-nx"):
        assert name in text


def test_wheel__makes_the_tables(installed: Path, tmp_path: Path) -> None:
    code = f"from nas.searcher.database import Database; Database('sqlite:///{tmp_path}/x.db')"
    _run(installed / "python", "-c", code)
    assert (tmp_path / "x.db").stat().st_size > 0


def test_import__is_light() -> None:
    code = "import sys, nas; print([m for m in ('torch', 'optuna', 'pandas') if m in sys.modules])"
    assert _run(sys.executable, "-c", code).strip() == "[]"
