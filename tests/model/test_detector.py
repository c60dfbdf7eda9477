from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas import plugins
from nas.errors import ArchitectureError
from nas.model.detector import Detector, decode, profile
from nas.space.architecture import Architecture

Build = Callable[..., Architecture]
YOLO_NAS = {"reduce": True, "three_inputs": True, "halve": True, "upsample": "transposed"}


def _images(architecture: Architecture, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, *architecture.input, generator=generator)


@pytest.fixture(
    scope="module",
    params=[
        *({"block": name} for name in plugins.names("blocks")),
        {"activation": "silu", "stem": {"channels": 6, "kernel": 6}},
        {"neck": YOLO_NAS, "pooling": {"kind": "spp", "hidden": 8, "kernels": [5, 9, 13]}},
        {"input": [72, 104], "neck": YOLO_NAS, "attention": {"P3": {"tokens": 9}}},
        {"pooling": None, "stem": {"channels": 6, "convolution": "repvgg"}},
        {"head": {"channels": 12, "stem": True, "depth": 2, "bins": 17}},
    ],
    ids=str,
)
def architecture(request: pytest.FixtureRequest, build_architecture: Build) -> Architecture:
    options: dict[str, Any] = dict(request.param)
    if "neck" in options:
        options["neck"] = build_architecture().neck.model_dump() | options["neck"]
    return build_architecture(**options)


def test_detector__predictions_have_the_agreed_shapes(architecture: Architecture) -> None:
    predictions = Detector(architecture)(_images(architecture))
    anchors = sum(architecture.tokens_at(level) for level in ("P3", "P4", "P5"))
    assert predictions.logits.shape == (2, anchors, 3)
    assert predictions.bins.shape == (2, anchors, 4, architecture.head.bins)
    assert predictions.anchors.shape == (anchors, 2)
    assert predictions.strides.shape == (anchors,)


def test_deploy__equals_evaluation_mode(
    architecture: Architecture, randomize: Callable[..., None]
) -> None:
    detector = Detector(architecture).eval()
    randomize(detector)
    images = _images(architecture)
    with torch.no_grad():
        predictions = detector(images)
        boxes, scores = detector.deploy()(images)
    torch.testing.assert_close(scores, predictions.logits.sigmoid(), rtol=0, atol=1e-4)
    torch.testing.assert_close(boxes, decode(predictions), rtol=1e-4, atol=1e-2)


def test_deploy__leaves_only_plain_convolutions(architecture: Architecture) -> None:
    detector = Detector(architecture)
    deployed = detector.deploy()
    kinds = {type(module).__name__ for module in deployed.modules()}
    assert kinds.isdisjoint({"BatchNorm2d", "ConvBN", "QARepVGG", "RepVGG", "ClassPredictor"})
    assert detector.training
    assert not deployed.training


def test_profile__counts_what_is_deployed(architecture: Architecture) -> None:
    deployed = Detector(architecture).deploy()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(_images(architecture, batch=1))
    counted = profile(architecture)
    assert counted.parameters == sum(p.numel() for p in deployed.parameters())
    assert counted.macs == counter.get_total_flops() / 2


def test_export__onnx_is_static_and_equal(architecture: Architecture, tmp_path: Path) -> None:
    deployed = Detector(architecture).deploy()
    images = _images(architecture, batch=1)
    file = tmp_path / "detector.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        names = {"input_names": ["images"], "output_names": ["boxes", "scores"]}
        torch.onnx.export(deployed, (images,), file, opset_version=19, dynamo=False, **names)
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert operators.isdisjoint({"Shape", "Range", "NonZero", "Where", "ConstantOfShape", "Loop"})
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    boxes, scores = session.run(None, {"images": images.numpy()})
    expected = deployed(images)
    assert np.abs(scores - expected[1].detach().numpy()).max() < 1e-4
    assert np.abs(boxes - expected[0].detach().numpy()).max() < 1e-2


def test_anchors__are_centres_of_cells(build_architecture: Build) -> None:
    detector = Detector(build_architecture(input=[64, 96]))
    assert detector.anchors[0].tolist() == [4.0, 4.0]
    assert detector.anchors[13].tolist() == [12.0, 12.0]  # second row, second column of P3
    assert detector.anchors[-1].tolist() == [80.0, 48.0]
    assert detector.strides.unique().tolist() == [8.0, 16.0, 32.0]
    assert not {"anchors", "strides"} & detector.state_dict().keys()


def test_detector__seed_decides_the_weights_and_nothing_else(build_architecture: Build) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (Detector(build_architecture(), seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    weights = zip(first.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in weights)


def test_detector__bf16_autocast_is_finite_forward_and_backward(build_architecture: Build) -> None:
    architecture = build_architecture(attention={"P3": {"tokens": 30}, "P5": {"kind": "dense"}})
    detector = Detector(architecture)
    with torch.autocast("cpu", torch.bfloat16):
        predictions = detector(_images(architecture).to(memory_format=torch.channels_last))
    (predictions.logits.float().square().mean() + decode(predictions).square().mean()).backward()
    assert predictions.logits.isfinite().all()
    gradients = {name: p.grad for name, p in detector.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


def test_detector__wrong_size_of_images(build_architecture: Build) -> None:
    detector = Detector(build_architecture())
    for network in (detector, detector.deploy()):
        with pytest.raises(ArchitectureError, match=r"\(B, 3, 64, 96\), got \(1, 3, 96, 64\)"):
            network(torch.rand(1, 3, 96, 64))
