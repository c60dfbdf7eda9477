"""The parts of the check. Each runs in a process of its own, and tells its report what it finds."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gpu.engines import (
    Reference,
    Report,
    Setup,
    TorchEngine,
    calibrated,
    measured,
    timed,
)
from gpu.ladder import Row, Rung, deviations, digits, ladder, scenes, yolov8
from gpu.runtimes import tensorrt_runtime
from gpu.watch import ask
from nas.accuracy.detections import detect_batch
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import Progress, train_detector, train_supernet
from nas.latency.clock import Elapsed
from nas.latency.detection import detect
from nas.latency.onnx_export import export_graph, export_onnx
from nas.latency.quantization import quantize
from nas.latency.reference import reference_onnx
from nas.latency.runtimes.base import Engine, Runtime
from nas.model.blocks.attention import build_attention
from nas.model.detector import Detector, needs_nms, profile
from nas.model.supernet import Supernet, recalibrate
from nas.space.architecture import Architecture
from nas.space.attention import AttentionPoint

FAMILIES: dict[str, Row] = {  # those of benchmarks/attention_cost.py
    "dense": {"kind": "dense"},
    "sparse": {"tokens": 512},
    "windowed": {"kind": "windowed", "window": 8},
    "strided": {"kind": "strided", "stride": 4},
    "lsh": {"kind": "lsh", "buckets": 32},
    "deformable": {"kind": "deformable", "points": 4},
    "aifi": {"kind": "aifi"},
    "psa": {"kind": "psa"},
}
MAPS = ((34, 60), (68, 120))  # P5 and P4 of a 1080p image: N = 2040 and 8160
SMALL = (80, 80)  # the smallest at which sparse attention at P3 and P5 has something to leave out
_LIMITS = (
    "driver_version,power.limit,power.default_limit,clocks.max.sm,clocks.max.mem,mig.mode.current"
)
_MIB, _GIB = 2**20, 2**30

Amp = Literal["bf16", "off"]
_AMPS: tuple[Amp, ...] = ("bf16", "off")


def machine(setup: Setup, report: Report) -> None:
    """GPU, driver, CUDA, clocks, power limit."""
    found = detect()
    row: Row = {"processor": found.devices[0].name, "system": platform.platform()}
    row |= {"torch": torch.__version__, "cuda": torch.version.cuda, "blind": found.blind}
    if setup.device == "cuda" and torch.cuda.is_available():
        row |= _gpu()
    report.row(row)


def _gpu() -> Row:
    about = torch.cuda.get_device_properties(0)
    uuid = str(getattr(about, "uuid", ""))
    return {
        "gpu": about.name,
        "uuid": uuid,
        "compute_capability": f"{about.major}.{about.minor}",
        "memory_gib": about.total_memory / _GIB,
        "multiprocessors": about.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "nvml": [device.text for device in detect().devices[1:]],
        **ask(uuid, _LIMITS),
        "programs": ask(uuid, "pid", of="compute-apps").get("pid", ""),
    }


# --- networks --------------------------------------------------------------------------------


def networks(setup: Setup, report: Report) -> None:
    """Train the smallest network; export all, with what torch in fp32 on the CPU says of images."""
    for name, architecture in ladder().items():
        if setup.small and not name.startswith("digits"):
            continue
        made = architecture.at_input(SMALL) if setup.small else architecture
        report.attempt(name, partial(_make, setup, name, made))
    for rung in setup.rungs():
        if not rung.about["trained"]:
            reason = "an untrained network has none: its boxes and scores are compared"
            report.missed(f"detections of {rung.name}", reason)
    if not find_spec("onnxruntime"):
        report.missed("parity of INT8", "ONNX Runtime, which calibrates, is not installed")


def _make(setup: Setup, name: str, architecture: Architecture) -> Row:
    detector = Detector(architecture).to(setup.device)
    row: Row = {"digest": architecture.digest, "trained": name.startswith("digits")}
    images = scenes(16 if row["trained"] else 2, architecture.input, seed=1).images
    inputs = images.astype(np.float32) / 255
    if name == "digits":
        row["loss"] = _train(setup, detector)
    elif row["trained"]:  # sparse attention has the weights of dense attention
        detector.load_state_dict(torch.load(setup.folder / "digits.pt", weights_only=True))
    else:
        recalibrate(detector, [torch.from_numpy(inputs).to(setup.device)])
    boxes, scores = _written(setup, name, detector.cpu(), inputs)
    row |= {"calibrated": find_spec("onnxruntime") is not None, "nms": needs_nms(architecture)}
    found = detect_batch(boxes, scores, nms=row["nms"])
    row["detections"] = sum(int((one.scores > 0.25).sum()) for one in found)
    about = row | {"architecture": architecture.canonical()}
    (setup.folder / f"{name}.rung.json").write_text(json.dumps(about))  # last: all is there
    return row | dataclasses.asdict(profile(architecture))


def _train(setup: Setup, detector: Detector) -> float:
    """Teach it enough to have detections that engines can be compared by."""
    recipe = Recipe(iterations=200)
    if setup.small:
        recipe = Recipe(iterations=2, batch_size=2)
    split = scenes(8 if setup.small else 512, detector.architecture.input, seed=0).split
    return train_detector(detector, split, recipe).loss


def _written(setup: Setup, name: str, detector: Detector, inputs: Any) -> tuple[Any, Any]:
    """Write weights, graphs, images and what the network says of them; return what it says."""
    deployed, path = detector.deploy(), str(setup.folder / name)
    with torch.no_grad():
        boxes, scores = (output.numpy() for output in deployed(torch.from_numpy(inputs)))
    graph = export_onnx(deployed, *detector.architecture.input)
    calibration = inputs[:8] if find_spec("onnxruntime") else None
    Path(f"{path}.fp32.onnx").write_bytes(graph)
    Path(f"{path}.int8.onnx").write_bytes(quantize(graph, calibration))
    torch.save(detector.state_dict(), f"{path}.pt")
    np.savez(f"{path}.npz", images=inputs, boxes=boxes, scores=scores)
    return boxes, scores


# --- repeatability ---------------------------------------------------------------------------


def repeatability(setup: Setup, report: Report) -> None:
    """Ratios to the reference in one of three fresh processes, of engines loaded and built anew."""
    _one_thread(setup)
    rungs, plans = setup.rungs("digits", "yolov8n"), setup.folder / "plans"
    if not (plans / "digits.fp16.plan").exists():
        mode = "half, graph" if setup.device == "cuda" else "eager"
        row = partial(_torch_row, setup, rungs[0], mode, _torch_reference(setup, mode))
        report.attempt(f"digits, torch {mode}", row)
        return
    runtime = tensorrt_runtime(setup)
    reference = calibrated(setup, runtime.load(plans / "reference.fp16.plan"))
    makers: dict[str, tuple[Rung, Callable[[], Engine]]] = {
        f"{rung.name}, tensorrt fp16 loaded": (rung, partial(runtime.load, plan))
        for rung in rungs
        if (plan := plans / f"{rung.name}.fp16.plan").exists()
    }
    rebuilt = partial(runtime.build, rungs[0].graph("fp16"), "fp16")
    makers["digits, tensorrt fp16 rebuilt"] = rungs[0], rebuilt
    for what, (rung, make) in makers.items():
        report.attempt(what, partial(_timed_once, setup, make, reference, rung))


def _timed_once(setup: Setup, make: Callable[[], Engine], reference: Reference, rung: Rung) -> Row:
    with make() as engine:
        engine.bind(rung.known["images"][:1])
        return timed(setup, engine, reference)


def _torch_reference(setup: Setup, mode: str) -> Reference:
    network = Detector(digits(sparse=True)).deploy()
    return calibrated(setup, TorchEngine(network, (1, 3, 128, 128), setup, mode))


def _torch_row(setup: Setup, rung: Rung, mode: str, reference: Reference) -> Row:
    elapsed = Elapsed()
    with TorchEngine(rung.network(), rung.shape, setup, mode) as engine:
        engine.infer(rung.known["images"][:1])
        row: Row = {"mode": mode, "build_s": elapsed.wall_s}
        precision = "fp16" if "half" in mode else "fp32"
        return row | measured(setup, engine, reference, rung, precision)


def _one_thread(setup: Setup) -> None:
    """On a processor the clock counts what one thread takes."""
    if setup.device == "cpu":
        torch.set_num_threads(1)


# --- attention -------------------------------------------------------------------------------


class _OnImages(nn.Module):
    """A block behind a 1x1 convolution from the three channels of an image."""

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, channels, 1), block

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.block(self.stem(images))
        return output


def attention(setup: Setup, report: Report) -> None:
    """Attention families beside dense attention, fp16: torch in a CUDA graph, and TensorRT."""
    _one_thread(setup)
    mode = "half, graph" if setup.device == "cuda" else "eager"
    reference = _torch_reference(setup, mode)
    maps = ((8, 8),) if setup.small else MAPS
    for size in maps:
        for family in FAMILIES:
            row = partial(_attention_row, setup, family, size, mode, reference)
            report.attempt(f"{family} on {size[0]}x{size[1]}, torch {mode}", row)
    try:
        runtime = tensorrt_runtime(setup)
        reference = calibrated(setup, runtime.build(reference_onnx(), "fp16"))
    except Exception as error:  # noqa: BLE001 - the rest of this part is there already
        report.missed("attention on TensorRT", error)
        return
    for size in maps:
        for family in ("dense", "sparse"):
            row = partial(_attention_row, setup, family, size, runtime, reference)
            report.attempt(f"{family} on {size[0]}x{size[1]}, tensorrt", row, seconds=8)


def _attention_row(
    setup: Setup, family: str, size: tuple[int, int], on: str | Runtime, reference: Reference
) -> Row:
    channels, shape = 64 if setup.small else 512, (1, 3, *size)
    fewer = {"tokens": 16} if setup.small and family == "sparse" else {}
    point = AttentionPoint(**FAMILIES[family] | fewer, gate="none").on(size)
    torch.manual_seed(0)
    block = build_attention(point, channels, size)
    module, images = _OnImages(block, channels), np.random.default_rng(0)
    inputs = images.random(shape, dtype=np.float32)
    with TorchEngine(module, shape, setup, "eager", ["features"]) as exact:
        expected = exact.infer(inputs)
    if isinstance(on, str):
        engine: Engine = TorchEngine(module, shape, setup, on, ["features"])
    else:
        graph = export_graph(module.cpu(), torch.zeros(shape), "images", ["features"])
        engine = on.build(graph, "fp16")
    with engine:
        row: Row = {"family": family, "positions": math.prod(size), "macs": block.macs}
        row |= {"engine": "torch" if isinstance(on, str) else on.name}
        return row | deviations(engine.infer(inputs), expected) | timed(setup, engine, reference)


# --- training --------------------------------------------------------------------------------


class _EnoughError(Exception):
    """Ends a training that is only timed."""


def training(setup: Setup, report: Report) -> None:
    """Steps a second and peak memory of training supernets, bf16 beside fp32."""
    large = {
        "yolov8 n..s, 640": (yolov8(16), yolov8(32)),
        "digits": (digits(sparse=True), digits()),
    }
    small = {"digits": tuple(one.at_input(SMALL) for one in large["digits"])}
    amps = _AMPS if setup.device == "cuda" else _AMPS[1:]
    for name, pair in (small if setup.small else large).items():
        for batch in (2,) if setup.small else (16, 64):
            for amp in amps:
                row = partial(_training_row, setup, pair, batch, amp)
                report.attempt(f"{name}, batch {batch}, amp {amp}", row, seconds=2)


def _training_row(setup: Setup, pair: tuple[Architecture, ...], batch: int, amp: Amp) -> Row:
    split = scenes(16, pair[0].input, seed=0).split
    supernet, steps = Supernet(pair).to(setup.device), _Steps(small=setup.small)
    recipe = Recipe(iterations=10_000, batch_size=batch, largest_only=0.0, amp=amp)
    if setup.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(_EnoughError):
        train_supernet(
            supernet, lambda _, rng: pair[rng.integers(2)], pair[1], split, recipe, progress=steps
        )
    row: Row = {"batch": batch, "amp": amp, "steps": steps.done, "steps_per_s": steps.per_second}
    row["images_per_s"] = batch * steps.per_second
    if setup.device == "cuda":
        row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / _GIB
    return row


class _Steps:
    """Counts training steps after a warm-up, and ends the training when they are enough."""

    def __init__(self, *, small: bool) -> None:
        self._warmup, self._most, self._seconds = (1, 1, 1.0) if small else (4, 40, 4.0)
        self._elapsed = Elapsed()
        self.done, self.per_second = 0, 0.0

    def __call__(self, now: Progress) -> None:
        self.done = now.iteration - self._warmup
        if self.done <= 0:
            self._elapsed = Elapsed()
            return
        wall_s = self._elapsed.wall_s
        self.per_second = self.done / wall_s
        if self.done >= self._most or wall_s > self._seconds:
            raise _EnoughError
