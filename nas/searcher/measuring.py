"""One network on one device: what a user may name, and all that the clock says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nas.accuracy.images import read_image
from nas.errors import InputError
from nas.latency.hardware import Hardware
from nas.latency.latency import Latency
from nas.latency.measurable import runtime_for
from nas.latency.meter import LatencyMeter
from nas.latency.onnx_export import load_onnx
from nas.latency.onnx_graph import image_shape, parse_onnx
from nas.latency.timing import ProtocolName, Timing
from nas.searcher.end_to_end import EndToEnd
from nas.searcher.latency_judge import untrained_onnx
from nas.searcher.request import Workspace
from nas.space.subject import is_file, read_architecture
from nas.units import COCO_CLASSES

__all__ = ["MeasureRequest", "Measured", "measure_network", "network_graph"]


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """A measurement, as the command line or Python asks for it.

    Attributes:
        subject: any ONNX file with one image input, `space:anchor`, an `architecture.yaml`, or a
            layer list of YOLO users; without weights, the network has random ones.
        hardware: device to measure on.
        runtime: of the engine; the hardware's own if None.
        precision: of the engine.
        protocol: `hot`, or `buffered`: with a pause before every run.
        batch: images per run; an ONNX file has its own.
        image: time this image on its way to detections, and not the network alone.
        threads: of the engine; with more than one, the wall clock times it.
        workspace: folder with devices of the user's own.
    """

    subject: str
    hardware: str = "cpu"
    runtime: str | None = None
    precision: str = "fp32"
    protocol: ProtocolName = "hot"
    batch: int | None = None
    image: Path | None = None
    threads: int = 1
    workspace: Workspace = field(default_factory=Workspace)


@dataclass(frozen=True)
class Measured:
    """A latency, and everything that the clock said about it.

    Attributes:
        latency: of a run, with its environment.
        timing: its percentiles, blocks, parts and what disturbed it.
    """

    latency: Latency
    timing: Timing

    @property
    def ms(self) -> float:
        """Milliseconds of a run."""
        return self.latency.ms


def measure_network(request: MeasureRequest) -> Measured:
    """Measure a network in a process of its own.

    Raises:
        ArchitectureError: the file describes no network.
        ExportError: the ONNX file is broken or has another input.
        EngineError: no engine can be built.
        InputError: an ONNX file has another batch, or the image cannot be read.
        MeasurementError: the device is not attached, or too busy.
        UnknownNameError: no such hardware, runtime, precision or protocol.
    """
    device = Hardware.named(request.hardware, request.workspace.hardware)
    runtime = runtime_for(device, request.runtime)
    onnx = network_graph(request.subject, request.batch)
    model = parse_onnx(onnx)
    around = None
    if request.image is not None:
        properties = {one.key: one.value for one in model.metadata_props}
        around = EndToEnd(read_image(request.image), nms=properties.get("nms") != "none")
    with LatencyMeter(
        device,
        runtime,
        precisions=[request.precision],
        threads=request.threads,
        isolated=True,
        protocol=request.protocol,
        batch=image_shape(model)[0],
        around=around,
    ) as meter:
        timing = meter.time(onnx, request.precision)
        environment = meter.environment(request.precision)
    return Measured(Latency.measured(timing, environment), timing)


def network_graph(subject: str, batch: int | None = None) -> bytes:
    """Read or export the graph of the network that a user names.

    Args:
        subject: as of `MeasureRequest`.
        batch: images per run; None takes that of an ONNX file, and 1 for any other network.

    Raises:
        InputError: it names no network, or an ONNX file has another batch.
        ExportError: the ONNX file is broken or has another input.
        ArchitectureError: a file describes no network.
    """
    if subject.endswith(".onnx"):
        onnx = load_onnx(Path(subject))
        own, *_ = image_shape(parse_onnx(onnx))
        if batch not in {None, own}:
            raise InputError(
                f"{subject} takes {own} images per run, not {batch}.",
                "Leave the batch out, or export the network with that batch.",
            )
        return onnx
    if is_file(subject) or ":" in subject:
        return untrained_onnx(
            read_architecture(subject, COCO_CLASSES), 1 if batch is None else batch
        )
    raise InputError(
        f"A network is a .yaml file, an .onnx file or space:anchor, got {subject!r}.",
        "Give an architecture.yaml, a model.onnx, or a name such as digits:middle.",
    )
