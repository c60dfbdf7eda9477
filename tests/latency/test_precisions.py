"""A detector that detects: what INT8 and half precision do to its detections."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nas.accuracy.dataset import Dataset
from nas.accuracy.detections import Detections, detect, match_detections
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_detector
from nas.latency.half import to_half
from nas.latency.onnx_export import export_onnx
from nas.latency.quantization import quantize
from nas.latency.runtimes.base import Images, Outputs
from nas.latency.runtimes.onnxruntime import OnnxRuntime
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.model.detector import Detector
from nas.space.space import load_space

SIDE = 64
WITHOUT_VNNI = """
import numpy as np
from nas.latency.runtimes import openvino
openvino.cpu_flags = lambda: frozenset({"ssse3", "avx2"})
with openvino.OpenVinoRuntime().build(open("int8.onnx", "rb").read(), "int8") as engine:
    found = [engine.infer(image[None]) for image in np.load("images.npy")]
np.savez("found.npz", **{name: [one[name][0] for one in found] for name in ("boxes", "scores")})
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    recipe = DigitsRecipe(train=16, validation=1, test=1, size=SIDE)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def graph(dataset: Dataset) -> bytes:
    """A small network that knows its training images by heart."""
    space = load_space("digits")
    detector = Detector(space.candidate(space.anchors["min"], classes=10).architecture)
    still = Recipe(iterations=240, batch_size=8, zoom=0.0, shift=0.0, light=0.0, contrast=0.0)
    train_detector(detector, dataset.train, still)
    return export_onnx(detector.deploy(), SIDE, SIDE)


@pytest.fixture(scope="module")
def images(dataset: Dataset) -> Images:
    found: Images = dataset.train.resized(SIDE, SIDE).images[:16].astype(np.float32) / 255
    return found


@pytest.fixture(scope="module")
def int8(graph: bytes, images: Images) -> bytes:
    return quantize(graph, images)


@pytest.fixture(scope="module")
def expected(graph: bytes, images: Images) -> list[Detections]:
    found = detections(partial(OnnxRuntime().evaluate, graph), images)
    assert sum(int((one.scores > 0.25).sum()) for one in found) > 30
    return found


def detections(infer: Callable[[Images], Outputs], images: Images) -> list[Detections]:
    outputs = [infer(image[None]) for image in images]
    return [detect(one["boxes"][0], one["scores"][0]) for one in outputs]


def test_half__finds_the_same(graph: bytes, images: Images, expected: list[Detections]) -> None:
    half = to_half(graph)
    found = detections(partial(OnnxRuntime().evaluate, half), images)
    assert match_detections(expected, found) >= 0.98


def test_int8__finds_nearly_the_same(
    int8: bytes, images: Images, expected: list[Detections]
) -> None:
    found = detections(partial(OnnxRuntime().evaluate, int8), images)
    assert match_detections(expected, found) >= 0.9


def test_int8_and_half__find_nearly_the_same(
    int8: bytes, images: Images, expected: list[Detections]
) -> None:
    half = to_half(int8)
    found = detections(partial(OnnxRuntime().evaluate, half), images)
    assert match_detections(expected, found) >= 0.9


def test_openvino_int8__finds_nearly_the_same(
    int8: bytes, images: Images, expected: list[Detections]
) -> None:
    with OpenVinoRuntime().build(int8, "int8") as engine:
        found = detections(engine.infer, images)
    assert match_detections(expected, found) >= 0.9


def test_openvino_int8__without_vnni_finds_nearly_the_same(
    int8: bytes, images: Images, expected: list[Detections], tmp_path: Path
) -> None:
    """In a process of its own, where oneDNN uses the instructions of an older processor."""
    (tmp_path / "int8.onnx").write_bytes(int8)
    np.save(tmp_path / "images.npy", images)
    names = ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA")
    subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI],
        check=True,
        cwd=tmp_path,
        env={**os.environ, **dict.fromkeys(names, "AVX2"), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    kept = np.load(tmp_path / "found.npz")
    found = [detect(*each) for each in zip(kept["boxes"], kept["scores"], strict=True)]
    assert match_detections(expected, found) >= 0.9


def test_int8__calibration_finds_more_than_placeholders(
    graph: bytes, int8: bytes, images: Images, expected: list[Detections]
) -> None:
    matched = [
        match_detections(expected, detections(partial(OnnxRuntime().evaluate, one), images))
        for one in (quantize(graph), int8)
    ]
    assert matched[0] < matched[1]
