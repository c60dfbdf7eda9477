"""The parts that build and time the ladder by each runtime of the project."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from gpu.engines import Reference, Report, Setup, calibrated, measured, timed
from gpu.ladder import Row, Rung, deviations
from nas import plugins
from nas.errors import NasError
from nas.latency.clock import Elapsed
from nas.latency.onnx_export import export_onnx
from nas.latency.quantization import at_precision
from nas.latency.reference import reference_onnx
from nas.latency.runtimes.base import Outputs, Runtime

PRECISIONS = ("fp16", "int8", "fp32")
_MIB = 2**20


def tensorrt(setup: Setup, report: Report) -> None:
    """Build times, what layers compute in, memory, CUDA graphs, latency, parity."""
    runtime = tensorrt_runtime(setup)
    references: dict[str, Reference] = {}
    for rung, precision in _by_worth(setup.rungs()):
        row = partial(_tensorrt_row, setup, runtime, references, rung, precision)
        report.attempt(f"{rung.name} {precision}", row, seconds=15)
        if precision == "fp16" and precision in references:
            row = partial(_tensorrt_again, setup, runtime, references[precision], rung)
            report.attempt(f"{rung.name} {precision}, again", row)


def tensorrt_runtime(setup: Setup, *, cuda_graph: bool = True) -> Any:
    """Return TensorRT with its timing cache in the shared folder."""
    from nas.latency.runtimes.tensorrt import TensorRtRuntime  # noqa: PLC0415 - may be missing

    return TensorRtRuntime(cache_folder=setup.folder / "timing", cuda_graph=cuda_graph)


def _by_worth(rungs: Sequence[Rung]) -> list[tuple[Rung, str]]:
    """Order what is built: small networks first, and fp32 late."""
    pairs = [(rung, precision) for rung in rungs for precision in PRECISIONS]
    return sorted(pairs, key=lambda pair: rungs.index(pair[0]) + 3 * (pair[1] == "fp32"))


def _tensorrt_row(
    setup: Setup, runtime: Any, references: dict[str, Reference], rung: Rung, precision: str
) -> Row:
    plans = setup.folder / "plans"
    if precision not in references:
        engine = runtime.build(at_precision(reference_onnx(), precision), precision)
        engine.save(plans / f"reference.{precision}.plan")
        references[precision] = calibrated(setup, engine)
    known = sum(path.stat().st_size for path in (setup.folder / "timing").glob("*"))
    elapsed = Elapsed()
    with runtime.build(rung.graph(precision), precision) as engine:
        row: Row = {"build_s": elapsed.wall_s, "timing_cache_mib_before": known / _MIB}
        row["device_memory_mib"] = engine.device_memory_bytes / _MIB
        row |= measured(setup, engine, references[precision], rung, precision)
        row["facts"] = facts = engine.describe()
        row |= {"layers": facts["arithmetic layers"], "cuda_graph": facts["cuda graph"]}
        engine.save(plans / f"{rung.name}.{precision}.plan")
        return row


def _tensorrt_again(setup: Setup, runtime: Any, reference: Reference, rung: Rung) -> Row:
    """Build once more, which the timing cache makes quick; and run without a CUDA graph."""
    elapsed = Elapsed()
    runtime.build(rung.graph("fp16"), "fp16").close()
    row: Row = {"rebuild_s": elapsed.wall_s}
    plain = tensorrt_runtime(setup, cuda_graph=False)
    with plain.load(setup.folder / "plans" / f"{rung.name}.fp16.plan") as engine:
        engine.bind(rung.known["images"][:1])
        return row | {"without_cuda_graph_ms": timed(setup, engine, reference)["ms"]}


def onnx_runtime(setup: Setup, report: Report) -> None:
    """ONNX Runtime by CUDA and TensorRT: does all of it run there, how fast, how exactly."""
    on_gpu = ("onnxruntime-cuda", "onnxruntime-tensorrt")
    for name in on_gpu if setup.device == "cuda" else ("onnxruntime",):
        _runtime_rows(setup, report, name, setup.rungs("digits", "yolov8n"))


def torch_modes(setup: Setup, report: Report) -> None:
    """Torch from ONNX graphs: eager, and in a CUDA graph."""
    on_gpu = ("pytorch-cuda", "pytorch-cudagraph")
    for name in on_gpu if setup.device == "cuda" else ("pytorch",):
        _runtime_rows(setup, report, name, setup.rungs())


def compiled(setup: Setup, report: Report) -> None:
    """Torch compiled, which may take a minute for a network: so it comes last."""
    _runtime_rows(setup, report, "pytorch-cuda-compiled", setup.rungs("digits", "yolov8n"))


def _runtime_rows(setup: Setup, report: Report, name: str, rungs: Sequence[Rung]) -> None:
    """Build, compare, time, save and load by a runtime, in the precisions that it has."""
    try:
        runtime: Runtime = plugins.load("runtimes", name)()
    except NasError as error:
        report.missed(name, error)
        return
    references: dict[str, Reference] = {}
    for rung, precision in _by_worth(rungs):
        if precision in runtime.precisions:
            row = partial(_runtime_row, setup, runtime, references, rung, precision)
            report.attempt(f"{rung.name} {precision}, {name}", row)


def _runtime_row(
    setup: Setup, runtime: Runtime, references: dict[str, Reference], rung: Rung, precision: str
) -> Row:
    if precision not in references:
        other = runtime.build(at_precision(reference_onnx(), precision), precision)
        references[precision] = calibrated(setup, other)
    elapsed = Elapsed()
    with runtime.build(rung.graph(precision), precision) as engine:
        row: Row = {"runtime": runtime.name, "build_s": elapsed.wall_s, "facts": engine.describe()}
        row |= measured(setup, engine, references[precision], rung, precision)
        path = setup.folder / "saved" / f"{rung.name}.{precision}.{runtime.name}"
        engine.save(path)
        image = rung.known["images"][:1]
        expected, elapsed = engine.infer(image), Elapsed()
    with runtime.load(path) as loaded:
        return row | {"load_s": elapsed.wall_s, "loaded_max": _worst(loaded.infer(image), expected)}


def batches(setup: Setup, report: Report) -> None:
    """Two images at once on every runtime: does each get what it gets alone."""
    names = ("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt", "pytorch-cudagraph")
    for name in names if setup.device == "cuda" else ("pytorch",):
        for rung in setup.rungs("digits", "digits_sparse"):
            precision = "fp16" if setup.device == "cuda" else "fp32"
            row = partial(_batch_row, name, rung, precision)
            report.attempt(f"{rung.name} {precision} batch 2, {name}", row)


def _batch_row(name: str, rung: Rung, precision: str) -> Row:
    runtime: Runtime = plugins.load("runtimes", name)()
    images, size = rung.known["images"][:2], rung.shape[2:]
    pair = export_onnx(rung.network(), *size, batch=2)
    with runtime.build(rung.graph(precision), precision) as engine:
        alone = [engine.infer(images[index : index + 1]) for index in range(2)]
    with runtime.build(pair, precision) as engine:
        found = engine.infer(images)
    expected = {name: np.concatenate([one[name] for one in alone]) for name in found}
    return {"runtime": runtime.name, "deviation_max": _worst(found, expected)}


def _worst(found: Outputs, expected: Outputs) -> float:
    """Return the largest deviation of any output, relative to its largest magnitude."""
    figures = deviations(found, expected)
    return float(max(value for name, value in figures.items() if name.endswith("_max")))
