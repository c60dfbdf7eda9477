"""What a part is given, how it tells what it found, and how engines are timed.

One engine more than the project has: a module under torch as it is, without the way by ONNX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gpu.ladder import Row, Rung, ladder
from nas.errors import EngineError, MissingPackageError
from nas.latency.clock import Clock, ClockSettings, Elapsed
from nas.latency.onnx_export import OUTPUTS
from nas.latency.runtimes.base import Engine, Images, Outputs

Message = tuple[str, Any]
_LONGEST_REASON = 400


@dataclass(frozen=True)
class Setup:
    """Where the parts run: on `cuda` or `cpu`, in full or small, with a folder that they share."""

    device: str
    small: bool
    folder: Path

    def clock(self) -> Clock:
        """Return the clock of a measurement: 1 % half-width, or a glance."""
        full = ClockSettings(
            half_width=0.01, min_blocks=10, max_blocks=40, block_ms=20, warmup_ms=250
        )
        glance = ClockSettings(
            half_width=0.9, min_blocks=3, max_blocks=12, min_samples=1, block_ms=1, warmup_ms=1
        )
        return Clock(on_cpu=self.device == "cpu", settings=glance if self.small else full)

    def rungs(self, *names: str) -> list[Rung]:
        """Return the networks that are ready, those of the names or all.

        Raises:
            FileNotFoundError: there is none.
        """
        found = [Rung(name, self.folder) for name in ladder() if not names or name in names]
        if ready := [rung for rung in found if rung.ready]:
            return ready
        raise FileNotFoundError("the part `networks` left no network")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


class Report:
    """Tells the parent process what was found, as soon as it is known.

    Args:
        send: takes `("doing", what)`, `("row", row)` and `("missed", (what, why))`.
        seconds: that the part has.
    """

    def __init__(self, send: Callable[[Message], object], seconds: float) -> None:
        self._send, self._seconds, self._elapsed = send, seconds, Elapsed()

    def row(self, row: Row) -> None:
        """Add figures."""
        self._send(("row", _plain(row)))

    def missed(self, what: str, why: str | Exception) -> None:
        """Say what could not be found out."""
        if isinstance(why, Exception):
            known = isinstance(why, EngineError | MissingPackageError)
            why = str(why) if known else f"{type(why).__name__}: {why}"
        self._send(("missed", (what, " ".join(why.split())[:_LONGEST_REASON])))

    def attempt(self, what: str, function: Callable[[], Row], seconds: float = 3.0) -> None:
        """Add the row that the function returns, or say why there is none.

        Args:
            what: is found out.
            function: finds it out.
            seconds: that it takes at least; with less left it is not begun.
        """
        if self._seconds - self._elapsed.wall_s < seconds:
            self.missed(what, "no time was left")
            return
        self._send(("doing", what))
        try:
            self.row({"what": what, **function()})
        except Exception as error:  # noqa: BLE001 - one failure must not cost the others
            self.missed(what, error)


def _plain(value: Any) -> Any:
    """Return what JSON can say: a number that is none becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


class Reference(NamedTuple):
    """What is timed in turns with an engine, and its calibrated ms."""

    engine: Engine
    ms: float


def calibrated(setup: Setup, engine: Engine) -> Reference:
    """Make an engine the reference."""
    engine.bind(np.random.default_rng(0).random(engine.input_shape, dtype=np.float32))
    return Reference(engine, setup.clock().calibrate(engine.run).ms)


def timed(setup: Setup, engine: Engine, reference: Reference) -> Row:
    """Time an engine whose input is bound, in turns with the reference."""
    timing = setup.clock().measure(engine.run, reference.engine.run, reference.ms)
    half_width = {"half_width": timing.half_width, "reference_ms": reference.ms}
    return dataclasses.asdict(timing) | half_width


def measured(setup: Setup, engine: Engine, reference: Reference, rung: Rung, precision: str) -> Row:
    """Compare an engine with torch, then time it."""
    figures: Row = {"network": rung.name, "precision": precision} | rung.parity(engine, precision)
    engine.bind(rung.known["images"][:1])
    return figures | timed(setup, engine, reference)


class TorchEngine(Engine):
    """A module under torch.

    Args:
        module: from images to outputs; it is moved to the device.
        shape: of its images.
        setup: where it runs.
        mode: words out of `half` (with channels last), `compiled` and `graph` (of CUDA).
        names: of its outputs.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: tuple[int, ...],
        setup: Setup,
        mode: str,
        names: Sequence[str] = OUTPUTS,
    ) -> None:
        super().__init__(shape)
        self._names, self._setup, self._mode = names, setup, mode
        # In full precision, fp32 is fp32: no TF32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self._input = torch.zeros(shape, device=setup.device)
        self._module: Any = module.eval()
        self._module = self._module.to(setup.device, torch.float32)
        if "half" in mode:
            self._input = self._input.half().to(memory_format=torch.channels_last)
            self._module = self._module.half().to(memory_format=torch.channels_last)
        if "compiled" in mode:
            self._module = torch.compile(self._module)
        self._result: Any = None
        self._launch = self._captured() if "graph" in mode else self._eager

    def _eager(self) -> None:
        with torch.no_grad():
            self._result = self._module(self._input)

    def _captured(self) -> Callable[[], None]:
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):  # what the first runs allocate must not be captured
            for _ in range(3):
                self._eager()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            self._eager()
        return graph.replay

    def _bind(self, images: Images) -> None:
        self._input.copy_(torch.from_numpy(images))

    def _run(self) -> None:
        self._launch()
        self._setup.synchronize()

    def _outputs(self) -> Outputs:
        values = self._result if isinstance(self._result, tuple) else (self._result,)
        return {
            name: value.to("cpu", torch.float32, copy=True).numpy()
            for name, value in zip(self._names, values, strict=True)
        }

    def _describe(self) -> dict[str, str]:
        return {"runtime": "torch", "version": torch.__version__, "mode": self._mode}

    def _saved(self) -> tuple[bytes, Mapping[str, str]]:
        raise EngineError("A module is no engine that can be saved.")

    def _close(self) -> None:
        self._module = self._result = None
        self._launch = self._require_open
