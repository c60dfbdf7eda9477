"""The real Python bindings of TensorRT beside empty libraries, for processes of their own.

The wheels hold 1.3 MB of Python bindings and no library, so they can be had on any Linux; the stub
takes the place of the libraries. Both are made once per machine, in its temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSIONS = ("10.16.1.11", "11.4.0.106")
_HERE = Path(__file__).parent
_CACHE = Path(tempfile.gettempdir()) / f"nas-tensorrt-bindings-{os.getuid()}"
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


class UnavailableError(Exception):
    """The bindings cannot be had here; the message says why."""


def folder(version: str) -> Path:
    """The bindings of one version with their stub libraries; downloaded at the first call."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    ready = _CACHE / f"{version}-{python}"
    if not ready.exists():
        _CACHE.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as name:
            partial = Path(name) / "ready"
            partial.mkdir()
            _download(version, partial)
            _compile(version.split(".", 1)[0], partial)
            partial.rename(ready)
    return ready


def run(version: str, *arguments: str, stdin: str = "") -> str:
    """Run Python with the bindings; its standard output."""
    place = folder(version)
    paths = (str(place), str(_HERE.parents[3]))
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(place),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def problems(version: str, uses: list[dict[str, object]]) -> list[str]:
    """What the bindings say of uses of their interface; see `check.py`."""
    answer: list[str] = json.loads(run(version, str(_HERE / "check.py"), stdin=json.dumps(uses)))
    return answer


def _download(version: str, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--retries=1", "--timeout=20", f"--dest={target}"]
    try:
        done = subprocess.run(
            [*command, f"tensorrt-cu13-bindings=={version}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError("pip did not answer within 2 minutes") from error
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        raise UnavailableError(f"pip cannot download the bindings: {done.stderr.strip()[-300:]}")
    zipfile.ZipFile(wheels[0]).extractall(target)


def _compile(major: str, target: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("there is no C compiler for the stub libraries")
    for library in _LIBRARIES:
        name = f"lib{library}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(target / name)]
        subprocess.run([compiler, *options, str(_HERE / "stub.c")], check=True)
