"""Detector -> ONNX bytes, checked against torch; and a user's own ONNX file, checked before use.

The TorchScript exporter is used on purpose: it costs 0.05 CPU seconds for a graph that the newer
one takes 1 s for, and a search exports thousands. `torch` calls it legacy, so nothing else in the
project touches it.

Opset 19: layer normalisation is one operator from 17 on, and every engine that we know reads 19.
Shapes are static, the batch among them, because engines choose kernels by them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx as onnx_package
import torch
from torch import nn

from nas import plugins
from nas.errors import ExportError, MissingPackageError
from nas.latency.onnx_graph import image_size, onnx_digest, parse_onnx, shape_of
from nas.latency.runtimes.base import Images, Runtime
from nas.model.detector import DeployedDetector, suppression

__all__ = [
    "INPUT",
    "OPSET",
    "OUTPUTS",
    "check_onnx",
    "export_graph",
    "export_onnx",
    "load_onnx",
    "onnx_digest",
]

OPSET = 19
INPUT = "images"
OUTPUTS = ("boxes", "scores")

_TOLERANCE = 1e-4
_FP32_RUNTIMES = ("onnxruntime", "openvino")


def export_onnx(
    module: nn.Module, height: int, width: int, *, batch: int = 1, slim: bool = False
) -> bytes:
    """Export a deployed detector.

    Args:
        module: in eval mode; forward of (N, 3, H, W) returns boxes (N, A, 4) and scores
            (N, A, classes).
        height: H, pixels.
        width: W, pixels.
        batch: N, images that an engine takes at once.
        slim: fold and merge nodes with onnxslim. That makes a graph easier to read; the engines
            here do the same while building, so a graph that is only measured does not need it.

    Returns:
        An ONNX model: input `images` float32 (N, 3, H, W), outputs `boxes` and `scores`, opset 19.
        Of a `DeployedDetector`, the metadata `nms` says where duplicates are removed: `outside` the
        graph, or nowhere (`none`), because the network finds each object once.

    Raises:
        ExportError: the module is in training mode, has an operator that ONNX lacks, or returns
            something else than boxes and scores; or the batch is not positive.
        MissingPackageError: `slim` was asked for and onnxslim is not installed.
    """
    if module.training:
        raise ExportError(
            "A network is exported in eval mode, this one is training.", "Call eval()."
        )
    if batch < 1:
        raise ExportError(f"A batch has at least 1 image, got {batch}.")
    graph = export_graph(module, torch.zeros(batch, 3, height, width), INPUT, OUTPUTS)
    model = onnx_package.load_from_string(graph)
    _check_outputs(model, batch)
    model = _slimmed(model) if slim else model
    if isinstance(module, DeployedDetector):
        onnx_package.helper.set_model_props(model, {"nms": suppression(module.architecture)})
    return bytes(model.SerializeToString())


def export_graph(
    module: nn.Module, example: torch.Tensor, name: str, outputs: Sequence[str]
) -> bytes:
    """Export any module of one input, such as a block that is measured alone.

    Args:
        module: in eval mode.
        example: an input of the shape that the graph will take.
        name: of the input.
        outputs: names of the outputs.

    Raises:
        ExportError: the module has an operator that ONNX lacks.
    """
    file = io.BytesIO()
    try:
        with torch.no_grad(), _quiet_exporter():
            torch.onnx.export(
                module,
                (example,),
                file,  # type: ignore[arg-type]  # only the annotation forgets streams
                dynamo=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=list(outputs),
            )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shape = " x ".join(str(side) for side in example.shape[2:])
        raise ExportError(
            f"{type(module).__name__} cannot be exported at {shape}: {_reason(error)}"
        ) from error
    return file.getvalue()


def check_onnx(onnx: bytes, module: nn.Module, images: Images) -> float:
    """Compare a graph with its network on images, in fp32.

    Args:
        onnx: the exported graph.
        module: the network that it was exported from, in eval mode.
        images: float32 (N, 3, H, W), RGB in 0..1; real ones say more than noise.

    Returns:
        The largest deviation of boxes and scores, each relative to its largest magnitude.

    Raises:
        ExportError: the deviation is above 1e-4, or shapes differ.
        MissingPackageError: neither ONNX Runtime nor OpenVINO is installed.
    """
    with torch.no_grad():
        expected = dict(zip(OUTPUTS, module(torch.from_numpy(images)), strict=True))
    with _fp32_runtime().build(onnx, "fp32") as engine:
        found = engine.infer(images)
    deviations = {name: _deviation(found[name], expected[name].numpy()) for name in OUTPUTS}
    name, worst = max(deviations.items(), key=lambda item: item[1])
    if not worst <= _TOLERANCE:
        raise ExportError(
            f"The ONNX graph must agree with the network to {_TOLERANCE:g}, "
            f"its {name} deviate by {worst:.2g} of their largest magnitude.",
            "An operator was exported wrongly, or the network is not deterministic.",
        )
    return worst


def load_onnx(path: Path) -> bytes:
    """Read a user's ONNX file and validate it.

    Args:
        path: the file; weights that it keeps in files beside it are read in.

    Returns:
        The model as bytes, its one input static float32 (N, 3, H, W).

    Raises:
        ExportError: the file is missing or broken, or its input is something else.
    """
    try:
        parse_onnx(path.read_bytes())
        model = onnx_package.load(path)
        onnx_package.checker.check_model(model)
        image_size(model)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ExportError as error:
        raise ExportError(f"{path}: {error.message}", error.remedy) from error
    except (onnx_package.checker.ValidationError, ValueError) as error:
        raise ExportError(
            f"{path} is not a valid ONNX model: {_reason(error)}", "Export it again."
        ) from error
    return bytes(model.SerializeToString())


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    with warnings.catch_warnings():
        # We know that the exporter is the legacy one, and chose it for its speed.
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript")
        warnings.filterwarnings("ignore", message="The feature will be removed", module="torch")
        # Traced branches are frozen: shapes are static, which is what an engine needs.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # Constant folding gives up on some slices; the engines fold them.
        warnings.filterwarnings("ignore", message="Constant folding", module="torch")
        yield


def _slimmed(model: onnx_package.ModelProto) -> onnx_package.ModelProto:
    try:
        import onnxslim  # noqa: PLC0415 - optional, and 0.4 s to import
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "Slimming an ONNX graph needs the package 'onnxslim'.",
            "Install it with: pip install onnxslim.",
        ) from error
    slim: onnx_package.ModelProto = onnxslim.slim(model)
    return slim


def _fp32_runtime() -> Runtime:
    """ONNX Runtime where it is installed, because it is the closest to ONNX; else OpenVINO."""
    missing: MissingPackageError | None = None
    for name in _FP32_RUNTIMES:
        try:
            runtime: Runtime = plugins.load("runtimes", name)()
        except MissingPackageError as error:
            missing = missing or error
        else:
            return runtime
    assert missing is not None
    raise missing


def _deviation(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest deviation relative to the largest magnitude; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max(initial=np.finfo(np.float32).tiny))
    return float(np.abs(found - expected).max(initial=0.0)) / scale


def _check_outputs(model: onnx_package.ModelProto, batch: int) -> None:
    shapes = [shape_of(output) for output in model.graph.output]
    boxes_and_scores = (
        len(shapes) == len(OUTPUTS)
        and all(len(shape) == 3 and 0 not in shape for shape in shapes)
        and shapes[0][:2] == shapes[1][:2]
        and shapes[0][0] == batch
        and shapes[0][2] == 4
    )
    if not boxes_and_scores:
        raise ExportError(
            f"A detector returns boxes ({batch}, A, 4) and scores ({batch}, A, classes) of static "
            f"shape, this one returns {shapes}.",
            "Export Detector.deploy(), not the training network.",
        )


def _reason(error: Exception) -> str:
    """Return the first line of a library's message; the lines below are places in its source."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
