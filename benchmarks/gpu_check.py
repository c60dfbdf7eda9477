"""What only a machine with an NVIDIA GPU can say: does everything run there, how fast, how exactly?

For any such machine, with whatever runtimes are installed there. It needs the repository, torch,
numpy, onnx and pydantic; the project need not be installed::

    PYTHONPATH=. python benchmarks/gpu_check.py

This file runs the parts and writes down what they say; `gpu/parts.py` and `gpu/runtimes.py` hold
the parts.

It takes 8 minutes at most. Each part runs in a process of its own with a share of that time, those
worth most first, so a crash, a hang or a broken device costs one part. The result,
`benchmarks/results/<gpu>.json`, is written anew with every figure; under `not_checked` it lists
what could not be found out, and why.

All times are those of `nas.latency.clock`: wall clock around runs that wait for the device, in
turns with a reference network on the same runtime.

Without a GPU it says what it cannot check, and ends with status 2. `--allow-cpu` runs the parts
that a processor can run, in a small form, so that their code is exercised: such figures mean
nothing.
"""
# ruff: noqa: T201 - rich may not be installed

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions, entry_points
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any


class _Absent(ModuleType):
    """In the place of a package that is not installed: it can be imported, and not used."""

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"This needs {self.__name__}, which is not installed.")


@contextmanager
def _spared(*names: str) -> Iterator[None]:
    """Let `nas` be imported without packages that read and write files, which is not done here."""
    absent = [name for name in names if find_spec(name.partition(".")[0]) is None]
    sys.modules.update({name: _Absent(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with _spared("PIL", "safetensors", "safetensors.torch", "yaml"):
    import numpy as np
    from gpu import parts, runtimes
    from gpu.engines import Report, Setup
    from gpu.ladder import Row
    from gpu.watch import Watch

    from nas.latency.clock import Elapsed

ROOT = Path(__file__).parents[1]
MINUTES = 8.0
_NO_GPU = 2
_RESERVE_S = 10.0  # for starting, and for a process that is slow to end
_PATIENCE_S = 5.0
_PACKAGES = re.compile(r"torch|triton|numpy|onnx|pydantic|tensorrt|nvidia|cuda", re.IGNORECASE)
_TIMED = ("ms", "ratio", "half_width", "matched", "boxes_max", "scores_max")


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Args:
        run: does it.
        seconds: its share of 8 minutes; what it leaves goes to the next ones.
        columns: of its table.
        times: how often it runs, ...
        fresh: ... and whether each time in a new interpreter, not in a fork of this one.
    """

    run: Callable[[Setup, Report], None]
    seconds: float
    columns: Sequence[str] = ()
    times: int = 1
    fresh: bool = False

    @property
    def name(self) -> str:
        """What `not_checked` and the result call it."""
        return self.run.__name__

    @property
    def text(self) -> str:
        """Name, and what it finds out."""
        return f"{self.name}: {self.run.__doc__}"


PARTS = (
    Part(parts.machine, 20),
    Part(parts.networks, 60, ("parameters", "macs", "trained", "detections")),
    Part(
        runtimes.tensorrt,
        140,
        (
            "build_s",
            "rebuild_s",
            "device_memory_mib",
            "cuda_graph",
            "layers",
            *_TIMED,
            "without_cuda_graph_ms",
        ),
    ),
    Part(parts.repeatability, 18, ("ms", "ratio"), times=3, fresh=True),
    Part(runtimes.onnx_runtime, 45, ("build_s", "load_s", "loaded_max", *_TIMED)),
    Part(runtimes.torch_modes, 30, ("build_s", "load_s", "loaded_max", *_TIMED)),
    Part(runtimes.batches, 15, ("deviation_max",)),
    Part(parts.attention, 40, ("ms", "ratio", "half_width", "features_max", "features_mean")),
    Part(parts.training, 45, ("steps_per_s", "images_per_s", "peak_memory_gib")),
    Part(runtimes.compiled, 25, ("build_s", "load_s", "loaded_max", *_TIMED)),
)
_OF_A_GPU = {"tensorrt", "compiled"}


def main() -> int:
    """Run all parts; return the status of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--output", type=Path, help="instead of benchmarks/results/<gpu>.json")
    parser.add_argument("--allow-cpu", action="store_true", help="small, on the processor")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends the children, too
    with tempfile.TemporaryDirectory(prefix="gpu_check") as name:
        _offer_plugins(Path(name))
        small = arguments.allow_cpu
        setup = Setup("cpu" if small else "cuda", small, Path(name))
        return Check(setup, 60 * arguments.minutes, arguments.output).run()


def _offer_plugins(folder: Path) -> None:
    """Where the project is not installed, declare its entry points as an installation would."""
    if entry_points(group="nas.blocks"):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"]
    installed = folder / "plugins" / "nas_detector.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(lines[0], encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (installed / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    sys.path.append(str(installed.parent))


class Check:
    """Runs the parts one after the other, and keeps the result file up to date.

    Args:
        setup: what the parts are given.
        seconds: for all of them.
        output: the result file; named after the GPU if None.
    """

    def __init__(self, setup: Setup, seconds: float, output: Path | None) -> None:
        self._setup, self._seconds, self._output = setup, seconds, output
        self._elapsed, self._saved = Elapsed(), 0.0
        self._parts: dict[str, Row] = {}
        self.result: Row = {
            "benchmark": "gpu_check",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _git("rev-parse", "--short=12", "HEAD"),
            "changed_since": bool(_git("status", "--porcelain", "--", "nas", "benchmarks")),
            "small": setup.small,
            "versions": _versions(),
            "machine": {},
            "summary": {},
            "not_checked": [],
            "parts": self._parts,
        }

    def run(self) -> int:
        """Run all parts that this machine can run."""
        first, *others = PARTS
        self._part(first, None)
        rows = self._parts[first.name]["rows"]
        self.result["machine"] = machine = rows[0] if rows else {}
        gpu = machine.get("gpu", "")
        if not gpu and not self._setup.small:
            return _nothing(machine, others)
        if gpu and not self._output:
            self._output = ROOT / "benchmarks" / "results" / f"{_slug(gpu)}.json"
        # Optimizers import it, which takes seconds: once here, not in each process that forks off.
        importlib.import_module("torch._dynamo")
        with Watch(machine.get("uuid", "")) as watch:
            for part in others:
                if self._setup.small and part.name in _OF_A_GPU:
                    self._miss(part.name, "it needs an NVIDIA GPU")
                else:
                    self._part(part, watch)
        if not sum(one.get("gpu", {}).get("samples", 0) for one in self._parts.values()):
            self._miss("throttling", "nvidia-smi told nothing of clocks and their reasons")
        self._finish()
        return 0

    def _part(self, part: Part, watch: Watch | None) -> None:
        entry: Row = {"runs": [], "rows": []}
        self._parts[part.name] = entry
        print(f"\n== {part.text}", flush=True)
        for number in range(1 if self._setup.small else part.times):
            elapsed, limit = Elapsed(), self._limit(part)
            outcome = _run(
                part, self._setup, limit, lambda kind, what: self._hear(entry, kind, what)
            )
            self._saved += part.seconds * self._scale - elapsed.wall_s
            entry["runs"].append({"status": outcome, "seconds": round(elapsed.wall_s, 1)})
            if outcome != "done":
                doing = entry.pop("doing", "nothing yet")
                self._miss(f"{part.name}, run {number + 1}, from {doing!r} on", outcome)
            self._write()
        if watch:
            entry["gpu"] = watch.since()
        entry.pop("doing", None)
        self.result["summary"] = summarise(self._parts)
        self._write()
        print(table(entry["rows"], part.columns), flush=True)

    @property
    def _scale(self) -> float:
        return self._seconds / (60 * MINUTES)

    def _limit(self, part: Part) -> float:
        """Seconds that a part may take: its share, and what others left of theirs."""
        most = self._seconds - self._elapsed.wall_s - _RESERVE_S
        return max(min(part.seconds * self._scale + self._saved, most), 0.0)

    def _hear(self, entry: Row, kind: str, what: Any) -> None:
        if kind == "row":
            entry["rows"].append(what)
            self._write()
        elif kind == "missed":
            self._miss(*what)
        else:
            entry["doing"] = what

    def _miss(self, what: str, why: str) -> None:
        self.result["not_checked"].append({"what": what, "why": why})
        print(f"   not checked: {what}: {why}", flush=True)
        self._write()

    def _write(self) -> None:
        """Replace the result file in one step: whoever ends this process leaves a whole one."""
        if self._output:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            whole = self._output.with_suffix(".partial")
            whole.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
            whole.replace(self._output)

    def _finish(self) -> None:
        print("\n== summary\n" + json.dumps(self.result["summary"], indent=1))
        missed = self.result["not_checked"]
        print(f"\n{len(missed)} things not checked" + ("; see above." if missed else "."))
        where = f"Written to {self._output}" if self._output else "Written nowhere"
        print(f"{where} after {self._elapsed.wall_s:.0f} s.")


def _run(part: Part, setup: Setup, seconds: float, hear: Callable[[str, Any], None]) -> str:
    """Run a part in a process of its own; return `done`, or what became of it."""
    forks = "fork" in multiprocessing.get_all_start_methods() and not part.fresh
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (part.run, setup, sender, seconds)
    process, elapsed = context.Process(target=_child, args=arguments), Elapsed()
    process.start()
    sender.close()  # then the child has the only one, and its end is the end of the messages
    try:
        while receiver.poll(max(seconds - elapsed.wall_s, 0)):
            hear(*receiver.recv())
        outcome = f"stopped after {seconds:.0f} s"
    except EOFError:
        process.join(_PATIENCE_S)
        outcome = "done" if process.exitcode == 0 else f"ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join(_PATIENCE_S)  # a broken device may keep it for ever
    return outcome


def _child(
    run: Callable[[Setup, Report], None], setup: Setup, sender: Connection, seconds: float
) -> None:
    report = Report(sender.send, seconds)
    try:
        run(setup, report)
    except Exception as error:  # noqa: BLE001 - it is told, and the other parts go on
        report.missed(run.__name__, error)


def _nothing(machine: Row, others: Sequence[Part]) -> int:
    reason = machine.get("blind") or f"torch {machine.get('torch')} finds none"
    print(f"\nNo NVIDIA GPU was found: {reason}. Not checked:")
    for part in others:
        print(f"- {part.text}")
    return _NO_GPU


# --- what it says ----------------------------------------------------------------------------


def summarise(done: Mapping[str, Row]) -> Row:
    """Return the figures that were asked for, from whatever rows there are."""
    rows = {name: entry["rows"] for name, entry in done.items()}
    throttled = {name: one.get("gpu", {}).get("throttled") for name, one in done.items()}
    found = {
        "int8_speed_up_over_fp16": _quotients(rows.get("tensorrt", []), "fp16", "int8"),
        "int8_speed_up_over_fp32": _quotients(rows.get("tensorrt", []), "fp32", "int8"),
        "fp16_speed_up_over_fp32": _quotients(rows.get("tensorrt", []), "fp32", "fp16"),
        "cv_of_ratio_between_processes": _variation(rows.get("repeatability", [])),
        "attention_over_dense": _over_dense(rows.get("attention", [])),
        "worst_parity": _parity(rows),
        "throttled": {name: seen for name, seen in throttled.items() if seen},
    }
    return {name: value for name, value in found.items() if value}


def _quotients(rows: Sequence[Row], slow: str, fast: str) -> dict[str, float]:
    """Return latency in one precision over that in another, by network."""
    known = {(row["network"], row["precision"]): row["ms"] for row in rows if "network" in row}
    return {
        name: round(known[name, slow] / ms, 3)
        for (name, precision), ms in known.items()
        if precision == fast and (name, slow) in known
    }


def _variation(rows: Sequence[Row]) -> dict[str, float]:
    """Return the coefficient of variation of each ratio between processes."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        ratios.setdefault(f"{row['what']}", []).append(row["ratio"])
    return {
        what: round(float(np.std(values, ddof=1) / np.mean(values)), 5)
        for what, values in ratios.items()
        if len(values) > 1
    }


def _over_dense(rows: Sequence[Row]) -> dict[str, float]:
    """Return latencies over that of dense attention on the same map and engine."""
    dense = {(r["engine"], r["positions"]): r["ms"] for r in rows if r["family"] == "dense"}
    return {
        f"{row['family']}, N {row['positions']}, {row['engine']}": round(row["ms"] / base, 3)
        for row in rows
        if row["family"] != "dense" and (base := dense.get((row["engine"], row["positions"])))
    }


def _parity(rows: Mapping[str, Sequence[Row]]) -> dict[str, Row]:
    """Return the worst agreement with torch in fp32 by part and precision."""
    found: dict[str, Row] = {}
    for part, row in ((part, row) for part, some in rows.items() for row in some):
        if "scores_max" in row:
            worst = found.setdefault(f"{part} {row['precision']}", {})
            for name, choose in (("matched", min), ("boxes_max", max), ("scores_max", max)):
                if row.get(name) is not None:
                    worst[name] = choose(worst.get(name, row[name]), row[name])
    return found


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Lay rows out under their columns, or one below the other if there are none to choose."""
    if not columns:
        return "\n".join(f"   {name}: {value}" for row in rows for name, value in row.items())
    lines = [["", *columns]]
    lines += [[row["what"], *(_cell(row.get(column)) for column in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "   " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _versions() -> dict[str, str]:
    found = {one.metadata["Name"]: one.version for one in distributions()}
    kept = {name: text for name, text in found.items() if name and _PACKAGES.search(name)}
    return {"python": sys.version.split()[0], **dict(sorted(kept.items()))}


def _git(*arguments: str) -> str:
    """Ask git about the checkout; empty if this is none."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
