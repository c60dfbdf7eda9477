from __future__ import annotations

import numpy as np
import onnx

from nas.latency.onnx_graph import image_size, parse_onnx
from nas.latency.reference import reference_digest, reference_onnx
from nas.latency.runtimes.onnxruntime import OnnxRuntime


def test_reference__is_a_valid_graph_of_one_image() -> None:
    model = parse_onnx(reference_onnx())
    onnx.checker.check_model(model, full_check=True)
    assert image_size(model) == (128, 128)


def test_reference__digest_stays_what_environments_hold() -> None:
    assert reference_digest() == "eee78d3853855b0a"


def test_reference__activations_stay_normal_numbers() -> None:
    with OnnxRuntime().build(reference_onnx(), "fp32") as engine:
        rng = np.random.default_rng(0)
        outputs = engine.infer(rng.random(engine.input_shape, dtype=np.float32))
    for values in outputs.values():
        assert 1e-3 < values.std() < 1e3
